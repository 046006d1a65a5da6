//! The uncompressed cache in f32, f16 or bf16. It is the baseline of every comparison.

use candle_core::{DType, Device, Tensor};
use kvcsr_codec::{BitsPerChannel, Footprint};

use crate::entry::{Entry, KeysCoded};
use crate::family::{Family, Plan, Read};
use crate::name::SchemeName;
use crate::needs::Needs;
use crate::seam::{check_kv, check_start};
use crate::{AttendCx, CacheError, LayerCache, OnTensors, Padding, Pattern, Reach, Rotary, Scheme, attention};

/// `dense`, `dense-f16` and `dense-bf16`.
pub const FAMILY: Family = Family { entries: ENTRIES, read };

const ENTRIES: &[Entry] = &[
    Entry {
        pattern: "dense",
        examples: &["dense"],
        summary: "Uncompressed f32 keys and values: the reference of every comparison",
        citation: "",
        keys_coded: KeysCoded::AfterRope,
        parameters: &[],
        prefill_as_decoded: true,
    },
    Entry {
        pattern: "dense-f16",
        examples: &["dense-f16"],
        summary: "Uncompressed f16 keys and values: the 16 bits per channel that compression is measured against",
        citation: "",
        keys_coded: KeysCoded::AfterRope,
        parameters: &[],
        prefill_as_decoded: true,
    },
    Entry {
        pattern: "dense-bf16",
        examples: &["dense-bf16"],
        summary: "Uncompressed bf16 keys and values: what most servers keep by default",
        citation: "",
        keys_coded: KeysCoded::AfterRope,
        parameters: &[],
        prefill_as_decoded: true,
    },
];

fn read(name: &SchemeName<'_>) -> Read {
    let Some(dtype) = NAMES.into_iter().find(|(known, _)| *known == name.head).map(|(_, dtype)| dtype) else {
        return Ok(None);
    };
    name.no_artefacts()?;
    name.arguments.only(&[])?;
    match name.parts.first() {
        None => {
            Ok(Some(Plan::new(Needs::nothing(KeysCoded::AfterRope), move |_| Ok(Box::new(DenseScheme::new(dtype))))))
        }
        Some(part) => Err(format!("`{}` keeps everything exactly: `+{}` adds nothing", name.head, part.name)),
    }
}

const NAMES: [(&str, DType); 3] = [("dense", DType::F32), ("dense-f16", DType::F16), ("dense-bf16", DType::BF16)];

/// The number of tokens by which the buffers grow.
const PAGE: usize = 256;

/// Exact keys (after position embedding) and values of one layer.
pub struct DenseCache {
    dtype: DType,
    len: usize,
    /// Tokens dropped at the front, which no later token sees. They are whole pages.
    dropped: usize,
    batch: usize,
    /// Keys and values of the remaining tokens, `(B·Hkv, capacity, D)`.
    buffers: Option<(Tensor, Tensor)>,
}

impl DenseCache {
    /// An empty cache that stores `dtype` (f32, f16 or bf16).
    pub fn new(dtype: DType) -> Self {
        Self { dtype, len: 0, dropped: 0, batch: 1, buffers: None }
    }

    /// Stores keys after position embedding, and values.
    fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(), CacheError> {
        let (b, h, t, d) = k.dims4()?;
        let k = k.to_dtype(self.dtype)?.reshape((b * h, t, d))?.contiguous()?;
        let v = v.to_dtype(self.dtype)?.reshape((b * h, t, d))?.contiguous()?;
        let (from, needed) = (self.len - self.dropped, self.len - self.dropped + t);
        let held = match self.buffers.take() {
            Some((keys, values)) if keys.dim(1)? >= needed => (keys, values),
            old => {
                let capacity = needed.next_multiple_of(PAGE);
                let grown = |old: Option<Tensor>| -> Result<Tensor, CacheError> {
                    let new = Tensor::zeros((b * h, capacity, d), self.dtype, k.device())?;
                    if let Some(old) = old {
                        new.slice_set(&old.contiguous()?, 1, 0)?;
                    }
                    Ok(new)
                };
                let (keys, values) = old.unzip();
                (grown(keys)?, grown(values)?)
            }
        };
        held.0.slice_set(&k, 1, from)?;
        held.1.slice_set(&v, 1, from)?;
        self.buffers = Some(held);
        self.batch = b;
        self.len += t;
        Ok(())
    }

