//! Exact caches whose prompt was restored from codes, every layer's keys and values at one of two levels.

use candle_core::Tensor;
use kvcsr_cache::{CacheError, LayerCache, PrefillSnapshot, Rotary, Scheme};
use kvcsr_codec::{BitsPerChannel, CodecError, Encoder, Kind, SparseCodes};

use super::design;

/// The prompt's keys and values of every slot at the low and the high level, `(1, Hkv, T, D)`.
pub struct Restored {
    /// By slot: layer by layer, keys before values.
    slots: Vec<[Tensor; 2]>,
}

impl Restored {
    /// Codes and restores a prefill; `slot` names the encoder of a layer and kind, and the atoms per chunk of both levels.
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
                let rows = rows(x)?;
                let at = |sparsity| {
                    let restored = through_codes(encoder, &rows, sparsity).map_err(|source| CacheError::Codec {
                        layer,
                        kind,
                        source,
                    })?;
                    Ok::<_, CacheError>(Tensor::from_vec(restored, x.dims(), x.device())?)
                };
                slots.push([at(sparsities[0])?, at(sparsities[1])?]);
            }
        }
        Ok(Self { slots })
    }
}

/// The head vectors of a layer, `(Hkv T, D)`.
pub fn rows(x: &Tensor) -> Result<Vec<f32>, CacheError> {
    Ok(x.flatten_all()?.to_vec1::<f32>()?)
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
