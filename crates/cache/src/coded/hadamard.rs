//! The Walsh-Hadamard transform. It is orthonormal and its own inverse.

use kvcsr_codec::kernels::{Isa, Kernel, Simd};

/// The largest power of two that divides `n`: the size of the transform on vectors of `n` channels.
pub fn size(n: usize) -> usize {
    if n == 0 { 1 } else { 1 << n.trailing_zeros() }
}

/// Transforms each piece of `size` channels of `rows`. `size` is a power of two.
pub fn transform(rows: &mut [f32], size: usize) {
    Isa::detect().run(Transform { rows, size });
}

struct Transform<'a> {
    rows: &'a mut [f32],
    size: usize,
}

impl Kernel for Transform<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let norm = 1.0 / (self.size as f32).sqrt();
        for piece in self.rows.chunks_exact_mut(self.size) {
            let mut half = 1;
            while half < self.size {
                // The compiler unrolls loops whose length it knows.
                match half {
                    1 => step(piece, 1),
                    2 => step(piece, 2),
                    4 => step(piece, 4),
                    8 => step(piece, 8),
                    _ => step(piece, half),
                }
                half *= 2;
            }
            for x in piece {
                *x *= norm;
            }
        }
    }
}

#[inline(always)]
fn step(piece: &mut [f32], half: usize) {
    for pair in piece.chunks_exact_mut(2 * half) {
        let (front, back) = pair.split_at_mut(half);
        for (a, b) in front.iter_mut().zip(back) {
            (*a, *b) = (*a + *b, *a - *b);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twice_is_the_identity_and_lengths_stay() {
        let x: Vec<f32> = (0..24).map(|i| (i as f32 * 1.7).sin()).collect();
        assert_eq!((size(24), size(64), size(7)), (8, 64, 1));
        let mut y = x.clone();
        transform(&mut y, 8);
        let norm = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>();
        assert!((norm(&x) - norm(&y)).abs() < 1e-4);
        assert!((y[0] - x[..8].iter().sum::<f32>() / 8f32.sqrt()).abs() < 1e-6);
        transform(&mut y, 8);
        assert!(x.iter().zip(&y).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}
