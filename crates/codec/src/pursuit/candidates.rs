//! Which atoms may be a row's best: what a quick look leaves for the exact one.
//!
//! A quick look gives every atom an estimate of `|<R, d>|` and a bound on how far the exact value may be from it. An atom
//! stays a candidate while its estimate plus the bound reaches the largest estimate less its own bound. The exact value
//! of each candidate is then one [`Isa::dot`], whose sums have a fixed order: the atom that is picked, and its
//! coefficient, are the same whatever gave the estimates, on any machine.

use std::ops::Range;

use crate::kernels::Isa;

/// The candidates of one row, in the order of their indices.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// The best atom is at least this.
    least: f32,
    /// Atom, and the most that it may be.
    found: Vec<(u32, f32)>,
}

impl Candidates {
    /// With room for the candidates of a dictionary of `atoms`, so that few rows make it grow.
    pub(super) fn with_room(atoms: usize) -> Self {
        Self { least: 0.0, found: Vec::with_capacity(atoms.min(1024)) }
    }

    pub(super) fn clear(&mut self) {
        self.least = 0.0;
        self.found.clear();
    }

    /// Estimates below this are of no candidate, if they are off by `error` at most.
    pub(super) fn floor(&self, error: f32) -> f32 {
        self.least - error
    }

    /// Takes an atom beyond those taken before.
    pub(super) fn take(&mut self, atom: usize, estimate: f32, error: f32) {
        let most = estimate + error;
        if most >= self.least {
            self.found.push((atom as u32, most));
            self.least = self.least.max(estimate - error);
        }
    }

    /// Takes all `atoms`, for a row too small or too large for estimates; none of them is of use to a row of zeros.
    pub(super) fn take_all(&mut self, row: &[f32], atoms: Range<usize>) {
        if row.iter().any(|&x| x != 0.0) {
            atoms.for_each(|atom| self.take(atom, 0.0, f32::MAX));
        }
    }

    /// How many the exact look will see.
    #[cfg(test)]
    pub(super) fn left(&self) -> usize {
        self.found.iter().filter(|&&(_, most)| most >= self.least).count()
    }

    /// The best: its signed inner product and its index, the lowest among equals; `(0, 0)` where all are zero.
    pub(super) fn best(&self, mut exact: impl FnMut(usize) -> f32) -> (f32, usize) {
        let mut best = (0.0f32, 0);
        for &(atom, most) in &self.found {
            if most >= self.least {
                let product = exact(atom as usize);
                if product.abs() > best.0.abs() {
                    best = (product, atom as usize);
                }
            }
        }
        best
    }
}

/// How far sums of `width` products in any order may be from each other, for a row of length `norm` and atoms of length 1:
/// twice the bound on one sum, and room for what rounds the bound itself.
pub(super) fn rounding(width: usize, norm: f32) -> f32 {
    2.5 * (width + 8) as f32 * f32::EPSILON * norm
}

/// The length of a row, if f32 holds its square and that of its elements that count.
pub(super) fn norm(isa: Isa, row: &[f32]) -> Option<f32> {
    let norm = isa.dot(row, row).sqrt();
    (1e-15..1e15).contains(&norm).then_some(norm)
}
