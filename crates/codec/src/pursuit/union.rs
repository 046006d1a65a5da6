//! Matching pursuit over offline and online atoms together (paper section 4).
//!
//! The offline part is searched through the shared encoder's transposed atoms and never copied.
//! Online atoms are expanded from f16 a tile at a time, so a prompt's bank needs no table of its own.
//! Many rows at once, a prefill, are worth a Gram matrix of the union that is dropped afterwards.

use std::sync::Arc;

use rayon::prelude::*;

use super::transposed::Transposed;
use super::{BLOCK_ROWS, Codes, Encoder, GRAM_BUDGET, PursuitPath, index_u16, residual};
use crate::kernels::AlignedVec;
use crate::kernels::{Isa, correlate};
use crate::{Atoms, CodecError};

/// Online atoms expanded and correlated at a time.
const ONLINE_TILE: usize = 512;

/// Buffers for one block of rows.
struct Scratch {
    /// Residuals `(rows, width)`.
    residuals: Vec<f32>,
    /// A tile of correlations.
    correlations: AlignedVec,
    /// A tile of online atoms, `(ONLINE_TILE, width)`.
    online: Vec<f32>,
    /// One atom.
    atom: Vec<f32>,
}

impl Encoder {
    /// Codes `rows` `(n, width)` over `atoms`, whose offline part is this encoder's dictionary:
    /// as [`Encoder::encode`], which is called where there is no online part. Indices from `N` on
    /// name online atoms. Where a Gram matrix of the union fits [`crate::GRAM_BUDGET`] and costs less
    /// than it saves, one is made for the call. A row's code depends on its company in rounding, as it
    /// does between the two paths of an encoder: products with online atoms are of matrices whose
    /// shape is that of the call. It does not depend on the thread count.
    ///
    /// # Errors
    /// As [`Encoder::encode`].
    ///
    /// # Panics
    /// If the offline part is another dictionary.
    pub fn encode_over(
        &self,
        atoms: Atoms<'_>,
        rows: &[f32],
        sparsity: usize,
        indices: &mut [u16],
        coefficients: &mut [f32],
    ) -> Result<(), CodecError> {
        assert!(std::ptr::eq(atoms.offline(), &raw const **self.dictionary()), "another offline dictionary");
        if atoms.online().is_none() {
            return self.encode(rows, sparsity, indices, coefficients);
        }
        let width = self.dictionary().width();
        let n = CodecError::multiple("rows", width, rows.len())?;
        CodecError::length("indices", n * sparsity, indices.len())?;
        CodecError::length("coefficients", n * sparsity, coefficients.len())?;
        self.check_rows(rows)?;
        if n == 0 || sparsity == 0 {
            return Ok(());
        }
        // Products with all atoms: one per atom for the matrix, one per step without it.
        if n * sparsity > atoms.len() && atoms.len().pow(2) * size_of::<f32>() <= GRAM_BUDGET {
            let union = Encoder::with_path(Arc::new(atoms.joined()?), PursuitPath::Gram);
            union.encode_checked(rows, sparsity, indices, coefficients);
            return Ok(());
        }
        let isa = Isa::detect();
        let search = Search { atoms, transposed: &self.transposed };
        let init = || search.scratch(BLOCK_ROWS.min(n));
        let block = |scratch: &mut Scratch, ((rows, indices), coefficients): super::Block<'_>| {
            search.encode(isa, rows, Codes { sparsity, indices, coefficients }, scratch);
        };
        if n <= BLOCK_ROWS {
            block(&mut init(), ((rows, indices), coefficients));
        } else {
            rows.par_chunks(BLOCK_ROWS * width)
                .zip(indices.par_chunks_mut(BLOCK_ROWS * sparsity))
                .zip(coefficients.par_chunks_mut(BLOCK_ROWS * sparsity))
                .for_each_init(init, block);
        }
        Ok(())
    }
}

