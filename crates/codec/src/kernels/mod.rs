//! The inner loops, each implemented once: searches, sums, the exponential, the streaming softmax, rotary embedding and
//! the matrix product.
//!
//! A kernel is one generic body over [`Simd`]. It is compiled for AVX-512, for AVX2 with FMA, and for any other CPU.
//! [`Isa`] selects the version at run time. All versions give the same bits, for three reasons: every multiply-add is
//! fused, the order of every sum is fixed, and a search returns the lowest index among equal elements. Products of f32
//! matrices also give the same bits on every CPU, although the `gemm` crate selects its own instructions.
//!
//! Other crates can write their own kernels with the same traits:
//!
//! ```
//! use kvcsr_codec::kernels::{Isa, Kernel, LANES, Simd, exp};
//!
//! /// `x = e^x` on whole registers.
//! struct Exponential<'a>(&'a mut [[f32; LANES]]);
//!
//! impl Kernel for Exponential<'_> {
//!     type Output = ();
//!
//!     #[inline(always)]
//!     fn run<S: Simd>(self, simd: S) {
//!         for x in self.0 {
//!             simd.store(exp(simd, simd.load(x)), x);
//!         }
//!     }
//! }
//!
//! let mut x = [[1.0; LANES]; 3];
//! Isa::detect().run(Exponential(&mut x));
//! assert!((x[2][5] - std::f32::consts::E).abs() < 1e-6);
//! ```

mod aligned;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod bf16;
mod bytes;
mod exponential;
mod halves;
mod limit;
mod portable;
mod product;
mod rotation;
mod search;
mod simd;
mod softmax;
mod sparse;
mod sums;
#[cfg(test)]
mod tests;

use half::f16;

pub use self::bf16::{Bf16Rows, bf16_rates, multiply_bf16, multiply_widened};
pub use self::exponential::exp;
pub use self::halves::{saturating_f16, to_f16};
pub use self::limit::{Width, limit_to};
pub use self::product::{Matrix, MatrixMut, multiply, multiply_add, multiply_parallel};
pub use self::rotation::RotaryTables;
pub use self::simd::{Kernel, LANES, Simd, padded};
pub use self::softmax::Softmax;
pub use self::sums::Stored;

pub(crate) use self::aligned::{AlignedVec, LINE};
pub(crate) use self::bytes::{Bytes, Estimates, GROUP, Group, OFFSET, QUAD, TILE_ROWS};
pub(crate) use self::product::correlate;

