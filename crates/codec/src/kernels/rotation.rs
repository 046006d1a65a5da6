//! Rotary position embedding (RoPE; Su et al. 2021) in half-split channel order: channels `j` and `j + D / 2` form a pair.

use super::Isa;
use super::simd::{Kernel, LANES, Simd};

/// Rotary tables, `(positions, D / 2)` each.
#[derive(Clone, Copy, Debug)]
pub struct RotaryTables<'a> {
    /// Cosines.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
}

impl RotaryTables<'_> {
    /// Positions that both tables cover.
    #[must_use]
    pub fn positions(self, head_dim: usize) -> usize {
        self.cos.len().min(self.sin.len()) / (head_dim / 2)
    }

    /// Rotates `rows`, `(n, head_dim)`. The first row is at `position`.
    ///
    /// # Panics
    /// If `head_dim` is odd or zero, the rows are not complete, or the tables end before the position of the last row.
    pub fn rotate(self, rows: &mut [f32], head_dim: usize, position: usize) {
        assert!(head_dim > 0 && head_dim.is_multiple_of(2) && rows.len().is_multiple_of(head_dim));
        let half = head_dim / 2;
        let at = position * half..position * half + rows.len() / 2;
        let (cos, sin) = (&self.cos[at.clone()], &self.sin[at]);
        Isa::detect().run(Rotate { rows, cos, sin, half });
    }
}

/// Rows `(n, 2 half)`; cosines and sines `(n, half)`.
struct Rotate<'a> {
    rows: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    half: usize,
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let tables = self.cos.chunks_exact(self.half).zip(self.sin.chunks_exact(self.half));
        let minus = simd.splat(-1.0);
        for (row, (cos, sin)) in self.rows.chunks_exact_mut(2 * self.half).zip(tables) {
            let (first, second) = row.split_at_mut(self.half);
            let ((first, x_tail), (second, y_tail)) = (first.as_chunks_mut::<LANES>(), second.as_chunks_mut::<LANES>());
            let ((cos, c_tail), (sin, s_tail)) = (cos.as_chunks::<LANES>(), sin.as_chunks::<LANES>());
            for (((x, y), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                let (a, b, c, s) = (simd.load(x), simd.load(y), simd.load(c), simd.load(s));
                simd.store(simd.mul_add(a, c, simd.mul(minus, simd.mul(b, s))), x);
                simd.store(simd.mul_add(b, c, simd.mul(a, s)), y);
            }
            for (((x, y), c), s) in x_tail.iter_mut().zip(y_tail).zip(c_tail).zip(s_tail) {
                let (a, b) = (*x, *y);
                *x = a.mul_add(*c, -(b * s));
                *y = b.mul_add(*c, a * s);
            }
        }
    }
}
