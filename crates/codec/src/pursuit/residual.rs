//! Matching pursuit on the residual, a block of rows at a time: a quick look at all atoms, and an exact one at those that
//! it leaves (see [`super::candidates`]).

use super::candidates::{Candidates, norm, rounding};
use super::screen::{Screen, ScreenScratch};
use super::transposed::Transposed;
use super::{BLOCK_ROWS, Codes, index_u16};
use crate::Dictionary;
use crate::kernels::{AlignedVec, Isa};

/// Atoms correlated at a time: with [`BLOCK_ROWS`] rows the tile of correlations is 256 KiB
/// and stays in the L2 cache between the product that writes it and the search that reads it.
const TILE: usize = 1024;

/// The tables of this path, borrowed from the encoder.
#[derive(Clone, Copy)]
pub(super) struct Residual<'a> {
    pub(super) dictionary: &'a Dictionary,
    pub(super) transposed: &'a Transposed,
    pub(super) screen: Option<&'a Screen>,
}

/// Buffers for one block of rows.
pub(super) struct Scratch {
    /// Residuals `(rows, width)`.
    pub(super) residuals: Vec<f32>,
    /// A tile of correlations; empty where a screen looks first.
    pub(super) correlations: AlignedVec,
    screen: Option<ScreenScratch>,
    pub(super) candidates: Vec<Candidates>,
}

impl Residual<'_> {
    /// For at most `rows` rows, and tiles of other atoms of `others` columns.
    pub(super) fn scratch(&self, rows: usize, others: usize) -> Scratch {
        let tile = if self.screen.is_some() { 0 } else { TILE.min(self.transposed.stride()) };
        Scratch {
            residuals: vec![0.0; rows * self.dictionary.width()],
            correlations: AlignedVec::zeros(rows * tile.max(others)),
            screen: self.screen.map(|screen| screen.scratch(rows)),
            candidates: (0..rows).map(|_| Candidates::with_room(self.dictionary.len() + others)).collect(),
        }
    }

    /// Codes one block of rows `(n, width)`, `n <= BLOCK_ROWS`.
    pub(super) fn encode(&self, isa: Isa, rows: &[f32], codes: Codes<'_>, scratch: &mut Scratch) {
        let width = self.dictionary.width();
        scratch.residuals[..rows.len()].copy_from_slice(rows);
        for step in 0..codes.sparsity {
            self.search(isa, rows.len(), scratch);
            for r in 0..rows.len() / width {
                let residual = &mut scratch.residuals[r * width..(r + 1) * width];
                let (coefficient, index) =
                    scratch.candidates[r].best(|atom| isa.dot(self.dictionary.atom(atom), residual));
                let at = r * codes.sparsity + step;
                codes.indices[at] = index_u16(index);
                codes.coefficients[at] = coefficient;
                if step + 1 < codes.sparsity && coefficient != 0.0 {
                    isa.axpy(residual, -coefficient, self.dictionary.atom(index));
                }
            }
        }
    }

    /// Sets the candidates of the first rows of `scratch`, of `elements` elements together, to those of this dictionary.
    pub(super) fn search(&self, isa: Isa, elements: usize, scratch: &mut Scratch) {
        let width = self.dictionary.width();
        let Scratch { residuals, correlations, screen, candidates } = scratch;
        let (residuals, candidates) = (&residuals[..elements], &mut candidates[..elements / width]);
        candidates.iter_mut().for_each(Candidates::clear);
        if let (Some(screen), Some(scratch)) = (self.screen, screen) {
            return screen.search(isa, residuals, scratch, candidates);
        }
        let (stride, atoms) = (self.transposed.stride(), self.dictionary.len());
        for start in (0..stride).step_by(TILE) {
            let tile = start..stride.min(start + TILE);
            let correlations = &mut correlations[..candidates.len() * tile.len()];
            self.transposed.correlate(tile.clone(), residuals, correlations);
            let real = tile.len().min(atoms - start);
            take_correlations(isa, residuals, correlations, tile.len(), start..start + real, candidates);
        }
    }
}

/// Adds to `candidates` what may be the best of the atoms `atoms`, by correlations `(rows, stride)` of any order of sums.
pub(super) fn take_correlations(
    isa: Isa,
    residuals: &[f32],
    correlations: &[f32],
    stride: usize,
    atoms: std::ops::Range<usize>,
    candidates: &mut [Candidates],
) {
    let width = residuals.len() / candidates.len();
    debug_assert!(candidates.len() <= BLOCK_ROWS);
    for ((row, p), candidates) in
        residuals.chunks_exact(width).zip(correlations.chunks_exact(stride)).zip(candidates.iter_mut())
    {
        let Some(norm) = norm(isa, row) else {
            candidates.take_all(row, atoms.clone());
            continue;
        };
        let error = rounding(width, norm);
        let p = &p[..atoms.len()];
        if p[isa.peak(p)].abs() >= candidates.floor(error) {
            atoms.clone().zip(p).for_each(|(atom, p)| candidates.take(atom, p.abs(), error));
        }
    }
}
