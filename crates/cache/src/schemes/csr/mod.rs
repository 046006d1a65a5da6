//! CSR: sparse codes over offline dictionaries (Zhang et al., AAAI 2025).
//!
//! Each head vector is cut into `chunks` (the paper's `s_n`) equal pieces, and each piece is coded
//! by matching pursuit with `sparsity` atoms of its layer group's dictionary. Keys are coded before
//! position embedding; it is applied to the restored keys (section "Inference").
//! CSR-`s` is keys `(s, 1)` and values `(s / 2, 2)`, so both take the same number of bits.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use kvcsr_codec::{BitsPerChannel, DictionarySet, Encoder, Footprint, Kind, SparseCodes, nominal_bits};

use crate::seam::{check_kv, check_start};
use crate::{AttendCx, CacheError, Geometry, LayerCache, Rotary, Scheme, attention};

/// How one kind of vector of one layer is coded.
#[derive(Clone)]
struct Coder {
    kind: Kind,
    encoder: Arc<Encoder>,
    sparsity: usize,
    chunks: usize,
}

/// The sparse codes of one kind of vector of one layer: one stream per sequence and head, each in
/// token order.
struct Streams {
    coder: Coder,
    codes: Vec<SparseCodes>,
}

/// Codes that were made but not yet kept, in `(B, Hkv, T, chunks, sparsity)` order.
struct Fresh {
    indices: Vec<u16>,
    coefficients: Vec<f32>,
}

impl Streams {
    fn new(coder: Coder) -> Self {
        Self { coder, codes: Vec::new() }
    }

    /// Codes `(B, Hkv, T, D)` vectors with one call, without keeping anything.
    fn encode(&self, layer: usize, x: &Tensor) -> Result<Fresh, CacheError> {
        let rows = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let n = rows.len() / self.coder.encoder.dictionary().width() * self.coder.sparsity;
        let mut fresh = Fresh { indices: vec![0; n], coefficients: vec![0.0; n] };
        self.coder
            .encoder
            .encode(&rows, self.coder.sparsity, &mut fresh.indices, &mut fresh.coefficients)
            .map_err(|source| CacheError::Codec { layer, kind: self.coder.kind, source })?;
        Ok(fresh)
    }

    fn keep(&mut self, fresh: &Fresh, streams: usize) {
        self.codes.resize_with(streams, || SparseCodes::new(self.coder.sparsity));
        let each = fresh.indices.len() / streams.max(1);
        for (stream, codes) in self.codes.iter_mut().enumerate() {
            let part = stream * each..(stream + 1) * each;
            codes.append(&fresh.indices[part.clone()], &fresh.coefficients[part]);
        }
    }

    /// The first `tokens` tokens restored ("de-sparse"): `(B, Hkv, tokens, D)`.
    fn restore(&self, layer: usize, batch: usize, tokens: usize, like: &Tensor) -> Result<Tensor, CacheError> {
        let dictionary = self.coder.encoder.dictionary();
        let (rows, width) = (tokens * self.coder.chunks, dictionary.width());
        let mut restored = vec![0f32; self.codes.len() * rows * width];
        for (codes, out) in self.codes.iter().zip(restored.chunks_exact_mut((rows * width).max(1))) {
            codes.decode_into(dictionary, 0..rows, out).map_err(|source| CacheError::Codec {
                layer,
                kind: self.coder.kind,
                source,
            })?;
        }
        let shape = (batch, self.codes.len() / batch, tokens, self.coder.chunks * width);
        Ok(Tensor::from_vec(restored, shape, like.device())?.to_dtype(like.dtype())?)
    }
}

/// One layer's cache of sparse codes.
pub struct CsrCache {
    layer: usize,
    len: usize,
    batch: usize,
    keys: Streams,
    values: Streams,
}

impl CsrCache {
    fn head_dim(&self) -> usize {
        self.keys.coder.chunks * self.keys.coder.encoder.dictionary().width()
    }

    /// Codes and keeps new tokens; on an error nothing is kept.
    fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(), CacheError> {
        let held = (self.len > 0).then(|| (self.batch, self.keys.codes.len() / self.batch));
        let (b, h, t, _) = check_kv(k, v, held, Some(self.head_dim()))?;
        let keys = self.keys.encode(self.layer, k)?;
        let values = self.values.encode(self.layer, v)?;
        self.keys.keep(&keys, b * h);
        self.values.keep(&values, b * h);
        self.batch = b;
        self.len += t;
        Ok(())
    }
}

impl LayerCache for CsrCache {
    fn attend(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, cx: &AttendCx<'_>) -> Result<Tensor, CacheError> {
        check_start(cx.start, self.len)?;
        let q = cx.rotary.apply(q, cx.start)?;
        self.append(k, v)?;
        let keys = self.keys.restore(self.layer, self.batch, self.len, &q)?;
        let keys = cx.rotary.apply(&keys, 0)?;
        let values = self.values.restore(self.layer, self.batch, self.len, &q)?;
        Ok(attention::causal(&q, &keys.flatten(0, 1)?, &values.flatten(0, 1)?, cx.scale)?)
    }

