//! Matching pursuit over offline and online atoms together (paper section 4).
//!
//! The offline part is searched through the shared encoder's transposed atoms and never copied.
//! Online atoms are expanded from f16 a tile at a time, so a prompt's bank needs no table of its own.
//! Many rows at once, a prefill, are worth tables of the union that are dropped afterwards.

use std::sync::Arc;

use super::residual::{Residual, take_correlations};
use super::{BLOCK_ROWS, Codes, Encoder, index_u16, residual};
use crate::kernels::{Isa, correlate};
use crate::{Atoms, CodecError};

/// Online atoms expanded and correlated at a time.
const ONLINE_TILE: usize = 512;

/// Buffers for one block of rows.
struct Scratch {
    offline: residual::Scratch,
    /// A tile of online atoms, `(ONLINE_TILE, width)`.
    online: Vec<f32>,
    /// One atom.
    atom: Vec<f32>,
}

impl Encoder {
    /// Codes `rows` `(n, width)` over `atoms`, whose offline part is this encoder's dictionary:
    /// as [`Encoder::encode`], which is called where there is no online part. Indices from `N` on
    /// name online atoms. For many rows tables of the union are made for the call. A row's code depends on its company in rounding, as it
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
        // Tables of the union cost about as much as looking at all its atoms once per atom.
        if n * sparsity > atoms.len() {
            Encoder::new(Arc::new(atoms.joined()?)).encode_checked(rows, sparsity, indices, coefficients);
            return Ok(());
        }
        let isa = Isa::detect();
        let search = Search { atoms, offline: self.residual() };
        self.by_blocks(
            rows,
            Codes { sparsity, indices, coefficients },
            || search.scratch(BLOCK_ROWS.min(n)),
            |scratch, rows, codes| search.encode(isa, rows, codes, scratch),
        );
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
    offline: Residual<'a>,
}

impl Search<'_> {
    fn scratch(&self, rows: usize) -> Scratch {
        let width = self.atoms.width();
        let online = ONLINE_TILE.min(self.atoms.online().map_or(0, |online| online.len()));
        Scratch {
            offline: self.offline.scratch(rows, online),
            online: vec![0.0; online * width],
            atom: vec![0.0; width],
        }
    }

    /// Codes one block of rows `(n, width)`, `n <= BLOCK_ROWS`.
    fn encode(&self, isa: Isa, rows: &[f32], codes: Codes<'_>, scratch: &mut Scratch) {
        let width = self.atoms.width();
        scratch.offline.residuals[..rows.len()].copy_from_slice(rows);
        for step in 0..codes.sparsity {
            self.offline.search(isa, rows.len(), &mut scratch.offline);
            self.search_online(isa, rows.len(), scratch);
            let Scratch { offline, atom, .. } = scratch;
            for r in 0..rows.len() / width {
                let residual = &mut offline.residuals[r * width..(r + 1) * width];
                let (coefficient, index) = offline.candidates[r].best(|index| {
                    self.atoms.copy_atom(index, atom);
                    isa.dot(atom, residual)
                });
                let at = r * codes.sparsity + step;
                codes.indices[at] = index_u16(index);
                codes.coefficients[at] = coefficient;
                if step + 1 < codes.sparsity && coefficient != 0.0 {
                    self.atoms.copy_atom(index, atom);
                    isa.axpy(residual, -coefficient, atom);
                }
            }
        }
    }

    /// Adds the online atoms' candidates, tile by tile in the order of the indices.
    fn search_online(&self, isa: Isa, elements: usize, scratch: &mut Scratch) {
        let Some(online) = self.atoms.online() else { return };
        let offline = self.atoms.offline().len();
        let width = self.atoms.width();
        let rows = elements / width;
        let Scratch {
            offline: residual::Scratch { residuals, correlations, candidates, .. }, online: expanded, ..
        } = scratch;
        for start in (0..online.len()).step_by(ONLINE_TILE) {
            let tile = ONLINE_TILE.min(online.len() - start);
            let atoms = &mut expanded[..tile * width];
            online.expand(start, atoms);
            let correlations = &mut correlations[..rows * tile];
            correlate(atoms, &residuals[..elements], width, correlations);
            let named = offline + start..offline + start + tile;
            take_correlations(isa, &residuals[..elements], correlations, tile, named, &mut candidates[..rows]);
        }
    }
}