    /// Drops the pages that no later token sees.
    fn trim(&mut self, reach: Reach) -> Result<(), CacheError> {
        let unseen = reach.first_seen(self.len).min(self.len) - self.dropped;
        let dropping = unseen / PAGE * PAGE;
        let Some((keys, values)) = self.buffers.as_ref().filter(|_| dropping > 0) else { return Ok(()) };
        let left = self.len - self.dropped - dropping;
        let rest = |old: &Tensor| -> Result<Tensor, CacheError> {
            let (heads, _, d) = old.dims3()?;
            let new = Tensor::zeros((heads, left.next_multiple_of(PAGE).max(PAGE), d), self.dtype, old.device())?;
            if left > 0 {
                new.slice_set(&old.narrow(1, dropping, left)?.contiguous()?, 1, 0)?;
            }
            Ok(new)
        };
        self.buffers = Some((rest(keys)?, rest(values)?));
        self.dropped += dropping;
        Ok(())
    }

    fn held_shape(&self) -> Option<(usize, usize)> {
        self.buffers.as_ref().map(|(k, _)| (self.batch, k.dims()[0] / self.batch))
    }
}

impl LayerCache for DenseCache {
    fn attend(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, cx: &AttendCx<'_>) -> Result<Tensor, CacheError> {
        check_kv(k, v, self.held_shape(), None)?;
        check_start(cx.start, self.len)?;
        cx.pattern.check(q.dim(0)?, q.dim(1)?)?;
        if q.dim(0)? != k.dim(0)? || !q.dim(1)?.is_multiple_of(k.dim(1)?) {
            let expected = format!("({}, H, T, D) with H a multiple of {}", k.dim(0)?, k.dim(1)?);
            return Err(CacheError::Shape { tensor: "queries", expected, found: q.dims().to_vec() });
        }
        let q = cx.rotary.apply(q, cx.start)?;
        let k = cx.rotary.apply(k, cx.start)?;
        self.append(&k, v)?;
        let (keys, values) = self.buffers.as_ref().expect("append filled the buffers");
        let held = self.len - self.dropped;
        let (keys, values) = (keys.narrow(1, 0, held)?, values.narrow(1, 0, held)?);
        // Patterns use distances, which do not change when tokens are dropped. But padding is counted from the first
        // token.
        let shifted: Vec<usize>;
        let padding = match cx.pattern.padding {
            Padding::Left(rows) if self.dropped > 0 => {
                shifted = rows.iter().map(|&n| n.saturating_sub(self.dropped)).collect();
                Padding::Left(&shifted)
            }
            padding => padding,
        };
        let out = attention::causal(&q, &keys, &values, cx.scale, &Pattern { padding, ..cx.pattern })?;
        self.trim(cx.pattern.reach)?;
        Ok(out)
    }

    fn absorb(&mut self, k: &Tensor, v: &Tensor, rotary: &Rotary) -> Result<(), CacheError> {
        check_kv(k, v, None, None)?;
        check_start(0, self.len)?;
        let k = rotary.apply(k, 0)?;
        self.append(&k, v)?;
        self.trim(rotary.reach())
    }

    /// Padding is stored like any token. Attention hides it.
    fn absorb_padded(
        &mut self,
        k: &Tensor,
        v: &Tensor,
        rotary: &Rotary,
        _padding: Padding<'_>,
    ) -> Result<(), CacheError> {
        self.absorb(k, v, rotary)
    }

    fn len(&self) -> usize {
        self.len
    }

    fn scored_keys(&self, _rotary: &Rotary) -> Result<Option<Tensor>, CacheError> {
        let Some((keys, _)) = self.buffers.as_ref().filter(|_| self.dropped == 0) else { return Ok(None) };
        let (heads, _, d) = keys.dims3()?;
        let held = keys.narrow(1, 0, self.len)?.contiguous()?.to_dtype(DType::F32)?;
        Ok(Some(held.reshape((self.batch, heads / self.batch, self.len, d))?))
    }

    fn footprint(&self) -> Footprint {
        let bytes = |t: &Tensor| t.elem_count() * t.dtype().size_in_bytes();
        Footprint { dense: self.buffers.as_ref().map_or(0, |(k, v)| bytes(k) + bytes(v)), ..Footprint::default() }
    }

