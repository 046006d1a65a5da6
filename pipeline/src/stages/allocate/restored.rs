//! Exact caches whose prompt was restored from codes, with every layer's keys and values at one of two levels; and the errors of
//! codes.
//!
//! Sinks and recent tokens stay exact, as in the windows of csr+: what they cost says nothing about the tokens between them.

use std::ops::Range;

use candle_core::Tensor;
use kvcsr_cache::schemes::csr_plus::AROUND;
use kvcsr_cache::{CacheError, LayerCache, PrefillSnapshot, Rotary, Scheme};
use kvcsr_codec::{BitsPerChannel, CodecError, Encoder, Kind, SparseCodes, reconstruction_error};

use super::design;

/// The prompt's keys and values of every slot at the low and the high level, `(1, Hkv, T, D)`.
pub struct Restored {
    /// By slot: layer by layer, keys before values.
    slots: Vec<[Tensor; 2]>,
}

impl Restored {
    /// Codes and restores a prefill. `slot` gives the encoder of a layer and kind, and the atoms per chunk of both levels.
    ///
    /// # Errors
    /// If a vector cannot be coded.
    pub fn new<'a>(
        snapshot: &PrefillSnapshot,
        slot: impl Fn(usize, Kind) -> (&'a Encoder, [usize; 2]),
    ) -> Result<Self, CacheError> {
        let mut slots = Vec::with_capacity(2 * snapshot.keys.len());
        for (layer, (keys, values)) in snapshot.keys.iter().zip(&snapshot.values).enumerate() {
            for (kind, x) in [(Kind::Key, keys), (Kind::Value, values)] {
                let (encoder, sparsities) = slot(layer, kind);
                let (_, _, tokens, d) = x.dims4()?;
                let (coded, mut rows) = (coded(tokens), x.flatten_all()?.to_vec1::<f32>()?);
                let between = between(&rows, tokens, d);
                let mut at =
                    |sparsity| {
                        let restored = through_codes(encoder, &between, sparsity)
                            .map_err(|source| CacheError::Codec { layer, kind, source })?;
                        let heads = rows.chunks_exact_mut(tokens * d).zip(restored.chunks_exact(coded.len() * d));
                        heads.for_each(|(head, restored)| {
                            head[coded.start * d..coded.end * d].copy_from_slice(restored);
                        });
                        Ok::<_, CacheError>(Tensor::from_slice(&rows, x.dims(), x.device())?)
                    };
                slots.push([at(sparsities[0])?, at(sparsities[1])?]);
            }
        }
        Ok(Self { slots })
    }
}

/// The range of the coded tokens, of `tokens` tokens. A text that is at most twice as long as the windows is coded whole.
fn coded(tokens: usize) -> Range<usize> {
    let around = AROUND.sinks + AROUND.recent;
    if tokens > 2 * around { AROUND.sinks..tokens - AROUND.recent } else { 0..tokens }
}

/// The vectors of coded tokens, `(Hkv n, D)`, from `rows` `(Hkv tokens, D)`.
fn between(rows: &[f32], tokens: usize, d: usize) -> Vec<f32> {
    let coded = coded(tokens);
    rows.chunks_exact(tokens * d).flat_map(|head| &head[coded.start * d..coded.end * d]).copied().collect()
}

/// The squared error of the coded tokens of `x` `(1, Hkv, T, D)` at each of `sparsities`, relative to their squared distance from the
/// mean of their head. Any code restores what all of them have in common, such as a bias of keys, and attention ignores it: so it
/// must not make an error look small.
///
/// # Errors
/// If a vector cannot be coded.
pub fn relative_errors(encoder: &Encoder, x: &Tensor, sparsities: &[usize]) -> anyhow::Result<Vec<f64>> {
    let (_, _, tokens, d) = x.dims4()?;
    let rows = between(&x.flatten_all()?.to_vec1::<f32>()?, tokens, d);
    let spread: f64 = rows.chunks_exact(coded(tokens).len() * d).map(|head| spread(head, d)).sum();
    sparsities
        .iter()
        .map(|&sparsity| {
            let found = reconstruction_error(encoder, &rows, sparsity)?;
            Ok(if spread > 0.0 { found.mse * found.vectors as f64 / spread } else { 0.0 })
        })
        .collect()
}

