//! Codebooks that commute with rotary position embedding (CommVQ: Li et al., ICML 2025).
//!
//! A vector of `D` channels is read as `D / 2` complex numbers. Channels `j` and `j + D / 2` are one number, the pair that
//! rotary embedding rotates. A codebook of `n` rows `z` has `n²` codewords: `z_a + i z_b` for every pair of rows.
//! Multiplication by a phase commutes with that sum. The codewords of a rotated codebook are therefore the rotated
//! codewords.

use super::nearest::largest;
use crate::CodecError;
use crate::kernels::Isa;

/// The codebook of one residual step.
#[derive(Clone, Debug)]
pub struct TiedCodebook {
    width: usize,
    /// `z`: the real parts, then the imaginary parts, `(n, D)`.
    rows: Vec<f32>,
    /// `z` and `i z`, transposed: `(D, 2 n)`.
    transposed: Vec<f32>,
    /// `-||z_a + i z_b||² / 2`, `(n, n)`.
    offsets: Vec<f32>,
    isa: Isa,
}

/// Computes `i z`. The real parts become the imaginary parts.
fn turned(row: &[f32]) -> impl Iterator<Item = f32> + '_ {
    let (real, imaginary) = row.split_at(row.len() / 2);
    imaginary.iter().map(|x| -x).chain(real.iter().copied())
}

impl TiedCodebook {
    /// Takes rows `(n, width)`, with the real parts before the imaginary parts.
    ///
    /// # Errors
    /// If `width` is odd or 0, the rows are not complete, there are no rows or more than 256, or an element is not finite.
    pub fn new(width: usize, rows: Vec<f32>) -> Result<Self, CodecError> {
        let n = CodecError::multiple("codebook rows", width, rows.len())?;
        CodecError::multiple("codebook width", 2, width)?;
        if !(1..=256).contains(&n) {
            return Err(CodecError::AtomCount { found: n });
        }
        if let Some(at) = rows.iter().position(|x| !x.is_finite()) {
            return Err(CodecError::AtomNotFinite { atom: at / width });
        }
        let mut transposed = vec![0.0; 2 * rows.len()];
        for (i, row) in rows.chunks_exact(width).enumerate() {
            for (j, (&x, turned)) in row.iter().zip(turned(row)).enumerate() {
                transposed[j * 2 * n + i] = x;
                transposed[j * 2 * n + n + i] = turned;
            }
        }
        let mut offsets = Vec::with_capacity(n * n);
        for a in rows.chunks_exact(width) {
            for b in rows.chunks_exact(width) {
                offsets.push(-0.5 * a.iter().zip(turned(b)).map(|(a, b)| (a + b) * (a + b)).sum::<f32>());
            }
        }
        Ok(Self { width, rows, transposed, offsets, isa: Isa::detect() })
    }