    fn absorb(&mut self, k: &Tensor, v: &Tensor, _rotary: &Rotary) -> Result<(), CacheError> {
        check_start(0, self.len)?;
        self.append(k, v)
    }

    fn len(&self) -> usize {
        self.len
    }

    fn footprint(&self) -> Footprint {
        let streams = |s: &Streams| {
            let table = Footprint { tables: s.codes.capacity() * size_of::<SparseCodes>(), ..Footprint::default() };
            s.codes.iter().map(SparseCodes::footprint).sum::<Footprint>() + table
        };
        let own = Footprint { tables: size_of::<Self>(), ..Footprint::default() };
        streams(&self.keys) + streams(&self.values) + own
    }

    fn clear(&mut self) {
        self.keys.codes = Vec::new();
        self.values.codes = Vec::new();
        self.len = 0;
    }
}

/// CSR-`s` bound to a model: one encoder per dictionary group, shared by the group's layers.
pub struct CsrScheme {
    name: String,
    dictionaries: String,
    bits: BitsPerChannel,
    shared_bytes: usize,
    /// Per layer: keys, values.
    layers: Vec<(Coder, Coder)>,
}

impl CsrScheme {
    /// CSR-`sparsity` over `set`, called `dictionaries` in results. Values take half the sparsity
    /// in each of two chunks, or `sparsity / chunks` for a set trained with other chunks.
    ///
    /// # Errors
    /// [`CacheError::Dictionary`] if a layer has no dictionary, or one whose width does not fit.
    pub fn new(
        sparsity: usize,
        dictionaries: &str,
        set: &DictionarySet,
        encoders: &[Arc<Encoder>],
        geometry: Geometry,
    ) -> Result<Self, CacheError> {
        let name = format!("csr-{sparsity}");
        let coder = |layer: usize, kind: Kind| -> Result<Coder, CacheError> {
            let refuse = |reason: String| CacheError::Dictionary { scheme: name.clone(), layer, kind, reason };
            let (index, group) = set
                .groups
                .iter()
                .enumerate()
                .find(|(_, g)| g.kind == kind && g.layers.contains(&layer))
                .ok_or_else(|| refuse("the dictionary set has no dictionary for it".into()))?;
            let (width, chunks) = (group.dictionary.width(), group.chunks);
            if width * chunks != geometry.head_dim {
                return Err(refuse(format!(
                    "expected {chunks} chunks of a head of {} channels, found a dictionary of width {width}",
                    geometry.head_dim
                )));
            }
            if sparsity == 0 || !sparsity.is_multiple_of(chunks) {
                return Err(refuse(format!("sparsity {sparsity} cannot be shared by {chunks} chunks")));
            }
            let level = sparsity / chunks;
            if level > group.dictionary.len() || level > 255 {
                return Err(refuse(format!(
                    "sparsity {level} is beyond 255 or the dictionary's {} atoms",
                    group.dictionary.len()
                )));
            }
            Ok(Coder { kind, encoder: encoders[index].clone(), sparsity: level, chunks })
        };
        let layers = (0..geometry.layers)
            .map(|layer| Ok((coder(layer, Kind::Key)?, coder(layer, Kind::Value)?)))
            .collect::<Result<Vec<_>, CacheError>>()?;
        let bits = layers
            .iter()
            .flat_map(|(k, v)| [k, v])
            .map(|c| nominal_bits(c.sparsity, c.chunks, geometry.head_dim).0)
            .sum::<f64>()
            / (2 * geometry.layers) as f64;
        let shared_bytes = encoders.iter().map(|e| e.bytes() + e.dictionary().bytes()).sum();
        Ok(Self { name, dictionaries: dictionaries.to_owned(), bits: BitsPerChannel(bits), shared_bytes, layers })
    }
}

impl Scheme for CsrScheme {
    fn name(&self) -> &str {
        &self.name
    }

    fn dictionaries(&self) -> &str {
        &self.dictionaries
    }

    fn empty(&self, layer: usize) -> Result<Box<dyn LayerCache>, CacheError> {
        let (keys, values) = self.layers.get(layer).ok_or_else(|| CacheError::Dictionary {
            scheme: self.name.clone(),
            layer,
            kind: Kind::Key,
            reason: format!("the model it was built for has {} layers", self.layers.len()),
        })?;
        Ok(Box::new(CsrCache {
            layer,
            len: 0,
            batch: 1,
            keys: Streams::new(keys.clone()),
            values: Streams::new(values.clone()),
        }))
    }

    fn nominal_bits(&self) -> BitsPerChannel {
        self.bits
    }

    fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }
}
