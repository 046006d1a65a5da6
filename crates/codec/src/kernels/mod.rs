//! The inner loops: vectorised, with a scalar twin that gives the same bits.
//!
//! Every multiply-add is fused in all versions, and the search for the largest
//! magnitude has one answer whatever the order it is made in (the lowest index among
//! equals), so the versions agree exactly, not just closely. The one exception is the
//! matrix product, which the `gemm` crate dispatches by itself.

mod aligned;
mod attend;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod product;
mod scalar;
#[cfg(test)]
mod tests;

use half::f16;

pub(crate) use self::aligned::{AlignedVec, LINE};
pub(crate) use self::product::{Transposed, correlate};

/// An instruction set that this machine has. Only [`Isa::detect`] and [`Isa::all`] make
/// one, so holding it is the proof that its kernels may be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Isa(Level);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// Calls the kernel of the level at hand.
macro_rules! dispatch {
    ($isa:expr, $kernel:ident($($argument:expr),*)) => {
        match $isa.0 {
            Level::Scalar => scalar::$kernel($($argument),*),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an Isa of this level exists only where AVX2, FMA and F16C were detected.
            Level::Avx2 => unsafe { avx2::$kernel($($argument),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an Isa of this level exists only where AVX-512F was detected.
            Level::Avx512 => unsafe { avx512::$kernel($($argument),*) },
        }
    };
}

impl Isa {
    /// The widest set this machine has. Cheap: the standard library remembers the answer.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                return Self(Level::Avx512);
            }
            if avx2_level() {
                return Self(Level::Avx2);
            }
        }
        Self(Level::Scalar)
    }

    /// Every set this machine has, the scalar one first.
    #[cfg(test)]
    fn all() -> Vec<Self> {
        let mut all = vec![Self(Level::Scalar)];
        #[cfg(target_arch = "x86_64")]
        {
            if avx2_level() {
                all.push(Self(Level::Avx2));
            }
            if is_x86_feature_detected!("avx512f") {
                all.push(Self(Level::Avx512));
            }
        }
        all
    }

    /// Index of the largest `|p|`, the lowest among equals; 0 if all are zero. NaN is never
    /// the largest.
    #[inline]
    pub(crate) fn peak(self, p: &[f32]) -> usize {
        dispatch!(self, peak(p))
    }

    /// `p -= c g`, then [`Isa::peak`] of the result, in one pass.
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub(crate) fn subtract_then_peak(self, p: &mut [f32], c: f32, g: &[f32]) -> usize {
        assert_eq!(p.len(), g.len());
        dispatch!(self, subtract_then_peak(p, c, g))
    }

    /// `y += a x`.
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub(crate) fn axpy(self, y: &mut [f32], a: f32, x: &[f32]) {
        assert_eq!(y.len(), x.len());
        dispatch!(self, axpy(y, a, x));
    }

    /// `out = sum_j coefficients[j] atoms[indices[j]]`, atoms `(N, out.len())`.
    ///
    /// # Panics
    /// If an index is not below `N`, or there are not as many coefficients as indices.
    #[inline]
    pub(crate) fn combine(self, out: &mut [f32], atoms: &[f32], indices: &[u16], coefficients: &[f32]) {
        assert_eq!(indices.len(), coefficients.len());
        dispatch!(self, combine(out, atoms, indices, coefficients));
    }

    /// As [`Isa::combine`] over atoms `(N, out.len())` followed by `online` ones in f16, which the
    /// indices from `N` on name.
    ///
    /// # Panics
    /// If an index is beyond both, or there are not as many coefficients as indices.
    #[inline]
    pub(crate) fn combine_union(
        self,
        out: &mut [f32],
        atoms: &[f32],
        online: &[f16],
        indices: &[u16],
        coefficients: &[f32],
    ) {
        assert_eq!(indices.len(), coefficients.len());
        dispatch!(self, combine_union(out, atoms, online, indices, coefficients));
    }

    /// Rotates `rows`, `(n, 2 half)` in half-split order, by the angles whose cosines and sines
    /// are `(n, half)`.
    ///
    /// # Panics
    /// If the slices do not fit each other.
    #[inline]
    pub(crate) fn rotate(self, rows: &mut [f32], cos: &[f32], sin: &[f32], half: usize) {
        assert!(rows.len() == 2 * cos.len() && cos.len() == sin.len() && cos.len().is_multiple_of(half));
        dispatch!(self, rotate(rows, cos, sin, half));
    }

    /// `out[t][q] = <keys[t], queries[q]>`: keys `(n, width)`, queries `(Q, width)`, out `(n, Q)`.
    ///
    /// # Panics
    /// If the slices do not fit each other.
    #[inline]
    pub(crate) fn scores(self, keys: &[f32], queries: &[f32], width: usize, out: &mut [f32]) {
        assert_eq!(out.len(), keys.len() / width * (queries.len() / width));
        dispatch!(self, scores(keys, queries, width, out));
    }

    /// `x[t][q] = exp(x[t][q] - reference[q])` in x `(n, Q)`, off by at most three units in the last place, 0 taken
    /// as 1.6e-38; for differences up to 88. NaN stays NaN.
    ///
    /// # Panics
    /// If the slices do not fit each other.
    #[inline]
    pub(crate) fn exponentials(self, x: &mut [f32], reference: &[f32]) {
        assert!(x.len().is_multiple_of(reference.len()));
        dispatch!(self, exponentials(x, reference));
    }

    /// `sums[c][index][q] += coefficient * weights[t][q]` for every code of token `t` and chunk
    /// `c`: codes `(n, chunks, s)`, weights `(n, Q)`, sums `(chunks, N, Q)`.
    ///
    /// # Panics
    /// If an index is not below `N` or the slices do not fit each other.
    #[inline]
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
        dispatch!(self, scatter(sums, queries, chunks, indices, coefficients, weights));
    }

    /// `out[t][q] = sum` of coefficient times `products[c][index][q]` over the codes of token `t` and all
    /// chunks `c`: codes `(n, chunks, s)`, products `(chunks, N, Q)`, out `(n, Q)`.
    ///
    /// # Panics
    /// If an index is not below `N` or the slices do not fit each other.
    #[inline]
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
        dispatch!(self, score_codes(products, chunks, indices, coefficients, out, queries));
    }

    /// `out[q] += sum_n sums[n][q] atoms[n]`: atoms `(N, width)`, sums `(N, Q)`, and row `q` of out
    /// starts at `q * stride`.
    ///
    /// # Panics
    /// If the slices do not fit each other.
    #[inline]
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
        dispatch!(self, gather(out, stride, atoms, width, sums, queries));
    }
}

/// The narrower of the two vector levels: every processor with AVX2 also converts halves.
#[cfg(target_arch = "x86_64")]
fn avx2_level() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// The atom named by `index` in atoms `(N, width)`.
#[inline(always)]
fn atom(atoms: &[f32], width: usize, index: u16) -> &[f32] {
    &atoms[usize::from(index) * width..][..width]
}

/// The online atom named by `index` after `offline` atoms.
#[inline(always)]
fn online_atom(online: &[f16], width: usize, index: usize, offline: usize) -> &[f16] {
    &online[(index - offline) * width..][..width]
}
