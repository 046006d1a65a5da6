//! Matching pursuit on the residual, a block of rows at a time.

use super::transposed::Transposed;
use super::{BLOCK_ROWS, Codes, Scratch, index_u16};
use crate::Dictionary;
use crate::kernels::Isa;

/// Atoms correlated at a time: with [`BLOCK_ROWS`] rows the tile of correlations is 256 KiB
/// and stays in the L2 cache between the product that writes it and the search that reads it.
const TILE: usize = 1024;

/// Width of the tile of correlations, `min(TILE, stride)`.
pub(super) fn tile_width(transposed: &Transposed) -> usize {
    TILE.min(transposed.stride())
}

/// The tables of this path, borrowed from the encoder.
pub(super) struct Residual<'a> {
    pub(super) dictionary: &'a Dictionary,
    pub(super) transposed: &'a Transposed,
}

impl Residual<'_> {
    /// Codes one block of rows `(n, width)`, `n <= BLOCK_ROWS`.
    pub(super) fn encode(&self, isa: Isa, rows: &[f32], codes: Codes<'_>, scratch: &mut Scratch) {
        let width = self.dictionary.width();
        let residuals = &mut scratch.residuals[..rows.len()];
        residuals.copy_from_slice(rows);
        // (coefficient, index) of each row's best atom so far.
        let mut best = [(0.0f32, 0usize); BLOCK_ROWS];
        let best = &mut best[..rows.len() / width];

        for step in 0..codes.sparsity {
            best.fill((0.0, 0));
            search(isa, self.transposed, residuals, &mut scratch.correlations, best);
            for (r, &(coefficient, index)) in best.iter().enumerate() {
                let at = r * codes.sparsity + step;
                codes.indices[at] = index_u16(index);
                codes.coefficients[at] = coefficient;
                if step + 1 < codes.sparsity && coefficient != 0.0 {
                    let residual = &mut residuals[r * width..(r + 1) * width];
                    isa.axpy(residual, -coefficient, self.dictionary.atom(index));
                }
            }
        }
    }
}

/// Improves `best` over all atoms, tile by tile in the order of the indices.
pub(super) fn search(
    isa: Isa,
    transposed: &Transposed,
    residuals: &[f32],
    correlations: &mut [f32],
    best: &mut [(f32, usize)],
) {
    let stride = transposed.stride();
    for start in (0..stride).step_by(TILE) {
        let tile = start..stride.min(start + TILE);
        let correlations = &mut correlations[..best.len() * tile.len()];
        transposed.correlate(tile.clone(), residuals, correlations);
        for (p, best) in correlations.chunks_exact(tile.len()).zip(best.iter_mut()) {
            let peak = isa.peak(p);
            // Strictly larger: among equals the earlier tile has the lower index.
            if p[peak].abs() > best.0.abs() {
                *best = (p[peak], start + peak);
            }
        }
    }
}