/// `||x - x^||² / ||x||²` of each of `rows` `(n, width)` under its codes `(n, sparsity)`; 0 for a
/// zero row.
///
/// # Errors
/// If the slices do not fit each other or a code names an atom that is not there.
pub fn relative_residuals(
    atoms: Atoms<'_>,
    rows: &[f32],
    indices: &[u16],
    coefficients: &[f32],
) -> Result<Vec<f64>, CodecError> {
    let width = atoms.width();
    let n = CodecError::multiple("rows", width, rows.len())?;
    CodecError::length("coefficients", indices.len(), coefficients.len())?;
    if n == 0 {
        return Ok(Vec::new());
    }
    CodecError::multiple("indices", n, indices.len())?;
    let s = indices.len() / n;
    if let Some(at) = indices.iter().position(|&i| usize::from(i) >= atoms.len()) {
        return Err(CodecError::UnknownAtom { row: at / s, index: indices[at].into(), atoms: atoms.len() });
    }
    let isa = Isa::detect();
    let mut restored = vec![0.0; width];
    let of_row = |(r, row): (usize, &[f32])| {
        let code = r * s..(r + 1) * s;
        atoms.combine(isa, &indices[code.clone()], &coefficients[code], &mut restored);
        let (mut left, mut whole) = (0.0, 0.0);
        for (&x, &y) in row.iter().zip(&restored) {
            left += (f64::from(x) - f64::from(y)).powi(2);
            whole += f64::from(x).powi(2);
        }
        if whole > 0.0 { left / whole } else { 0.0 }
    };
    Ok(rows.chunks_exact(width).enumerate().map(of_row).collect())
}

/// Where to look for the next atom.
struct Search<'a> {
    atoms: Atoms<'a>,
    transposed: &'a Transposed,
}

impl Search<'_> {
    fn scratch(&self, rows: usize) -> Scratch {
        let width = self.transposed.width();
        let online = ONLINE_TILE.min(self.atoms.online().map_or(0, |online| online.len()));
        Scratch {
            residuals: vec![0.0; rows * width],
            correlations: AlignedVec::zeros(rows * residual::tile_width(self.transposed).max(online)),
            online: vec![0.0; online * width],
            atom: vec![0.0; width],
        }
    }

    /// Codes one block of rows `(n, width)`, `n <= BLOCK_ROWS`.
    fn encode(&self, isa: Isa, rows: &[f32], codes: Codes<'_>, scratch: &mut Scratch) {
        let width = self.transposed.width();
        scratch.residuals[..rows.len()].copy_from_slice(rows);
        let mut best = [(0.0f32, 0usize); BLOCK_ROWS];
        let best = &mut best[..rows.len() / width];
        for step in 0..codes.sparsity {
            best.fill((0.0, 0));
            let residuals = &scratch.residuals[..rows.len()];
            residual::search(isa, self.transposed, residuals, &mut scratch.correlations, best);
            self.search_online(isa, rows.len(), scratch, best);
            for (r, &(coefficient, index)) in best.iter().enumerate() {
                let at = r * codes.sparsity + step;
                codes.indices[at] = index_u16(index);
                codes.coefficients[at] = coefficient;
                if step + 1 < codes.sparsity && coefficient != 0.0 {
                    self.atoms.copy_atom(index, &mut scratch.atom);
                    isa.axpy(&mut scratch.residuals[r * width..(r + 1) * width], -coefficient, &scratch.atom);
                }
            }
        }
    }

    /// Improves `best` over the online atoms, tile by tile in the order of the indices.
    fn search_online(&self, isa: Isa, elements: usize, scratch: &mut Scratch, best: &mut [(f32, usize)]) {
        let Some(online) = self.atoms.online() else { return };
        let offline = self.atoms.offline().len();
        let width = self.transposed.width();
        for start in (0..online.len()).step_by(ONLINE_TILE) {
            let tile = ONLINE_TILE.min(online.len() - start);
            let atoms = &mut scratch.online[..tile * width];
            online.expand(start, atoms);
            let correlations = &mut scratch.correlations[..best.len() * tile];
            correlate(atoms, &scratch.residuals[..elements], width, correlations);
            for (p, best) in correlations.chunks_exact(tile).zip(best.iter_mut()) {
                let peak = isa.peak(p);
                if p[peak].abs() > best.0.abs() {
                    *best = (p[peak], offline + start + peak);
                }
            }
        }
    }
}
