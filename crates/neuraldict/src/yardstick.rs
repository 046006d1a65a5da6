//! PyTorch baselines for comparison: its attention, and batched matching pursuit as PyTorch users write it.

use std::time::Instant;

use tch::{Cuda, Device, Kind, Tensor, no_grad};

use crate::error::{NeuralDictError, Result};
use crate::pursuit::{orthogonal_codes, select_atoms};

/// Rows that [`TorchPursuit`] encodes at a time.
const BATCH: i64 = 2048;

/// The shapes in the attention of one decoded token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
}

/// The number format of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits.
    F32,
    /// 16 bits, with 8 bits of exponent.
    Bf16,
}

/// `scaled_dot_product_attention` of one query token over uncompressed keys and values. All are random numbers.
#[derive(Debug)]
pub struct Sdpa {
    device: Device,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
}

impl Sdpa {
    /// Creates queries, keys and values of `tokens` tokens on `device`: `cpu`, `cuda:0` or `auto`.
    ///
    /// # Errors
    /// If the device does not exist or libtorch reports an error.
    pub fn new(device: &str, heads: Heads, tokens: usize, precision: Precision) -> Result<Self> {
        let device = crate::resolve_device(device)?;
        let kind = match precision {
            Precision::F32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
        };
        no_grad(|| {
            let make = |count: usize, tokens: usize| {
                Tensor::f_randn([1, count as i64, tokens as i64, heads.head_dim as i64], (Kind::Float, device))
                    .and_then(|x| x.f_to_kind(kind))
            };
            let (query, keys) = (make(heads.heads, 1)?, make(heads.kv_heads, tokens)?);
            Ok(Self { device, query, keys, values: make(heads.kv_heads, tokens)? })
        })
    }

    /// Runs the attention once and returns the seconds until the device has finished.
    ///
    /// # Errors
    /// If libtorch reports an error.
    pub fn seconds(&self) -> Result<f64> {
        no_grad(|| {
            wait(self.device);
            let begun = Instant::now();
            let (q, k, v) = (&self.query, &self.keys, &self.values);
            let out = Tensor::f_scaled_dot_product_attention::<&Tensor>(q, k, v, None, 0.0, false, None, true)?;
            wait(self.device);
            drop(out);
            Ok(begun.elapsed().as_secs_f64())
        })
    }
}

/// Runs [`Sdpa`] in bf16 `rounds` times and returns the seconds of the fastest run.
///
/// # Errors
/// The same as [`Sdpa::new`] and [`Sdpa::seconds`].
pub fn sdpa_seconds(device: &str, heads: Heads, tokens: usize, rounds: usize) -> Result<f64> {
    let sdpa = Sdpa::new(device, heads, tokens, Precision::Bf16)?;
    (0..rounds.max(1)).try_fold(f64::INFINITY, |fastest, _| Ok(fastest.min(sdpa.seconds()?)))
}

/// Matching pursuit on the CPU as batched products: [`select_atoms`] and [`orthogonal_codes`].
#[derive(Debug)]
pub struct TorchPursuit {
    atoms: Tensor,
    rows: Tensor,
    sparsity: usize,
}

impl TorchPursuit {
    /// Takes `atoms` `(N, width)` of unit length and `rows` `(n, width)`.
    ///
    /// # Errors
    /// [`NeuralDictError::Config`] if the slices are not whole rows. Also errors of libtorch.
    pub fn new(atoms: &[f32], rows: &[f32], width: usize, sparsity: usize) -> Result<Self> {
        if width == 0 || !atoms.len().is_multiple_of(width) || !rows.len().is_multiple_of(width) {
            let reason = format!("{} numbers, and {} of atoms, are not rows of {width}", rows.len(), atoms.len());
            return Err(NeuralDictError::Config { field: "rows", reason });
        }
        let matrix = |x: &[f32]| Tensor::f_from_slice(x)?.f_view([-1, width as i64]);
        Ok(Self { atoms: matrix(atoms)?, rows: matrix(rows)?, sparsity })
    }

    /// Encodes the first `rows` rows. Returns the seconds, and the relative squared error of the decoded vectors.
    ///
    /// # Errors
    /// If libtorch reports an error.
    pub fn measure(&self, rows: usize, orthogonal: bool) -> Result<(f64, f64)> {
        no_grad(|| {
            let rows = self.rows.f_narrow(0, 0, rows as i64)?;
            let batches = rows.f_split(BATCH, 0)?;
            let code = if orthogonal { orthogonal_codes } else { select_atoms };
            let begun = Instant::now();
            let coded =
                batches.iter().map(|batch| code(&self.atoms, batch, self.sparsity)).collect::<Result<Vec<_>>>()?;
            let seconds = begun.elapsed().as_secs_f64();
            let mut error = 0.0;
            for (batch, codes) in batches.iter().zip(&coded) {
                let picked = Tensor::f_embedding(&self.atoms, &codes.indices, -1, false, false)?;
                let restored = codes.coefficients.f_unsqueeze(1)?.f_bmm(&picked)?.f_squeeze_dim(1)?;
                error += squares(&batch.f_sub(&restored)?)?;
            }
            Ok((seconds, error / squares(&rows)?))
        })
    }
}

/// The sum of the squares of `x`.
fn squares(x: &Tensor) -> Result<f64> {
    Ok(f64::try_from(x.f_square()?.f_sum(Kind::Double)?)?)
}

fn wait(device: Device) {
    if let Device::Cuda(index) = device {
        Cuda::synchronize(index as i64);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{random_tensor, unit_rows};

    #[test]
    fn orthogonal_pursuit_restores_more_and_all_rows_are_coded() {
        let flat = |x: &Tensor| Vec::<f32>::try_from(x.to_kind(Kind::Float).flatten(0, -1)).unwrap();
        let (atoms, rows) = (flat(&unit_rows(&random_tensor(1, &[40, 8]))), flat(&random_tensor(2, &[2100, 8])));
        let pursuit = TorchPursuit::new(&atoms, &rows, 8, 3).unwrap();
        let (seconds, matching) = pursuit.measure(2100, false).unwrap();
        let (_, orthogonal) = pursuit.measure(2100, true).unwrap();
        assert!(
            seconds > 0.0 && 0.0 < orthogonal && orthogonal < matching && matching < 1.0,
            "{matching} {orthogonal}"
        );
        assert!(TorchPursuit::new(&atoms[1..], &rows, 8, 3).unwrap_err().to_string().contains("rows of 8"));
    }

    #[test]
    fn attention_takes_time_in_either_precision() {
        let heads = Heads { heads: 4, kv_heads: 2, head_dim: 8 };
        for precision in [Precision::F32, Precision::Bf16] {
            assert!(Sdpa::new("cpu", heads, 33, precision).unwrap().seconds().unwrap() > 0.0);
        }
    }
}