/// The sum of squared distances of `rows` `(n, d)` from their mean.
fn spread(rows: &[f32], d: usize) -> f64 {
    let n = (rows.len() / d) as f64;
    let channel = |channel: usize| {
        let own = || rows.iter().skip(channel).step_by(d).map(|&x| f64::from(x));
        let mean = own().sum::<f64>() / n;
        own().map(|x| (x - mean).powi(2)).sum::<f64>()
    };
    (0..d).map(channel).sum()
}

fn through_codes(encoder: &Encoder, rows: &[f32], sparsity: usize) -> Result<Vec<f32>, CodecError> {
    let mut codes = SparseCodes::new(sparsity);
    codes.encode_append(encoder, rows)?;
    let mut restored = vec![0.0; rows.len()];
    codes.decode_into(encoder.dictionary(), 0..codes.rows(), &mut restored)?;
    Ok(restored)
}

/// One weighing of the design on the text whose prefill was restored.
pub struct Weighing<'a> {
    pub restored: &'a Restored,
    pub dense: &'a dyn Scheme,
    /// The text's number.
    pub text: usize,
    /// The weighing's number.
    pub weighing: usize,
}

impl Scheme for Weighing<'_> {
    fn name(&self) -> &str {
        "weighing"
    }

    fn empty(&self, layer: usize) -> Result<Box<dyn LayerCache>, CacheError> {
        self.dense.empty(layer)
    }

    fn after_prefill(
        &self,
        layer: usize,
        _k: &Tensor,
        _v: &Tensor,
        rotary: &Rotary,
    ) -> Result<Box<dyn LayerCache>, CacheError> {
        let of = |slot: usize| &self.restored.slots[slot][usize::from(design::is_high(self.text, self.weighing, slot))];
        self.dense.after_prefill(layer, of(2 * layer), of(2 * layer + 1), rotary)
    }

    fn nominal_bits(&self) -> BitsPerChannel {
        self.dense.nominal_bits()
    }

    fn shared_bytes(&self) -> usize {
        self.dense.shared_bytes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use candle_core::Device;
    use kvcsr_codec::Dictionary;

    use super::*;

    /// Two heads of four channels, 100 tokens; every vector is `bias` along the first channel and varies along the others.
    fn keys(bias: f32) -> Tensor {
        let rows: Vec<f32> = (0..2 * 100)
            .flat_map(|i| [bias, (i % 7) as f32 - 3.0, (i % 5) as f32 - 2.0, (i % 3) as f32 - 1.0])
            .collect();
        Tensor::from_vec(rows, (1, 2, 100, 4), &Device::Cpu).unwrap()
    }

    fn encoder() -> Encoder {
        let unit: Vec<f32> = (0..16).map(|at| if at % 5 == 0 { 1.0 } else { 0.0 }).collect();
        Encoder::new(Arc::new(Dictionary::new(4, unit).unwrap()))
    }

    #[test]
    fn errors_do_not_look_small_beside_a_bias() {
        let errors = relative_errors(&encoder(), &keys(1000.0), &[1, 2, 4]).unwrap();
        assert!((errors[0] - 1.0).abs() < 0.01, "one atom holds the bias and nothing else: {errors:?}");
        assert!(errors[1] < 0.5 && errors[1] > 0.05 && errors[2] < 1e-6, "{errors:?}");
        assert_eq!(relative_errors(&encoder(), &keys(1000.0).zeros_like().unwrap(), &[1]).unwrap(), [0.0]);
    }

    #[test]
    fn sinks_and_recent_tokens_stay_exact() {
        let x = keys(5.0);
        let snapshot = PrefillSnapshot {
            keys: vec![x.clone()],
            values: vec![x.clone()],
            queries: Vec::new(),
            last_logits: Tensor::zeros((1, 0), candle_core::DType::F32, &Device::Cpu).unwrap(),
        };
        let encoder = encoder();
        let restored = Restored::new(&snapshot, |_, _| (&encoder, [1, 4])).unwrap();
        let off = |level: usize, from: usize, n: usize| {
            let part = |x: &Tensor| x.narrow(2, from, n).unwrap();
            let difference = (part(&restored.slots[0][level]) - part(&x)).unwrap();
            difference.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
        };
        assert_eq!([off(0, 0, 4), off(0, 68, 32)], [0.0; 2]);
        assert!(off(0, 4, 64) > 0.5 && off(1, 4, 64) < 1e-5, "{} {}", off(0, 4, 64), off(1, 4, 64));
        assert_eq!((coded(72), coded(73)), (0..72, 4..41));
    }
}
