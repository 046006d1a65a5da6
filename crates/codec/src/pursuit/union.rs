//! Matching pursuit over offline and online atoms together (paper section 4).
//!
//! A few rows are coded on the residual path with the shared encoder's tables of the offline part.
//! Many rows at once, a prefill, are worth tables of the union that are dropped afterwards.

use std::sync::Arc;

use super::{BLOCK_ROWS, Codes, Encoder};
use crate::kernels::Isa;
use crate::{Atoms, CodecError};

impl Encoder {
    /// Codes `rows` `(n, width)` over `atoms`, whose offline part is this encoder's dictionary:
    /// as [`Encoder::encode`], which is called where there is no online part. Indices from `N` on
    /// name online atoms. For many rows tables of the union are made for the call, and a row's code depends on its company in
    /// rounding where these are a Gram matrix, as it does between the two paths of an encoder. It does not depend on the thread
    /// count.
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
        let residual = self.residual(atoms);
        self.by_blocks(
            rows,
            Codes { sparsity, indices, coefficients },
            || residual.scratch(BLOCK_ROWS.min(n)),
            |scratch, rows, codes| residual.encode(isa, rows, codes, scratch),
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
