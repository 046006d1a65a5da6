//! The candidates for a row's best atom: a quick estimate selects them, and an exact product decides.
//!
//! A quick method gives every atom an estimate of `|<R, d>|` and a bound on the error of that estimate. Some atom has an
//! exact value of at least the largest (estimate - bound). An atom stays a candidate while its estimate plus its bound
//! reaches that value. The exact value of each candidate is then one [`Isa::dot`], whose sums have a fixed order. The
//! picked atom and its coefficient therefore do not depend on the method that gave the estimates, or on the CPU.

use std::ops::Range;

use crate::kernels::Isa;

/// The candidates of one row, sorted by index.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// The exact value of the best atom is at least this.
    least: f32,
    /// An atom, and the upper bound of its exact value.
    found: Vec<(u32, f32)>,
}

impl Candidates {
    /// Allocates for the candidates of a dictionary of `atoms` atoms, so that only few rows need more memory.
    pub(super) fn with_room(atoms: usize) -> Self {
        Self { least: 0.0, found: Vec::with_capacity(atoms.min(1024)) }
    }

    pub(super) fn clear(&mut self) {
        self.least = 0.0;
        self.found.clear();
    }

    /// An atom whose estimate is below this value is not a candidate, if the error of the estimate is at most `error`.
    pub(super) fn floor(&self, error: f32) -> f32 {
        self.least - error
    }

    /// Adds an atom if it is a candidate. Its index must be larger than those of the previous calls.
    pub(super) fn take(&mut self, atom: usize, estimate: f32, error: f32) {
        let most = estimate + error;
        if most >= self.least {
            self.found.push((atom as u32, most));
            self.least = self.least.max(estimate - error);
        }
    }

    /// Adds all `atoms`, for a row whose numbers are too small or too large for estimates. A row of zeros gets none.
    pub(super) fn take_all(&mut self, row: &[f32], atoms: Range<usize>) {
        if row.iter().any(|&x| x != 0.0) {
            atoms.for_each(|atom| self.take(atom, 0.0, f32::MAX));
        }
    }

    /// Number of candidates that need an exact product.
    #[cfg(test)]
    pub(super) fn left(&self) -> usize {
        self.found.iter().filter(|&&(_, most)| most >= self.least).count()
    }

    /// The best atom: its signed inner product and its index, the lowest among equals, or `(0, 0)` if all products are zero.
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

/// An upper bound on the difference of two sums of the same `width` products in different orders, for a row of length
/// `norm` and atoms of length 1. It is twice the bound on the error of one sum, plus a margin for the rounding of the bound.
pub(super) fn rounding(width: usize, norm: f32) -> f32 {
    2.5 * (width + 8) as f32 * f32::EPSILON * norm
}

/// The l2 norm of a row, if f32 can hold its square and the squares of the elements that matter.
pub(super) fn norm(isa: Isa, row: &[f32]) -> Option<f32> {
    let norm = isa.dot(row, row).sqrt();
    (1e-15..1e15).contains(&norm).then_some(norm)
}