    fn clear(&mut self) {
        self.buffers = None;
        (self.len, self.dropped) = (0, 0);
    }
}

/// `dense` (f32), `dense-f16` and `dense-bf16`.
pub struct DenseScheme {
    dtype: DType,
}

impl DenseScheme {
    /// A scheme that stores `dtype` (f32, f16 or bf16).
    pub fn new(dtype: DType) -> Self {
        Self { dtype }
    }
}

impl Scheme for DenseScheme {
    fn name(&self) -> &str {
        NAMES.into_iter().find(|(_, dtype)| *dtype == self.dtype).map_or("dense", |(name, _)| name)
    }

    fn empty(&self, _layer: usize) -> Result<Box<dyn LayerCache>, CacheError> {
        Ok(Box::new(DenseCache::new(self.dtype)))
    }

    fn on_tensors(&self, _device: &Device) -> Result<OnTensors, CacheError> {
        Ok(OnTensors::AsItIs)
    }

    fn nominal_bits(&self) -> BitsPerChannel {
        BitsPerChannel(8.0 * self.dtype.size_in_bytes() as f64)
    }

    fn shared_bytes(&self) -> usize {
        0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::Device;

    use super::*;
    use crate::conformance::{Inputs, Setting};

    #[test]
    fn within_a_window_outputs_are_those_of_all_keys_under_a_mask_bit_for_bit() {
        let setting = Setting { batch: 2, heads: 4, kv_heads: 2, head_dim: 64 };
        let (x, rotary) = (Inputs::random(setting, 1000).unwrap(), Rotary::new(64, 1e4, 1000, &Device::Cpu).unwrap());
        let all =
            |x: &Tensor, to: usize| x.narrow(2, 0, to).unwrap().contiguous().unwrap().reshape((4, to, 64)).unwrap();
        let keys = rotary.apply(&x.k, 0).unwrap();
        for (window, padding) in [(1, [0, 0]), (100, [0, 0]), (100, [300, 0]), (256, [0, 0]), (257, [3, 500])] {
            let pattern =
                Pattern { reach: Reach::Sliding(window), padding: Padding::Left(&padding), ..Pattern::default() };
            let mut cache = DenseCache::new(DType::F32);
            let cuts: Vec<usize> = [0, 300, 555, 556].into_iter().chain(557..700).chain([900, 901, 1000]).collect();
            for cut in cuts.windows(2) {
                let out = x.feed(&mut cache, &rotary, pattern, cut[0]..cut[1]).unwrap();
                let q = rotary.apply(&x.q.narrow(2, cut[0], cut[1] - cut[0]).unwrap(), cut[0]).unwrap();
                let (k, v) = (all(&keys, cut[1]), all(&x.v, cut[1]));
                let expected = attention::causal(&q, &k, &v, 0.125, &pattern).unwrap();
                let bits = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(bits(&out), bits(&expected), "window {window}, {padding:?}, tokens {cut:?}");
            }
            assert_eq!(cache.len(), 1000);
            let pages = cache.footprint().dense / (2 * 4 * 64 * 4);
            assert!(pages <= window + 2 * PAGE, "room for {pages} tokens with a window of {window}");
        }
    }

    #[test]
    fn of_a_prefill_a_window_is_kept() {
        let setting = Setting { batch: 1, heads: 2, kv_heads: 1, head_dim: 64 };
        let (x, rotary) = (Inputs::random(setting, 900).unwrap(), Rotary::new(64, 1e4, 1000, &Device::Cpu).unwrap());
        let rotary = rotary.with_reach(Reach::Sliding(50));
        let prompt = x.tokens(0..850).unwrap();
        let mut cache = DenseCache::new(DType::F16);
        cache.absorb(&prompt.k, &prompt.v, &rotary).unwrap();
        assert_eq!((cache.len(), cache.footprint().dense), (850, 2 * 256 * 64 * 2));
        let pattern = Pattern { reach: Reach::Sliding(50), ..Pattern::default() };
        let mut whole = DenseCache::new(DType::F16);
        let all = x.feed(&mut whole, &rotary, pattern, 0..900).unwrap().narrow(2, 850, 50).unwrap();
        let rest = x.feed(&mut cache, &rotary, pattern, 850..900).unwrap();
        assert!(crate::conformance::largest_difference(&all, &rest).unwrap() < 1e-6);
    }
}
