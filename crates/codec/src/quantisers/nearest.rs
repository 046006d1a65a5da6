//! Finds the nearest of a few hundred centroids. Vector quantisers and k-means use this search.

use crate::CodecError;
use crate::kernels::Isa;

/// Centroids `(N, width)`, stored for exhaustive search.
///
/// `||x - c||²` is smallest where `<x, c> - ||c||² / 2` is largest. The search for the largest value takes one pass over
/// the centroids per channel. The result for a vector does not depend on the other vectors that are searched.
#[derive(Clone, Debug)]
pub struct Nearest {
    width: usize,
    /// `(N, width)`
    centroids: Vec<f32>,
    /// `(width, N)`
    transposed: Vec<f32>,
    /// `-||c||² / 2`, `(N)`
    offsets: Vec<f32>,
    isa: Isa,
}

impl Nearest {
    /// Takes centroids `(N, width)`.
    ///
    /// # Errors
    /// If `width` is 0, `centroids` is not a whole number of rows, there are no centroids or more than 65536, or an element
    /// is not finite.
    pub fn new(width: usize, centroids: Vec<f32>) -> Result<Self, CodecError> {
        let n = CodecError::multiple("centroids", width, centroids.len())?;
        if !(1..=crate::MAX_ATOMS).contains(&n) {
            return Err(CodecError::AtomCount { found: n });
        }
        if let Some(at) = centroids.iter().position(|x| !x.is_finite()) {
            return Err(CodecError::AtomNotFinite { atom: at / width });
        }
        let mut transposed = vec![0.0; centroids.len()];
        let mut offsets = Vec::with_capacity(n);
        for (i, centroid) in centroids.chunks_exact(width).enumerate() {
            centroid.iter().enumerate().for_each(|(j, &x)| transposed[j * n + i] = x);
            offsets.push(-0.5 * centroid.iter().map(|x| x * x).sum::<f32>());
        }
        Ok(Self { width, centroids, transposed, offsets, isa: Isa::detect() })
    }

    /// All centroids, `(N, width)`.
    #[must_use]
    pub fn centroids(&self) -> &[f32] {
        &self.centroids
    }

    /// Number of centroids, `N`.
    #[expect(clippy::len_without_is_empty, reason = "there is at least one centroid")]
    #[must_use]
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Elements per centroid.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Centroid `i`.
    ///
    /// # Panics
    /// If `i >= self.len()`.
    #[must_use]
    pub fn centroid(&self, i: usize) -> &[f32] {
        &self.centroids[i * self.width..(i + 1) * self.width]
    }

    /// The nearest centroid to `x` `(width,)`, the lowest index among equals. `x` must be finite. `scores` is scratch memory
    /// that later calls reuse.
    ///
    /// # Panics
    /// If `x` has another width.
    #[must_use]
    pub fn find(&self, x: &[f32], scores: &mut Vec<f32>) -> usize {
        assert_eq!(x.len(), self.width);
        let n = self.len();
        scores.clear();
        scores.extend_from_slice(&self.offsets);
        for (&x, row) in x.iter().zip(self.transposed.chunks_exact(n)) {
            self.isa.axpy(scores, x, row);
        }
        largest(self.isa, scores)
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn bytes(&self) -> usize {
        (self.centroids.capacity() + self.transposed.capacity() + self.offsets.capacity()) * size_of::<f32>()
    }
}

/// Position of the largest element, the lowest among equals, or 0 if there is none.
pub(super) fn largest(isa: Isa, x: &[f32]) -> usize {
    let top = isa.max(x);
    x.iter().position(|&x| x == top).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_nearest_is_the_nearest() {
        let noise = |salt: u32| move |i: u32| ((i.wrapping_mul(2_654_435_761) ^ salt) % 2003) as f32 / 1000.0 - 1.0;
        for (width, n) in [(1, 1), (3, 37), (8, 256), (16, 100)] {
            let centroids: Vec<f32> = (0..(width * n) as u32).map(noise(7)).collect();
            let nearest = Nearest::new(width, centroids).unwrap();
            let mut scores = Vec::new();
            for salt in 0..50 {
                let x: Vec<f32> = (0..width as u32).map(noise(salt * 977 + 1)).collect();
                let distance =
                    |i: usize| x.iter().zip(nearest.centroid(i)).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
                let found = nearest.find(&x, &mut scores);
                let least = (0..n).map(distance).fold(f64::INFINITY, f64::min);
                assert!(distance(found) <= least + 1e-6, "{width} {n}");
            }
        }
        assert_eq!(largest(Isa::detect(), &[1.0, 3.0, 3.0]), 1);
        assert!(Nearest::new(2, vec![1.0, f32::NAN]).is_err());
        assert!(Nearest::new(2, vec![]).is_err());
    }
}
