//! The cache of one layer whose codes are tensors.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use kvcsr_codec::{Footprint, Kind};

use super::attend::{Seen, SequenceCall};
use super::blocks::TensorBlocks;
use super::packed::Fields;
use super::stream::TensorStream;
use super::{JointStores, Stores, TensorPrompt, read_to_host};
use crate::coded::arrival::{Held, check_queries};
use crate::coded::blocks::BlockFormat;
use crate::coded::scheme::Settings;
use crate::coded::{Buffering, LARGEST};
use crate::seam::check_start;
use crate::{AttendCx, Bias, CacheError, Geometry, KeysCoded, LayerCache, Padding, Rotary};

/// What all layers of a scheme have in common.
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) device: Device,
    pub(super) fields: Arc<Fields>,
    /// Tokens of a tile in attention.
    pub(super) tile: usize,
}

/// How one layer's tokens are stored.
#[derive(Clone)]
pub(super) enum LayerStores {
    /// Keys and values separately.
    Apart(OneKind, OneKind),
    /// Keys and values together.
    Together(JointStores),
}

/// How keys or values are stored, and when they are coded.
#[derive(Clone)]
pub(super) struct OneKind {
    pub(super) stores: Stores,
    pub(super) buffering: Buffering,
    pub(super) full_precision: bool,
    pub(super) first_call_is_prompt: bool,
}

/// The cache of one layer: for each sequence, coded keys and values with exact tokens before and after them, all on one
/// device.
///
/// Left padding is not stored. If a tensor operation fails in the middle of a call, for example because memory is full,
/// the content is no longer valid. The cache then refuses all calls until [`LayerCache::clear`].
pub struct TensorCache {
    layer: usize,
    shared: Arc<Shared>,
    stores: LayerStores,
    len: usize,
    sequences: Vec<Sequence>,
    broken: bool,
}

struct Sequence {
    /// Padding tokens in front of the sequence.
    padding: usize,
    keys: TensorStream,
    values: TensorStream,
    /// The centre that was subtracted from all keys before position embedding, `(Hkv, 1, D)`.
    centre: Option<Tensor>,
}

/// New tokens of one sequence, `(Hkv, n, D)` f32.
struct New {
    keys: Tensor,
    values: Tensor,
}

impl TensorCache {
    pub(super) fn new(layer: usize, shared: Arc<Shared>, stores: LayerStores) -> Self {
        Self { layer, shared, stores, len: 0, sequences: Vec::new(), broken: false }
    }

    /// Checks new tokens. Returns, for each sequence, its padding and its new tokens.
    fn read(
        &self,
        k: &Tensor,
        v: &Tensor,
        rotary: &Rotary,
        padding: Padding<'_>,
        prompt: bool,
    ) -> Result<Vec<(usize, Option<New>)>, CacheError> {
        if self.broken {
            return Err(candle_core::Error::Msg(format!(
                "layer {}: the cache failed in the middle of an earlier call; clear it first",
                self.layer
            ))
            .into());
        }
        let padding_held = self.sequences.iter().map(|sequence| sequence.padding);
        let held =
            Held { layer: self.layer, geometry: self.shared.settings.geometry, len: self.len, padding: padding_held };
        let rows = held.check(k, v, rotary, padding)?;
        let tokens = k.dim(2)?;
        let mut all = Vec::with_capacity(rows.len());
        for (row, (padding, n)) in rows.into_iter().enumerate() {
            if n == 0 {
                all.push((padding, None));
                continue;
            }
            let own = |x: &Tensor, kind: Kind| -> Result<Tensor, CacheError> {
                let x =
                    x.narrow(0, row, 1)?.narrow(2, tokens - n, n)?.squeeze(0)?.to_dtype(DType::F32)?.contiguous()?;
                if prompt {
                    self.check_finite(&x, kind, self.len.max(padding))?;
                }
                Ok(x.clamp(-LARGEST, LARGEST)?)
            };
            all.push((padding, Some(New { keys: own(k, Kind::Key)?, values: own(v, Kind::Value)? })));
        }
        Ok(all)
    }

