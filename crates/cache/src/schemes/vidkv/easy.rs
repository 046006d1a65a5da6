//! The channels of small range: an orthonormal transform across the channels, then one bit per channel.

use half::f16;
use half::slice::HalfFloatSliceExt;
use kvcsr_codec::kernels::{Matrix, MatrixMut, multiply, saturating_f16};
use kvcsr_codec::{EIGHT, pack_small, unpack_small};

/// The discrete Fourier transform of real vectors of `size` channels as an orthonormal matrix, `(size, size)`. The rows
/// are: one for the mean, then the cosine and the sine of each frequency. If `size` is even, there is also the
/// alternating row.
pub(super) fn fourier(size: usize) -> Vec<f32> {
    let mut rows = Vec::with_capacity(size * size);
    for row in 0..size {
        let frequency = row.div_ceil(2);
        let alone = row == 0 || (size.is_multiple_of(2) && row + 1 == size);
        let norm = (if alone { 1.0 } else { 2.0 } / size as f64).sqrt();
        for channel in 0..size {
            let angle = std::f64::consts::TAU * (frequency * channel) as f64 / size as f64;
            let wave = if row == 0 || row % 2 == 1 { angle.cos() } else { angle.sin() };
            rows.push((norm * wave) as f32);
        }
    }
    rows
}

/// A group of tokens of one head: the signs, and one scale per transformed channel.
#[derive(Debug)]
pub(super) struct Signs {
    /// `(tokens, size)`, one bit each.
    bits: Vec<u8>,
    /// The mean magnitude of each transformed channel.
    scales: Vec<f16>,
}

impl Signs {
    /// Codes `rows` `(tokens, size)`. `size` is a multiple of eight.
    pub(super) fn new(matrix: &[f32], rows: &[f32], size: usize) -> Self {
        let tokens = rows.len() / size;
        let mut turned = vec![0f32; rows.len()];
        let matrix = Matrix::new(matrix, size, size).transposed();
        multiply(MatrixMut::new(&mut turned, tokens, size), Matrix::new(rows, tokens, size), matrix);
        let mut sums = vec![0f32; size];
        for row in turned.chunks_exact(size) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x.abs());
        }
        let scales = sums.iter().map(|sum| saturating_f16(sum / tokens as f32)).collect();
        let codes: Vec<u8> = turned.iter().map(|&x| u8::from(x >= 0.0)).collect();
        let mut bits = Vec::with_capacity(codes.len() / EIGHT);
        pack_small(&codes, 1, &mut bits);
        Self { bits, scales }
    }

    /// Restores `tokens` into `out` `(n, size)`.
    pub(super) fn restore(&self, matrix: &[f32], tokens: std::ops::Range<usize>, size: usize, out: &mut [f32]) {
        let mut scales = vec![0f32; size];
        self.scales.convert_to_f32_slice(&mut scales);
        let mut turned = vec![0f32; tokens.len() * size];
        let bytes = self.bits[tokens.start * size / EIGHT..].chunks_exact(size / EIGHT);
        for (row, bytes) in turned.chunks_exact_mut(size).zip(bytes) {
            unpack_small(bytes, 1, |i, code| row[i] = if code == 1 { scales[i] } else { -scales[i] });
        }
        let n = tokens.len();
        let (turned, matrix) = (Matrix::new(&turned, n, size), Matrix::new(matrix, size, size));
        multiply(MatrixMut::new(out, n, size), turned, matrix);
    }

    pub(super) fn bytes(&self) -> (usize, usize) {
        (self.bits.capacity(), self.scales.capacity() * size_of::<f16>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coded::testing::{relative_error, variates};

    #[test]
    fn the_transform_is_orthonormal_and_packs_a_fourier_transform() {
        for size in [8, 9, 40] {
            let matrix = fourier(size);
            for i in 0..size {
                for j in 0..=i {
                    let dot: f32 = (0..size).map(|c| matrix[i * size + c] * matrix[j * size + c]).sum();
                    assert!((dot - f32::from(i == j)).abs() < 1e-5, "{size}: {i} {j} {dot}");
                }
            }
        }
        let wave: Vec<f32> = (0..8).map(|c| (std::f32::consts::TAU * 2.0 * c as f32 / 8.0).sin()).collect();
        let mut turned = [0.0; 8];
        let fourier = fourier(8);
        multiply(MatrixMut::new(&mut turned, 1, 8), Matrix::new(&wave, 1, 8), Matrix::new(&fourier, 8, 8).transposed());
        assert!((turned[4] - 2.0).abs() < 1e-5, "{turned:?}");
        assert!(turned.iter().enumerate().all(|(i, x)| i == 4 || x.abs() < 1e-5), "{turned:?}");
    }

    #[test]
    fn errors_on_normal_variates_are_those_of_signs_and_a_mean_magnitude() {
        let (groups, size) = (64, 32);
        let matrix = fourier(size);
        let rows = variates(6, groups * 32 * size);
        let mut out = vec![0.0; rows.len()];
        for (rows, out) in rows.chunks_exact(32 * size).zip(out.chunks_exact_mut(32 * size)) {
            let signs = Signs::new(&matrix, rows, size);
            signs.restore(&matrix, 0..32, size, out);
            let mut part = vec![0.0; 5 * size];
            signs.restore(&matrix, 7..12, size, &mut part);
            assert!(part.iter().zip(&out[7 * size..]).all(|(a, b)| (a - b).abs() < 1e-5));
        }
        let error = relative_error(&rows, &out);
        assert!((error / 0.352 - 1.0).abs() < 0.02, "{error}");
    }
}
