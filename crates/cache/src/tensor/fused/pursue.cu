// Matching pursuit of many rows over one dictionary, one launch for all steps.
//
// A block codes ROWS rows. Their residuals stay in shared memory from the first step to the last.
// Each thread takes every THREADS-th atom and its product with every residual of the block, so an
// atom is read once for ROWS rows. Compiled for sm_80, sm_89 and sm_90; has never run on a card.

#define THREADS 256
#define WARPS (THREADS / 32)
#define NONE 0xffffffffu

// The best atom so far: the size of its product, the product, its index.
struct Best {
    float size;
    float product;
    unsigned atom;
};

// The larger product; on a tie the lower index. Nothing is better than a product that is not a number.
__device__ __forceinline__ Best better(const Best a, const Best b) {
    return b.size > a.size || (b.size == a.size && b.atom < a.atom) ? b : a;
}

__device__ __forceinline__ Best best_of_warp(Best best) {
    for (int offset = 16; offset > 0; offset /= 2) {
        Best other;
        other.size = __shfl_down_sync(NONE, best.size, offset);
        other.product = __shfl_down_sync(NONE, best.product, offset);
        other.atom = __shfl_down_sync(NONE, best.atom, offset);
        best = better(best, other);
    }
    return best;
}

// rows (n, width), atoms (count, width): both 16-byte aligned, width a multiple of 4.
// indices and coefficients (n, sparsity). Dynamic shared memory: ROWS * width floats.
template <int ROWS>
__device__ __forceinline__ void pursue(const float *__restrict__ rows, const float *__restrict__ atoms,
                                       unsigned *__restrict__ indices, float *__restrict__ coefficients, const int n,
                                       const int count, const int width, const int sparsity) {
    extern __shared__ float4 memory[];
    __shared__ Best found[WARPS][ROWS];
    float *residual = reinterpret_cast<float *>(memory);
    const int first = blockIdx.x * ROWS;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

    for (int j = threadIdx.x; j < ROWS * width; j += THREADS) {
        residual[j] = first + j / width < n ? rows[(size_t)first * width + j] : 0.0f;
    }
    __syncthreads();

    for (int step = 0; step < sparsity; ++step) {
        Best best[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            best[r] = {-1.0f, 0.0f, NONE};
        }
        for (int atom = threadIdx.x; atom < count; atom += THREADS) {
            const float4 *values = reinterpret_cast<const float4 *>(atoms + (size_t)atom * width);
            float sums[ROWS] = {};
            for (int j = 0; j < width / 4; ++j) {
                const float4 a = values[j];
#pragma unroll
                for (int r = 0; r < ROWS; ++r) {
                    const float4 x = memory[r * (width / 4) + j];
                    sums[r] = fmaf(a.x, x.x, fmaf(a.y, x.y, fmaf(a.z, x.z, fmaf(a.w, x.w, sums[r]))));
                }
            }
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                best[r] = better(best[r], {fabsf(sums[r]), sums[r], (unsigned)atom});
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const Best of_warp = best_of_warp(best[r]);
            if (lane == 0) {
                found[warp][r] = of_warp;
            }
        }
        __syncthreads();

        if (threadIdx.x < ROWS) {
            const int r = threadIdx.x;
            Best of_block = found[0][r];
            for (int w = 1; w < WARPS; ++w) {
                of_block = better(of_block, found[w][r]);
            }
            found[0][r] = of_block;
            if (first + r < n) {
                // A row with a number that is none has no best atom, and says so in its coefficients.
                const size_t out = (size_t)(first + r) * sparsity + step;
                indices[out] = of_block.atom == NONE ? 0u : of_block.atom;
                coefficients[out] = of_block.atom == NONE ? nanf("") : of_block.product;
            }
        }
        __syncthreads();

        for (int j = threadIdx.x; j < ROWS * width; j += THREADS) {
            const Best chosen = found[0][j / width];
            if (chosen.atom != NONE) {
                residual[j] -= chosen.product * atoms[(size_t)chosen.atom * width + j % width];
            }
        }
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    pursue_1(const float *rows, const float *atoms, unsigned *indices, float *coefficients, int n, int count, int width,
             int sparsity) {
    pursue<1>(rows, atoms, indices, coefficients, n, count, width, sparsity);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    pursue_4(const float *rows, const float *atoms, unsigned *indices, float *coefficients, int n, int count, int width,
             int sparsity) {
    pursue<4>(rows, atoms, indices, coefficients, n, count, width, sparsity);
}
