//! Encodes batches with the current dictionary and measures its errors.

use std::sync::Arc;

use half::f16;
use kvcsr_codec::{Dictionary, Encoder};
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use crate::{
    config::Selection,
    error::Result,
    pool::VectorPool,
    pursuit::{AtomCodes, select_atoms},
    record::Usage,
    weights::Weights,
};

/// Rows whose errors one thread sums at a time. The number is fixed, so that sums do not depend on the number of threads.
const ROWS_PER_TASK: usize = 512;

/// The codes of a batch on the host: `(B, S)` each, row-major.
#[derive(Debug, Default)]
pub(crate) struct HostCodes {
    pub indices: Vec<u16>,
    pub coefficients: Vec<f32>,
}

impl HostCodes {
    /// Copies `(B, S)` codes to the host.
    pub(crate) fn take(&mut self, found: &AtomCodes) -> Result<()> {
        let wanted = found.indices.numel();
        self.coefficients.clear();
        self.coefficients.resize(wanted, 0.0);
        found.coefficients.f_view([-1])?.f_copy_data(&mut self.coefficients, wanted)?;
        let mut wide = vec![0i64; wanted];
        found.indices.f_view([-1])?.f_copy_data(&mut wide, wanted)?;
        self.indices.clear();
        // An index is below N, which is at most 65,536.
        self.indices.extend(wide.into_iter().map(|index| index as u16));
        Ok(())
    }

    /// `(B, S)` int64 on `device`.
    pub(crate) fn index_tensor(&self, sparsity: usize, device: Device) -> Result<Tensor> {
        let wide: Vec<i64> = self.indices.iter().map(|&index| i64::from(index)).collect();
        Ok(Tensor::f_from_slice(&wide)?.f_view([-1, sparsity as i64])?.f_to_device(device)?)
    }

    /// `(B, S)` f32 on `device`.
    pub(crate) fn coefficient_tensor(&self, sparsity: usize, device: Device) -> Result<Tensor> {
        Ok(Tensor::f_from_slice(&self.coefficients)?.f_view([-1, sparsity as i64])?.f_to_device(device)?)
    }
}

/// Matching pursuit over the current atoms, by the codec or by libtorch.
pub(crate) enum Coder {
    Codec(Box<Encoder>),
    Torch { dictionary: Arc<Dictionary>, atoms: Tensor },
}

impl Coder {
    /// `selection` must already be resolved. `Auto` is treated as `Codec`.
    pub(crate) fn new(selection: Selection, atoms: &Tensor) -> Result<Self> {
        let dictionary = Arc::new(dictionary_of(atoms)?);
        Ok(match selection {
            Selection::Torch => Self::Torch { dictionary, atoms: atoms.f_detach()? },
            Selection::Codec | Selection::Auto => Self::Codec(Box::new(Encoder::new(dictionary))),
        })
    }

    pub(crate) fn dictionary(&self) -> &Arc<Dictionary> {
        match self {
            Self::Codec(encoder) => encoder.dictionary(),
            Self::Torch { dictionary, .. } => dictionary,
        }
    }

    /// Encodes `rows (B, D)`, row-major.
    pub(crate) fn encode(&self, rows: &[f32], sparsity: usize, codes: &mut HostCodes) -> Result<()> {
        let width = self.dictionary().width();
        match self {
            Self::Codec(encoder) => {
                let wanted = rows.len() / width * sparsity;
                codes.indices.clear();
                codes.indices.resize(wanted, 0);
                codes.coefficients.clear();
                codes.coefficients.resize(wanted, 0.0);
                Ok(encoder.encode(rows, sparsity, &mut codes.indices, &mut codes.coefficients)?)
            }
            Self::Torch { atoms, .. } => {
                codes.take(&select_atoms(atoms, &to_tensor(rows, width, atoms.device())?, sparsity)?)
            }
        }
    }
}

/// Copies `(N, D)` atoms to the host. ReNorm then removes the remaining rounding error.
pub(crate) fn dictionary_of(atoms: &Tensor) -> Result<Dictionary> {
    let (count, width) = atoms.size2()?;
    let mut values = vec![0f32; (count * width) as usize];
    let length = values.len();
    atoms.f_to_kind(Kind::Float)?.f_contiguous()?.f_copy_data(&mut values, length)?;
    Ok(Dictionary::normalised(width as usize, values)?)
}