    /// Returns an error if `x` `(Hkv, n, D)` has a number that is not finite.
    fn check_finite(&self, x: &Tensor, kind: Kind, first: usize) -> Result<(), CacheError> {
        // A number that is not finite, times 0, is NaN.
        let sums = read_to_host(&x.affine(0.0, 0.0)?.sum(2)?)?;
        let n = x.dim(1)?;
        match sums.iter().position(|sum| !sum.is_finite()) {
            None => Ok(()),
            Some(at) => Err(CacheError::NotFinite { layer: self.layer, kind, token: first + at % n }),
        }
    }

    fn sequence(&self, padding: usize) -> Result<Sequence, CacheError> {
        let Shared { settings, fields, .. } = self.shared.as_ref();
        let stream = |coded, buffering, full_precision| {
            let graded = TensorBlocks::new(BlockFormat::Q4, fields.clone());
            TensorStream::new(coded, buffering, full_precision, settings.window, graded)
        };
        let (keys, values) = match &self.stores {
            LayerStores::Apart(keys, values) => {
                let of = |kind: &OneKind| -> Result<TensorStream, CacheError> {
                    Ok(stream((kind.stores)()?, kind.buffering, kind.full_precision))
                };
                (of(keys)?, of(values)?)
            }
            LayerStores::Together(stores) => {
                let (keys, values) = (stores.empty)()?;
                let (keys, values) = (stream(keys, Buffering::None, false), stream(values, Buffering::None, false));
                match stores.centres.clone() {
                    Some([of_keys, of_values]) => (keys.centred(of_keys), values.centred(of_values)),
                    None => (keys, values),
                }
            }
        };
        Ok(Sequence { padding, keys, values, centre: None })
    }

    /// Codes and stores new tokens. Returns, for each sequence, what its new tokens see of the keys and of the values.
    fn take(
        &mut self,
        new: Vec<(usize, Option<New>)>,
        tokens: usize,
        prompt: bool,
        rotary: &Rotary,
    ) -> Result<Vec<[Vec<crate::coded::schedule::Until>; 2]>, CacheError> {
        if self.sequences.is_empty() {
            self.sequences = new.iter().map(|(padding, _)| self.sequence(*padding)).collect::<Result<_, _>>()?;
        }
        let settings = self.shared.settings;
        let shown = match &self.stores {
            LayerStores::Apart(keys, values) => {
                [keys, values].map(|kind| prompt || (self.len == 0 && kind.first_call_is_prompt))
            }
            LayerStores::Together(_) => [prompt; 2],
        };
        let mut seen = Vec::with_capacity(new.len());
        for (sequence, (_, new)) in self.sequences.iter_mut().zip(new) {
            let Some(New { mut keys, values }) = new else {
                seen.push([Vec::new(), Vec::new()]);
                continue;
            };
            let held = sequence.keys.schedule.held;
            if settings.centred {
                if held == 0 {
                    // Without a prompt, the mean is the first token's key. So the result does not depend on how the
                    // tokens are divided into calls.
                    let first = if prompt { keys.clone() } else { keys.narrow(1, 0, 1)? };
                    sequence.centre = Some(first.mean_keepdim(1)?);
                }
                if let Some(centre) = &sequence.centre {
                    keys = keys.broadcast_sub(centre)?;
                }
            }
            if settings.keys_coded == KeysCoded::AfterRope {
                keys = rotary.apply(&keys.unsqueeze(0)?, held)?.squeeze(0)?;
            }
            let both = TensorPrompt { keys: &keys, values: &values };
            for (stream, shown) in [&mut sequence.keys, &mut sequence.values].into_iter().zip(shown) {
                if shown {
                    stream.coded_mut().see_prompt(&both)?;
                }
            }
            seen.push([sequence.keys.take(&keys, prompt)?, sequence.values.take(&values, prompt)?]);
        }
        self.len += tokens;
        Ok(seen)
    }

