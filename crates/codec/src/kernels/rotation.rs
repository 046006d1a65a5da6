//! Rotary position embedding (RoPE; Su et al. 2021), half-split channel order: channel `j` turns with `j + D / 2`.

use super::Isa;
use super::simd::{Kernel, Simd};

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

    /// Rotates `rows`, `(n, head_dim)`, the first of them at `position`.
    ///
    /// # Panics
    /// If `head_dim` is odd or zero, the rows are not whole, or the tables end before the last of them.
    pub fn rotate(self, rows: &mut [f32], head_dim: usize, position: usize) {
        assert!(head_dim > 0 && head_dim.is_multiple_of(2) && rows.len().is_multiple_of(head_dim));
        let half = head_dim / 2;
        let at = position * half..position * half + rows.len() / 2;
        let (cos, sin) = (&self.cos[at.clone()], &self.sin[at]);
        Isa::detect().run(Rotate { rows, cos, sin, half });
    }
}

/// Rows `(n, 2 half)`, cosines and sines `(n, half)`.
struct Rotate<'a> {
    rows: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    half: usize,
}

impl Kernel for Rotate<'_> {
    type Output = ();

    /// Per number, so the compiler vectorises it for the instructions at hand.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let tables = self.cos.chunks_exact(self.half).zip(self.sin.chunks_exact(self.half));
        for (row, (cos, sin)) in self.rows.chunks_exact_mut(2 * self.half).zip(tables) {
            let (first, second) = row.split_at_mut(self.half);
            for ((x, y), (&c, &s)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
                let (a, b) = (*x, *y);
                *x = a.mul_add(c, -(b * s));
                *y = b.mul_add(c, a * s);
            }
        }
    }
}