/// Copies `rows`, row-major with `width` columns, to `device` as `(B, D)`.
pub(crate) fn to_tensor(rows: &[f32], width: usize, device: Device) -> Result<Tensor> {
    Ok(Tensor::f_from_slice(rows)?.f_view([-1, width as i64])?.f_to_device(device)?)
}

/// Sum of the rows' squared l2 norms, in f64. It is the same for any number of threads.
pub(crate) fn energy(rows: &[f32], width: usize) -> f64 {
    let parts: Vec<f64> = rows
        .par_chunks(ROWS_PER_TASK * width)
        .map(|block| block.iter().map(|&value| f64::from(value) * f64::from(value)).sum())
        .collect();
    parts.iter().sum()
}

/// Squared errors of a set of vectors.
#[derive(Debug)]
pub(crate) struct Evaluation {
    /// The sum of squared errors divided by the sum of squared norms, or 0 if all vectors are zero.
    pub relative: f64,
    /// The mean squared error per vector.
    pub mse: f64,
    /// `relative` with both sums weighted, if there are weights.
    pub weighted: Option<f64>,
    pub usage: Usage,
}

/// Encodes the vectors `numbers` of `pool`, `batch` at a time, and measures `||x - x^||^2`. The coefficients are rounded
/// to f16, as the cache stores them.
pub(crate) fn evaluate(
    pool: &VectorPool<'_>,
    weights: Option<&Weights<'_>>,
    numbers: &[u32],
    coder: &Coder,
    sparsity: usize,
    batch: usize,
) -> Result<Evaluation> {
    let dictionary = coder.dictionary();
    let width = dictionary.width();
    let (mut rows, mut codes, mut of) = (Vec::new(), HostCodes::default(), Vec::new());
    let mut usage = Usage::new(dictionary.len());
    let (mut error, mut total) = (0.0, 0.0);
    let (mut weighted_error, mut weighted_total) = (0.0, 0.0);
    for block in numbers.chunks(batch.max(1)) {
        pool.gather(block, &mut rows)?;
        coder.encode(&rows, sparsity, &mut codes)?;
        usage.count(&codes.indices, &codes.coefficients);
        total += energy(&rows, width);
        let parts: Vec<Vec<f64>> = rows
            .par_chunks(ROWS_PER_TASK * width)
            .zip(codes.indices.par_chunks(ROWS_PER_TASK * sparsity))
            .zip(codes.coefficients.par_chunks(ROWS_PER_TASK * sparsity))
            .map(|((rows, indices), coefficients)| squared_errors(dictionary, rows, indices, coefficients, sparsity))
            .collect();
        error += parts.iter().map(|part| part.iter().sum::<f64>()).sum::<f64>();
        if let Some(weights) = weights {
            weights.gather(block, &mut of)?;
            for ((weight, error), row) in of.iter().zip(parts.iter().flatten()).zip(rows.chunks_exact(width)) {
                weighted_error += f64::from(*weight) * error;
                weighted_total += f64::from(*weight) * row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
            }
        }
    }
    let ratio = |error: f64, total: f64| if total > 0.0 { error / total } else { 0.0 };
    Ok(Evaluation {
        relative: ratio(error, total),
        mse: error / numbers.len().max(1) as f64,
        weighted: weights.map(|_| ratio(weighted_error, weighted_total)),
        usage,
    })
}

/// Squared error of each row.
fn squared_errors(
    dictionary: &Dictionary,
    rows: &[f32],
    indices: &[u16],
    coefficients: &[f32],
    sparsity: usize,
) -> Vec<f64> {
    let width = dictionary.width();
    let mut residual = vec![0f32; width];
    let codes = indices.chunks_exact(sparsity).zip(coefficients.chunks_exact(sparsity));
    rows.chunks_exact(width)
        .zip(codes)
        .map(|(row, (indices, coefficients))| {
            residual.copy_from_slice(row);
            for (&index, &coefficient) in indices.iter().zip(coefficients) {
                let rounded = f16::from_f32(coefficient).to_f32();
                for (left, &atom) in residual.iter_mut().zip(dictionary.atom(usize::from(index))) {
                    *left -= rounded * atom;
                }
            }
            residual.iter().map(|&left| f64::from(left) * f64::from(left)).sum::<f64>()
        })
        .collect()
}
