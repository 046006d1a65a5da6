//! Sparse codes in the paper's layout. Callers can read the indices and coefficients in place.

use std::ops::Range;

use half::f16;

use super::PAGE_ROWS;
use super::decode::decode;
use super::rows::Columns;
use crate::{CodecError, Dictionary, Encoder, Footprint};

/// Rows that [`SparseCodes::encode_append`] encodes at a time, to limit its scratch memory.
const ENCODE_ROWS: usize = 4096;

/// Codes of fixed sparsity `s`: each row has `s` atom indices (u16) and `s` signed coefficients (f16). This is the storage
/// of paper section 4.
///
/// A row encodes the vector `sum_j coefficient[j] * atom[index[j]]`. An index may repeat.
#[derive(Clone, Debug)]
pub struct SparseCodes {
    sparsity: usize,
    columns: Columns<f16>,
}

impl SparseCodes {
    /// Empty codes without allocations.
    ///
    /// # Panics
    /// If `sparsity` is 0.
    #[must_use]
    pub fn new(sparsity: usize) -> Self {
        assert!(sparsity > 0, "a code keeps at least one atom per row");
        Self { sparsity, columns: Columns::new() }
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.columns.indices.len() / self.sparsity
    }

    /// Atoms per row, the paper's `s`.
    #[must_use]
    pub fn sparsity(&self) -> usize {
        self.sparsity
    }

    /// Appends rows `(n, sparsity)`. Coefficients are rounded to the nearest f16. They saturate at ±65504, because an
    /// infinite coefficient would decode to NaN.
    ///
    /// # Panics
    /// If the slices have different lengths or are not a whole number of rows.
    pub fn append(&mut self, indices: &[u16], coefficients: &[f32]) {
        assert_eq!(indices.len(), coefficients.len(), "one coefficient per index");
        assert_eq!(indices.len() % self.sparsity, 0, "whole rows");
        self.reserve(indices.len() / self.sparsity);
        self.columns.push(indices, coefficients);
    }

    /// Encodes `rows` `(n, width)` and appends the codes.
    ///
    /// # Errors
    /// The same as [`Encoder::encode`]. After an error the codes are unchanged.
    pub fn encode_append(&mut self, encoder: &Encoder, rows: &[f32]) -> Result<(), CodecError> {
        let n = encoder.check_rows(rows)?;
        self.reserve(n);
        let scratch = n.min(ENCODE_ROWS) * self.sparsity;
        let (mut indices, mut coefficients) = (vec![0; scratch], vec![0.0; scratch]);
        for rows in rows.chunks(ENCODE_ROWS * encoder.dictionary().width()) {
            let used = rows.len() / encoder.dictionary().width() * self.sparsity;
            let (indices, coefficients) = (&mut indices[..used], &mut coefficients[..used]);
            encoder.encode_checked(rows, self.sparsity, indices, coefficients);
            self.append(indices, coefficients);
        }
        Ok(())
    }

    /// Atom indices, `(rows, sparsity)`.
    #[must_use]
    pub fn indices(&self) -> &[u16] {
        &self.columns.indices
    }

    /// Coefficients, `(rows, sparsity)`.
    #[must_use]
    pub fn coefficients(&self) -> &[f16] {
        &self.columns.coefficients
    }

    /// Indices and coefficients of row `i`, `(sparsity,)` each.
    ///
    /// # Panics
    /// If `i >= self.rows()`.
    #[must_use]
    pub fn row(&self, i: usize) -> (&[u16], &[f16]) {
        let at = i * self.sparsity..(i + 1) * self.sparsity;
        (&self.columns.indices[at.clone()], &self.columns.coefficients[at])
    }

    /// Decodes `rows`: writes `X^ = r D` to `out`, `(rows.len(), width)`. This is the paper's de-sparse (section 4). Large
    /// calls run in parallel over blocks of rows.
    ///
    /// # Errors
    /// If `rows` is out of range, `out` has another size, or a code names an atom that `dictionary` does not have. In the
    /// last case `out` may be partly written.
    pub fn decode_into(&self, dictionary: &Dictionary, rows: Range<usize>, out: &mut [f32]) -> Result<(), CodecError> {
        decode(dictionary.into(), [self.rows(), self.sparsity], rows, out, |rows, indices, coefficients| {
            self.columns.read(rows.start * self.sparsity, indices, coefficients);
        })
    }

    /// Removes all rows and frees the memory.
    pub fn clear(&mut self) {
        *self = Self::new(self.sparsity);
    }

    /// Bytes allocated for indices and coefficients.
    #[must_use]
    pub fn footprint(&self) -> Footprint {
        self.columns.footprint()
    }

    fn reserve(&mut self, rows: usize) {
        self.columns.reserve(rows * self.sparsity, rows.max(PAGE_ROWS) * self.sparsity);
    }
}
