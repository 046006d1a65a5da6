//! Matching pursuit on the residual, for a block of rows at a time. It estimates the products with all atoms quickly, and
//! then computes exact products for the candidates only (see [`super::candidates`]).

use super::candidates::{Candidates, norm, rounding};
use super::screen::{Screen, ScreenScratch};
use super::transposed::Transposed;
use super::{BLOCK_ROWS, Codes, index_u16};
use crate::kernels::{AlignedVec, Isa, correlate};
use crate::{Atoms, OnlineAtoms};

/// Offline atoms correlated at a time. With [`BLOCK_ROWS`] rows, the tile of correlations is 256 KiB. It stays in the L2
/// cache between the product that writes it and the search that reads it.
const TILE: usize = 1024;
/// Online atoms converted from f16 and correlated at a time. The online atoms of a prompt then need no table of their own.
const ONLINE_TILE: usize = 512;

/// The atoms of this path, and the tables of the offline atoms, borrowed from the encoder.
#[derive(Clone, Copy)]
pub(super) struct Residual<'a> {
    pub(super) atoms: Atoms<'a>,
    pub(super) transposed: &'a Transposed,
    pub(super) screen: Option<&'a Screen>,
}

/// Buffers for one block of rows.
pub(super) struct Scratch {
    /// Residuals `(rows, width)`.
    residuals: Vec<f32>,
    /// A tile of correlations. It is empty if a screen gives the estimates and there are no online atoms.
    correlations: AlignedVec,
    screen: Option<ScreenScratch>,
    candidates: Vec<Candidates>,
    /// A tile of online atoms, `(ONLINE_TILE, width)`.
    online: Vec<f32>,
    /// One atom.
    atom: Vec<f32>,
}

impl Scratch {
    /// Starts with the rows themselves as residuals.
    pub(super) fn begin(&mut self, rows: &[f32]) {
        self.residuals[..rows.len()].copy_from_slice(rows);
    }
}

impl Residual<'_> {
    /// Allocates buffers for at most `rows` rows.
    pub(super) fn scratch(&self, rows: usize) -> Scratch {
        let width = self.atoms.width();
        let offline = if self.screen.is_some() { 0 } else { TILE.min(self.transposed.stride()) };
        let online = ONLINE_TILE.min(self.atoms.online().map_or(0, OnlineAtoms::len));
        Scratch {
            residuals: vec![0.0; rows * width],
            correlations: AlignedVec::zeros(rows * offline.max(online)),
            screen: self.screen.map(|screen| screen.scratch(rows)),
            candidates: (0..rows).map(|_| Candidates::with_room(self.atoms.len())).collect(),
            online: vec![0.0; online * width],
            atom: vec![0.0; width],
        }
    }

    /// Encodes one block of rows `(n, width)`, `n <= BLOCK_ROWS`.
    pub(super) fn encode(&self, isa: Isa, rows: &[f32], codes: Codes<'_>, scratch: &mut Scratch) {
        scratch.begin(rows);
        for step in 0..codes.sparsity {
            self.step(isa, rows.len(), scratch, |r, candidates, residual, atom| {
                let (coefficient, index) = candidates.best(|index| isa.dot(self.atoms.atom(index, atom), residual));
                let at = r * codes.sparsity + step;
                codes.indices[at] = index_u16(index);
                codes.coefficients[at] = coefficient;
                if step + 1 < codes.sparsity && coefficient != 0.0 {
                    isa.axpy(residual, -coefficient, self.atoms.atom(index, atom));
                }
            });
        }
    }

    /// One step for the rows of `scratch`, which have `elements` elements in all: finds the candidates of every row and calls
    /// `pick` with the row's number, its candidates, its residual and a buffer for one atom.
    pub(super) fn step(
        &self,
        isa: Isa,
        elements: usize,
        scratch: &mut Scratch,
        mut pick: impl FnMut(usize, &Candidates, &mut [f32], &mut [f32]),
    ) {
        scratch.candidates.iter_mut().for_each(Candidates::clear);
        self.search(isa, elements, scratch);
        self.search_online(isa, elements, scratch);
        let Scratch { residuals, candidates, atom, .. } = scratch;
        for (r, residual) in residuals[..elements].chunks_exact_mut(self.atoms.width()).enumerate() {
            pick(r, &candidates[r], residual, atom);
        }
    }

    /// Adds the candidates among the offline atoms, for the first rows of `scratch`. These rows have `elements` elements in all.
    fn search(&self, isa: Isa, elements: usize, scratch: &mut Scratch) {
        let Scratch { residuals, correlations, screen, candidates, .. } = scratch;
        let (residuals, candidates) = (&residuals[..elements], &mut candidates[..elements / self.atoms.width()]);
        if let (Some(screen), Some(scratch)) = (self.screen, screen) {
            return screen.search(isa, residuals, scratch, candidates);
        }
        let (stride, atoms) = (self.transposed.stride(), self.atoms.offline().len());
        for start in (0..stride).step_by(TILE) {
            let tile = start..stride.min(start + TILE);
            let correlations = &mut correlations[..candidates.len() * tile.len()];
            self.transposed.correlate(tile.clone(), residuals, correlations);
            let real = tile.len().min(atoms - start);
            take_correlations(isa, residuals, correlations, tile.len(), start..start + real, candidates);
        }
    }

    /// Adds the candidates among the online atoms, tile by tile in the order of their indices.
    fn search_online(&self, isa: Isa, elements: usize, scratch: &mut Scratch) {
        let Some(online) = self.atoms.online() else { return };
        let (offline, width) = (self.atoms.offline().len(), self.atoms.width());
        let Scratch { residuals, correlations, candidates, online: expanded, .. } = scratch;
        let (residuals, candidates) = (&residuals[..elements], &mut candidates[..elements / width]);
        for start in (0..online.len()).step_by(ONLINE_TILE) {
            let tile = ONLINE_TILE.min(online.len() - start);
            let atoms = &mut expanded[..tile * width];
            online.expand(start, atoms);
            let correlations = &mut correlations[..candidates.len() * tile];
            correlate(atoms, residuals, width, correlations);
            let named = offline + start..offline + start + tile;
            take_correlations(isa, residuals, correlations, tile, named, candidates);
        }
    }
}

/// Adds the atoms of `atoms` that may be the best to `candidates`. The correlations are `(rows, stride)`, and the order of
/// their sums does not matter.
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
