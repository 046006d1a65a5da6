//! Matching pursuit over offline and online atoms together (paper section 4).
//!
//! A few rows are encoded on the residual path, with the shared encoder's tables of the offline atoms. For many rows at
//! once, such as a prefill, it is faster to build tables of the union and drop them afterwards.

use std::sync::Arc;

use super::{BLOCK_ROWS, Codes, Encoder};
use crate::kernels::Isa;
use crate::{Atoms, CodecError};

impl Encoder {
    /// Encodes `rows` `(n, width)` over `atoms`, whose offline part must be this encoder's dictionary. Indices from `N` on are
    /// online atoms. Without online atoms this is [`Encoder::encode`].
    ///
    /// For many rows, the call builds tables of the union. If such a table is a Gram matrix, the code of a row may differ by
    /// rounding from the code that a call with few rows gives, as between the two paths of an encoder. The codes do not depend
    /// on the number of threads.
    ///
    /// # Errors
    /// The same as [`Encoder::encode`].
    ///
    /// # Panics
    /// If the offline part of `atoms` is another dictionary.
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
        // Building tables of the union of N atoms costs about as much as N comparisons of a row with all atoms.
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

/// `||x - x^||² / ||x||²` of each of `rows` `(n, width)` for its codes `(n, sparsity)`. It is 0 for a row of zeros.
///
/// # Errors
/// If the sizes of the slices do not match, or a code names an unknown atom.
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
