//! Measures how well a dictionary represents a set of vectors.

use serde::{Deserialize, Serialize};

use crate::{CodecError, Encoder, SparseCodes};

/// Rows measured at a time, to limit scratch memory.
const BLOCK: usize = 4096;

/// Error of `x^`, the vectors decoded from their codes. Sums are in f64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReconstructionError {
    /// `sum ||x - x^||² / sum ||x||²`, or 0 if every vector is zero.
    pub relative: f64,
    /// Mean of `||x - x^||²` over the vectors, the paper's MSE (Table 3).
    pub mse: f64,
    /// Number of vectors measured.
    pub vectors: usize,
}

/// Encodes `rows` `(n, width)` with `sparsity` atoms each, rounds the coefficients to f16 as the cache does, decodes the
/// codes and compares.
///
/// # Errors
/// The same as [`Encoder::encode`].
///
/// # Panics
/// If `sparsity` is 0.
pub fn reconstruction_error(
    encoder: &Encoder,
    rows: &[f32],
    sparsity: usize,
) -> Result<ReconstructionError, CodecError> {
    let vectors = encoder.check_rows(rows)?;
    let dictionary = encoder.dictionary();
    let width = dictionary.width();
    let mut restored = vec![0.0; BLOCK.min(vectors) * width];
    let (mut error, mut energy) = (0.0f64, 0.0f64);
    for rows in rows.chunks(BLOCK * width) {
        let mut codes = SparseCodes::new(sparsity);
        codes.encode_append(encoder, rows)?;
        let restored = &mut restored[..rows.len()];
        codes.decode_into(dictionary, 0..codes.rows(), restored)?;
        for (&x, &y) in rows.iter().zip(restored.iter()) {
            error += (f64::from(x) - f64::from(y)).powi(2);
            energy += f64::from(x).powi(2);
        }
    }
    Ok(ReconstructionError {
        relative: if energy > 0.0 { error / energy } else { 0.0 },
        mse: if vectors > 0 { error / vectors as f64 } else { 0.0 },
        vectors,
    })
}
