// Products of queries with coded keys, without ever writing a key to global memory.
//
// A block takes TOKENS tokens of one head. Each warp restores a key from its atoms in registers,
// rotates it and leaves it in shared memory. Then every query of the head meets every key of the
// block. Compiled for sm_80, sm_89 and sm_90; has never run on a card.

#define THREADS 256
#define WARPS (THREADS / 32)
#define TOKENS 32
// Channel pairs (j, j + width / 2) per lane: a width of 256 at most.
#define PAIRS 4

// indices and coefficients (heads, tokens, sparsity), atoms (count, width), cosines and sines
// (tokens, width / 2), queries (heads, asked, width), out (heads, asked, tokens); width even.
// Grid: (tokens / TOKENS rounded up, heads). Dynamic shared memory: TOKENS * (width + 1) floats.
extern "C" __global__ void __launch_bounds__(THREADS)
    scores(const unsigned *__restrict__ indices, const float *__restrict__ coefficients, const float *__restrict__ atoms,
           const float *__restrict__ cosines, const float *__restrict__ sines, const float *__restrict__ queries,
           float *__restrict__ out, const int tokens, const int sparsity, const int count, const int width,
           const int asked, const int rotate) {
    extern __shared__ float keys[];
    const int head = blockIdx.y, first = blockIdx.x * TOKENS;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int half = width / 2;
    // One float more than a key, so that the threads of a warp read different banks.
    const int stride = width + 1;

    for (int slot = warp; slot < TOKENS && first + slot < tokens; slot += WARPS) {
        const int token = first + slot;
        const size_t code = ((size_t)head * tokens + token) * sparsity;
        float low[PAIRS] = {}, high[PAIRS] = {};
#pragma unroll 4
        for (int i = 0; i < sparsity; ++i) {
            const unsigned index = indices[code + i];
            // An index past the dictionary spoils the key instead of reading past the atoms.
            const bool known = index < (unsigned)count;
            const float coefficient = known ? coefficients[code + i] : nanf("");
            const float *atom = atoms + (size_t)(known ? index : 0u) * width;
#pragma unroll
            for (int k = 0; k < PAIRS; ++k) {
                const int j = lane + 32 * k;
                if (j < half) {
                    low[k] = fmaf(coefficient, atom[j], low[k]);
                    high[k] = fmaf(coefficient, atom[j + half], high[k]);
                }
            }
        }
#pragma unroll
        for (int k = 0; k < PAIRS; ++k) {
            const int j = lane + 32 * k;
            if (j < half) {
                float a = low[k], b = high[k];
                if (rotate) {
                    const float c = cosines[(size_t)token * half + j], s = sines[(size_t)token * half + j];
                    a = low[k] * c - high[k] * s;
                    b = high[k] * c + low[k] * s;
                }
                keys[slot * stride + j] = a;
                keys[slot * stride + j + half] = b;
            }
        }
    }
    __syncthreads();

    const int slot = threadIdx.x % TOKENS;
    if (first + slot >= tokens) {
        return;
    }
    const float *key = keys + slot * stride;
    for (int r = threadIdx.x / TOKENS; r < asked; r += THREADS / TOKENS) {
        const float *query = queries + ((size_t)head * asked + r) * width;
        float sum = 0.0f;
#pragma unroll 8
        for (int j = 0; j < width; ++j) {
            sum = fmaf(query[j], key[j], sum);
        }
        out[((size_t)head * asked + r) * tokens + first + slot] = sum;
    }
}
