//! The uncompressed cache, in f32, f16 or bf16: the baseline of every comparison.

use candle_core::{DType, Tensor};
use kvcsr_codec::{BitsPerChannel, Footprint};

use crate::entry::{Entry, KeysCoded};
use crate::family::{Family, Plan, Read};
use crate::name::SchemeName;
use crate::needs::Needs;
use crate::seam::{check_kv, check_start};
use crate::{AttendCx, CacheError, LayerCache, Padding, Rotary, Scheme, attention};

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

/// Tokens by which the buffers grow.
const PAGE: usize = 256;

/// Exact keys (after position embedding) and values of one layer.
pub struct DenseCache {
    dtype: DType,
    len: usize,
    batch: usize,
    /// Keys and values, `(B·Hkv, capacity, D)`.
    buffers: Option<(Tensor, Tensor)>,
}

impl DenseCache {
    /// An empty cache that stores `dtype` (f32, f16 or bf16).
    pub fn new(dtype: DType) -> Self {
        Self { dtype, len: 0, batch: 1, buffers: None }
    }

    /// Stores keys after position embedding, and values.
    fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(), CacheError> {
        let (b, h, t, d) = k.dims4()?;
        let k = k.to_dtype(self.dtype)?.reshape((b * h, t, d))?.contiguous()?;
        let v = v.to_dtype(self.dtype)?.reshape((b * h, t, d))?.contiguous()?;
        let needed = self.len + t;
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
        held.0.slice_set(&k, 1, self.len)?;
        held.1.slice_set(&v, 1, self.len)?;
        self.buffers = Some(held);
        self.batch = b;
        self.len = needed;
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
        let keys = keys.narrow(1, 0, self.len)?.to_dtype(q.dtype())?;
        let values = values.narrow(1, 0, self.len)?.to_dtype(q.dtype())?;
        attention::causal(&q, &keys, &values, cx.scale, &cx.pattern)
    }

    fn absorb(&mut self, k: &Tensor, v: &Tensor, rotary: &Rotary) -> Result<(), CacheError> {
        check_kv(k, v, None, None)?;
        check_start(0, self.len)?;
        let k = rotary.apply(k, 0)?;
        self.append(&k, v)
    }

    /// Padding is stored like any token; attention hides it.
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

    fn footprint(&self) -> Footprint {
        let bytes = |t: &Tensor| t.elem_count() * t.dtype().size_in_bytes();
        Footprint { dense: self.buffers.as_ref().map_or(0, |(k, v)| bytes(k) + bytes(v)), ..Footprint::default() }
    }

    fn clear(&mut self) {
        self.buffers = None;
        self.len = 0;
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

    fn nominal_bits(&self) -> BitsPerChannel {
        BitsPerChannel(8.0 * self.dtype.size_in_bytes() as f64)
    }

    fn shared_bytes(&self) -> usize {
        0
    }
}