    /// Stores the new tokens and attends. If this fails, the cache is no longer usable.
    fn attend_new(
        &mut self,
        q: &Tensor,
        new: Vec<(usize, Option<New>)>,
        cx: &AttendCx<'_>,
    ) -> Result<Tensor, CacheError> {
        let (_, h, tokens, d) = q.dims4()?;
        let Geometry { kv_heads, .. } = self.shared.settings.geometry;
        let (group, shared) = (h / kv_heads, self.shared.clone());
        let slopes = match cx.pattern.bias {
            Bias::None => None,
            Bias::Alibi(alibi) => {
                Some(Tensor::from_slice(alibi.slopes(), (kv_heads, group, 1, 1), &self.shared.device)?)
            }
        };
        let seen = self.take(new, tokens, false, cx.rotary)?;
        let mut out = Vec::with_capacity(seen.len());
        for (row, (sequence, [of_keys, of_values])) in self.sequences.iter().zip(&seen).enumerate() {
            let n = of_keys.len();
            if n == 0 {
                out.push(Tensor::zeros((1, h, tokens, d), DType::F32, q.device())?);
                continue;
            }
            let start = sequence.keys.schedule.held - n;
            let own = q.narrow(0, row, 1)?.narrow(2, tokens - n, n)?.to_dtype(DType::F32)?;
            let queries = cx.rotary.apply(&own.affine(cx.scale, 0.0)?, start)?.reshape((kv_heads, group, n, d))?;
            let call = SequenceCall {
                keys: Seen { stream: &sequence.keys, until: of_keys },
                values: Seen { stream: &sequence.values, until: of_values },
                rotary: (shared.settings.keys_coded == KeysCoded::BeforeRope).then_some(cx.rotary),
                centre: sequence.centre.as_ref().map(|mean| (mean, cx.rotary)),
                start,
                reach: cx.pattern.reach,
                slopes: slopes.as_ref(),
                tile: shared.tile,
            };
            let attended = call.attend(&queries)?.reshape((1, h, n, d))?;
            out.push(attended.pad_with_zeros(2, tokens - n, 0)?);
        }
        self.trim(cx.pattern.reach)?;
        Ok(Tensor::cat(&out, 0)?.to_dtype(q.dtype())?)
    }

    fn trim(&mut self, reach: crate::Reach) -> Result<(), CacheError> {
        for sequence in &mut self.sequences {
            sequence.keys.trim(reach)?;
            sequence.values.trim(reach)?;
        }
        Ok(())
    }
}

impl LayerCache for TensorCache {
    fn attend(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, cx: &AttendCx<'_>) -> Result<Tensor, CacheError> {
        check_queries(q, k, v, self.shared.settings.geometry.kv_heads, self.len, cx)?;
        // The first call may be a prompt, so its numbers are checked.
        let new = self.read(k, v, cx.rotary, cx.pattern.padding, self.len == 0)?;
        self.broken = true;
        let out = self.attend_new(q, new, cx)?;
        self.broken = false;
        Ok(out)
    }

    fn absorb(&mut self, k: &Tensor, v: &Tensor, rotary: &Rotary) -> Result<(), CacheError> {
        self.absorb_padded(k, v, rotary, Padding::None)
    }

    fn absorb_padded(
        &mut self,
        k: &Tensor,
        v: &Tensor,
        rotary: &Rotary,
        padding: Padding<'_>,
    ) -> Result<(), CacheError> {
        check_start(0, self.len)?;
        let new = self.read(k, v, rotary, padding, true)?;
        self.broken = true;
        self.take(new, k.dim(2)?, true, rotary)?;
        self.trim(rotary.reach())?;
        self.broken = false;
        Ok(())
    }

    fn len(&self) -> usize {
        self.len
    }

    fn footprint(&self) -> Footprint {
        let centre = |sequence: &Sequence| sequence.centre.as_ref().map_or(0, |c| c.elem_count() * size_of::<f32>());
        let centres: usize = self.sequences.iter().map(centre).sum();
        let tables = size_of::<Self>() + self.sequences.capacity() * size_of::<Sequence>() + centres;
        self.sequences.iter().flat_map(|s| [&s.keys, &s.values]).map(TensorStream::footprint).sum::<Footprint>()
            + Footprint { tables, ..Footprint::default() }
    }

    fn clear(&mut self) {
        self.sequences = Vec::new();
        self.len = 0;
        self.broken = false;
    }
}