    /// Number of rows, `n`. There are `n²` codewords.
    #[expect(clippy::len_without_is_empty, reason = "there is at least one row")]
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len() / self.width
    }

    /// Channels, `D`.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// The rows, `(n, D)`.
    #[must_use]
    pub fn rows(&self) -> &[f32] {
        &self.rows
    }

    /// Writes `<x, z_a + i z_b> - ||z_a + i z_b||² / 2` for all pairs to `scores`, `(n, n)`. This equals
    /// `(||x||² - ||x - z_a - i z_b||²) / 2`. `parts` is scratch memory.
    ///
    /// # Panics
    /// If `x` has another width.
    pub fn scores(&self, x: &[f32], parts: &mut Vec<f32>, scores: &mut Vec<f32>) {
        assert_eq!(x.len(), self.width);
        let n = self.len();
        parts.clear();
        parts.resize(2 * n, 0.0);
        for (&x, row) in x.iter().zip(self.transposed.chunks_exact(2 * n)) {
            self.isa.axpy(parts, x, row);
        }
        let (first, second) = parts.split_at(n);
        scores.resize(n * n, 0.0);
        for ((scores, offsets), a) in scores.chunks_exact_mut(n).zip(self.offsets.chunks_exact(n)).zip(first) {
            for ((score, offset), b) in scores.iter_mut().zip(offsets).zip(second) {
                *score = a + b + offset;
            }
        }
    }

    /// The rows `(a, b)` of the codeword nearest to `x`, which must be finite.
    ///
    /// # Panics
    /// The same as [`TiedCodebook::scores`].
    #[must_use]
    pub fn find(&self, x: &[f32], parts: &mut Vec<f32>, scores: &mut Vec<f32>) -> (usize, usize) {
        self.scores(x, parts, scores);
        let best = largest(self.isa, scores);
        (best / self.len(), best % self.len())
    }

    /// Adds `factor` times the codeword `(a, b)` to `out`.
    ///
    /// # Panics
    /// If `a` or `b` is not below `n`, or `out` has another width.
    pub fn add(&self, (a, b): (usize, usize), factor: f32, out: &mut [f32]) {
        let d = self.width;
        assert_eq!(out.len(), d);
        let (a, b) = (&self.rows[a * d..(a + 1) * d], &self.rows[b * d..(b + 1) * d]);
        let (real, imaginary) = b.split_at(d / 2);
        let (front, back) = out.split_at_mut(d / 2);
        for ((out, a), b) in front.iter_mut().zip(a).zip(imaginary) {
            *out += factor * (a - b);
        }
        for ((out, a), b) in back.iter_mut().zip(&a[d / 2..]).zip(real) {
            *out += factor * (a + b);
        }
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn bytes(&self) -> usize {
        (self.rows.capacity() + self.transposed.capacity() + self.offsets.capacity()) * size_of::<f32>()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn noise(n: usize, salt: u32) -> Vec<f32> {
        (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(salt) % 2003) as f32 / 1000.0 - 1.0).collect()
    }

    fn rotate(x: &[f32], angles: &[f32]) -> Vec<f32> {
        let (front, back) = x.split_at(x.len() / 2);
        let turn = |j: usize| {
            (
                front[j] * angles[j].cos() - back[j] * angles[j].sin(),
                front[j] * angles[j].sin() + back[j] * angles[j].cos(),
            )
        };
        let turned: Vec<(f32, f32)> = (0..front.len()).map(turn).collect();
        turned.iter().map(|t| t.0).chain(turned.iter().map(|t| t.1)).collect()
    }

    #[test]
    fn codewords_commute_with_rotary_embedding() {
        let (d, n) = (16, 8);
        let book = TiedCodebook::new(d, noise(n * d, 5)).unwrap();
        let angles = noise(d / 2, 77);
        let rotated = book.rows().chunks_exact(d).flat_map(|row| rotate(row, &angles)).collect();
        let rotated = TiedCodebook::new(d, rotated).unwrap();
        for code in [(0, 0), (3, 5), (5, 3), (7, 1)] {
            let (mut plain, mut other) = (vec![0.0; d], vec![0.0; d]);
            book.add(code, 1.5, &mut plain);
            rotated.add(code, 1.5, &mut other);
            let off = rotate(&plain, &angles).iter().zip(&other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < 1e-5, "{code:?}: {off}");
        }
    }

    #[test]
    fn the_nearest_codeword_is_found() {
        let (d, n) = (8, 6);
        let book = TiedCodebook::new(d, noise(n * d, 11)).unwrap();
        let (mut parts, mut scores) = (Vec::new(), Vec::new());
        for salt in 0..40 {
            let x = noise(d, 1000 + salt);
            let distance = |code| {
                let mut rest = x.clone();
                book.add(code, -1.0, &mut rest);
                rest.iter().map(|x| x * x).sum::<f32>()
            };
            let found = distance(book.find(&x, &mut parts, &mut scores));
            let least = (0..n * n).map(|i| distance((i / n, i % n))).fold(f32::INFINITY, f32::min);
            assert!(found <= least + 1e-5, "{found} {least}");
        }
        assert!(TiedCodebook::new(3, noise(6, 1)).is_err());
        assert!(TiedCodebook::new(2, vec![f32::NAN, 0.0]).is_err());
    }
}
