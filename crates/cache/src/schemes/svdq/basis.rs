//! The basis in which keys are quantised.

use half::f16;
use half::slice::HalfFloatSliceExt;
use kvcsr_codec::kernels::{Matrix, MatrixMut, multiply};
use kvcsr_codec::{CodebookSet, CodecError, Kind};

use super::{BASIS, DEVIATIONS, MEAN, Settings, symmetric_eigenvectors};
use crate::coded::Block;

/// Tokens of a block whose products are summed in f32. The sums of the blocks are added in f64.
const CHUNK: usize = 256;

/// A mean key, the singular vectors that have bits, and their bits.
pub(super) struct Basis {
    /// `(Hkv D)`
    pub(super) mean: Vec<f16>,
    /// `(r, Hkv D)`
    pub(super) vectors: Vec<f16>,
    /// The bits of each vector's latent channel, all greater than 0: `(r)`.
    pub(super) bits: Vec<u8>,
}

impl Basis {
    /// The singular vectors of a block's keys, after their mean is subtracted. `None` if they cannot be computed.
    pub(super) fn of(block: &Block<'_>, settings: &Settings) -> Option<Self> {
        let (d, n) = (settings.channels(), block.tokens);
        let mean = mean(block, settings);
        let mut rounded = vec![f16::ZERO; d];
        rounded.convert_from_f32_slice(&mean);
        let mut gram = vec![0f64; d * d];
        let mut product = vec![0f32; d * d];
        for first in (0..n).step_by(CHUNK) {
            let tokens = CHUNK.min(n - first);
            // (Hkv D, tokens)
            let mut columns = vec![0f32; d * tokens];
            for (c, column) in columns.chunks_exact_mut(tokens).enumerate() {
                let (head, channel, mean) = (c / settings.head_dim, c % settings.head_dim, rounded[c].to_f32());
                for (t, x) in column.iter_mut().enumerate() {
                    *x = block.rows[(head * n + first + t) * settings.head_dim + channel] - mean;
                }
            }
            let columns = Matrix::new(&columns, d, tokens);
            multiply(MatrixMut::new(&mut product, d, d), columns, columns.transposed());
            gram.iter_mut().zip(&product).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        let (values, vectors) = symmetric_eigenvectors(&gram, d)?;
        let variances: Vec<f64> = values.iter().map(|x| x.max(0.0) / n as f64).collect();
        Some(Self::new(rounded, &vectors.iter().map(|&x| x as f32).collect::<Vec<_>>(), &variances, settings))
    }

    /// The basis from calibration.
    pub(super) fn calibrated(set: &CodebookSet, layer: usize, settings: &Settings) -> Result<Self, CodecError> {
        let d = settings.channels();
        let table = |name: &str, shape: &[usize]| set.table(layer, Kind::Key, name, shape);
        let mean = table(MEAN, &[d])?.values().to_vec();
        let variances: Vec<f64> = table(DEVIATIONS, &[d])?.values().iter().map(|x| x.to_f64().powi(2)).collect();
        Ok(Self::new(mean, &table(BASIS, &[d, d])?.to_f32(), &variances, settings))
    }

    fn new(mean: Vec<f16>, vectors: &[f32], variances: &[f64], settings: &Settings) -> Self {
        let d = settings.channels();
        let mut bits = settings.schedule.bits(variances);
        let kept = bits.iter().take_while(|&&b| b > 0).count();
        bits.truncate(kept);
        bits.shrink_to_fit();
        let mut rounded = vec![f16::ZERO; kept * d];
        rounded.convert_from_f32_slice(&vectors[..kept * d]);
        Self { mean, vectors: rounded, bits }
    }

    /// Bytes of the codes of one token.
    pub(super) fn row_bytes(&self) -> usize {
        self.bits.iter().map(|&b| usize::from(b)).sum::<usize>().div_ceil(8)
    }

    /// Bytes on the heap.
    pub(super) fn bytes(&self) -> usize {
        (self.mean.capacity() + self.vectors.capacity()) * size_of::<f16>() + self.bits.capacity()
    }
}

fn mean(block: &Block<'_>, settings: &Settings) -> Vec<f32> {
    let d = settings.head_dim;
    let mut mean = Vec::with_capacity(settings.channels());
    for head in block.rows.chunks_exact(block.tokens * d) {
        let mut sums = vec![0f64; d];
        for row in head.chunks_exact(d) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        mean.extend(sums.iter().map(|sum| (sum / block.tokens as f64) as f32));
    }
    mean
}