/// An instruction set that this CPU has. Only [`Isa::detect`] creates one. Its existence therefore proves that kernels may
/// run with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// The widest instruction set that this CPU has and [`limit_to`] allows. The call is cheap, because the answer is cached.
    #[must_use]
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if avx512::detected() {
                return Self(Level::Avx512);
            }
            if avx2::detected() {
                return Self(Level::Avx2);
            }
        }
        Self(Level::Portable)
    }

    /// Every instruction set that this CPU has, the portable one first.
    #[cfg(test)]
    fn all() -> Vec<Self> {
        let mut all = vec![Self(Level::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(avx2::detected().then_some(Self(Level::Avx2)));
            all.extend(avx512::detected().then_some(Self(Level::Avx512)));
        }
        all
    }

    /// Runs a kernel.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Level::Portable => portable::run(kernel),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an Isa of this level exists only if `avx2::detected` returned true.
            Level::Avx2 => unsafe { avx2::run(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an Isa of this level exists only if `avx512::detected` returned true.
            Level::Avx512 => unsafe { avx512::run(kernel) },
        }
    }

    /// Index of the largest `|p|`, the lowest among equals, or 0 if all are zero. NaN is ignored.
    pub(crate) fn peak(self, p: &[f32]) -> usize {
        self.run(search::Peak { p })
    }

    /// Computes `p -= c g`, then [`Isa::peak`] of the result, in one pass.
    ///
    /// # Panics
    /// If the lengths differ.
    pub(crate) fn subtract_then_peak(self, p: &mut [f32], c: f32, g: &[f32]) -> usize {
        assert_eq!(p.len(), g.len());
        self.run(search::SubtractThenPeak { p, c, g })
    }

    /// The largest element, or minus infinity if there is none. NaN is ignored.
    #[must_use]
    pub fn max(self, x: &[f32]) -> f32 {
        self.run(search::Max { x })
    }

    /// Computes `y += a x`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn axpy(self, y: &mut [f32], a: f32, x: &[f32]) {
        assert_eq!(y.len(), x.len());
        self.run(sums::Axpy { y, a, x });
    }

    /// Computes `out = sum_j coefficients[j] atoms[indices[j]]`. The atoms are `atoms` `(N, out.len())`, followed by the f16
    /// atoms `online`, whose indices start at `N`.
    ///
    /// # Panics
    /// If an index is beyond both parts, or the numbers of coefficients and indices differ.
    pub(crate) fn combine(self, out: &mut [f32], atoms: &[f32], online: &[f16], indices: &[u16], coefficients: &[f32]) {
        assert_eq!(indices.len(), coefficients.len());
        self.run(sums::Combine { out, atoms, online, indices, coefficients });
    }

    /// Computes `out += sum_j weights_j rows_j` for rows `(weights.len(), out.len())`.
    ///
    /// # Panics
    /// If the sizes of the slices do not match.
    pub fn add_weighted(self, weights: &[f32], rows: &[f32], out: &mut [f32]) {
        assert_eq!(weights.len() * out.len(), rows.len());
        self.run(sums::AddWeighted { weights, rows, out });
    }

    /// Computes `out_r += sum_j weights_rj rows_j` for several sums at a time: weights `(R, n)`, rows `(n, width)`, out
    /// `(R, width)`. Each sum has the same bits as [`Isa::add_weighted`].
    ///
    /// # Panics
    /// If the sizes of the slices do not match.
    pub fn add_weighted_together(self, weights: &[f32], rows: &[f32], width: usize, out: &mut [f32]) {
        if width == 0 || rows.is_empty() {
            assert!(weights.is_empty() || width == 0, "weights of rows that are not there");
            return;
        }
        let n = rows.len() / width;
        assert_eq!((rows.len() % width, out.len() % width, out.len() / width * n), (0, 0, weights.len()));
        self.run(sums::AddWeightedTogether { weights, rows, width, out });
    }

    /// Computes `sum_i a_i b_i` in f32.
    ///
    /// # Panics
    /// If the lengths differ.
    #[must_use]
    pub fn dot<T: Stored>(self, a: &[T], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        self.run(sums::Dot { a, b })
    }

    /// Computes `out_r = sum_i a_i b_ri` for b `(out.len(), a.len())`. Each result has the same bits as [`Isa::dot`].
    ///
    /// # Panics
    /// If the sizes of the slices do not match.
    pub fn dots<T: Stored>(self, a: &[T], b: &[f32], out: &mut [f32]) {
        assert_eq!(a.len() * out.len(), b.len());
        if a.is_empty() {
            return out.fill(0.0);
        }
        self.run(sums::Dots { a, b, out });
    }

    /// Converts `from` to f32.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn widen<T: Stored>(self, from: &[T], to: &mut [f32]) {
        assert_eq!(from.len(), to.len());
        self.run(sums::Widen { from, to });
    }

    /// Computes `out[t][q] = <keys[t], queries[q]>` for keys `(n, width)`, queries `(Q, width)` and out `(n, Q)`.
    ///
    /// # Panics
    /// If the sizes of the slices do not match.
    pub fn scores(self, keys: &[f32], queries: &[f32], width: usize, out: &mut [f32]) {
        assert_eq!(out.len(), keys.len() / width * (queries.len() / width));
        self.run(sums::Scores { keys, queries, width, out });
    }

    /// Replaces each `x` by `e^(x - reference)`, see [`exp`], and returns the sum of the new values.
    pub fn exponentials(self, x: &mut [f32], reference: f32) -> f32 {
        self.run(exponential::Exponentials { x, reference })
    }

    /// Computes `sums[c][index][q] += coefficient * weights[t][q]` for every code of token `t` and chunk `c`: codes
    /// `(n, chunks, s)`, weights `(n, Q)`, sums `(chunks, N, Q)`.
    ///
    /// # Panics
    /// If an index is not below `N`, or the sizes of the slices do not match.
    pub(crate) fn scatter(
        self,
        sums: &mut [f32],
        queries: usize,
        chunks: usize,
        indices: &[u16],
        coefficients: &[f32],
        weights: &[f32],
    ) {
        assert_eq!(indices.len(), coefficients.len());
        self.run(sparse::Scatter { sums, queries, chunks, indices, coefficients, weights });
    }

    /// Computes `out[t][q]`, the sum of `coefficient * products[c][index][q]` over the codes of token `t` and all chunks
    /// `c`: codes `(n, chunks, s)`, products `(chunks, N, Q)`, out `(n, Q)`.
    ///
    /// # Panics
    /// If an index is not below `N`, or the sizes of the slices do not match.
    pub(crate) fn score_codes(
        self,
        products: &[f32],
        chunks: usize,
        indices: &[u16],
        coefficients: &[f32],
        out: &mut [f32],
        queries: usize,
    ) {
        assert_eq!(indices.len(), coefficients.len());
        self.run(sparse::ScoreCodes { products, chunks, indices, coefficients, out, queries });
    }

    /// Computes `out[q] += sum_n sums[n][q] atoms[n]` for atoms `(N, width)` and sums `(N, Q)`. Row `q` of out starts at
    /// `q * stride`.
    ///
    /// # Panics
    /// If the sizes of the slices do not match.
    pub(crate) fn gather(
        self,
        out: &mut [f32],
        stride: usize,
        atoms: &[f32],
        width: usize,
        sums: &[f32],
        queries: usize,
    ) {
        assert_eq!(atoms.len() / width * queries, sums.len());
        self.run(sparse::Gather { out, stride, atoms, width, sums, queries });
    }
}
