//! The seam: what a decoder asks of a cache, and what a scheme builds.

use candle_core::{Device, Tensor};
use kvcsr_codec::{BitsPerChannel, Footprint};

use crate::{CacheError, LastQueries, Padding, Pattern, Rotary};

/// What the cache needs to know about a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Decoder layers.
    pub layers: usize,
    /// Key-value heads of a layer (`Hkv`).
    pub kv_heads: usize,
    /// Channels of a head (`D`).
    pub head_dim: usize,
}

impl Geometry {
    /// Channels of one cached token over all layers, keys and values together.
    pub fn channels_per_token(&self) -> usize {
        2 * self.layers * self.kv_heads * self.head_dim
    }

    /// Numbers that an uncompressed cache of a text of `tokens` holds, keys and values of all layers together; `rotary` says
    /// how far back each layer sees. Bits per channel are measured against it, so that `dense-f16` has 16 on every model:
    /// layers with a sliding window hold their window only, under every scheme.
    pub fn channels(&self, tokens: usize, rotary: &Rotary) -> usize {
        let held: usize = (0..self.layers).map(|layer| rotary.of(layer).reach().held(tokens)).sum();
        2 * self.kv_heads * self.head_dim * held
    }
}

/// Everything about one attention call that is not a tensor of the tokens themselves.
///
/// Attention is causal: new token `t` sees all tokens held before the call and the new tokens up to
/// and including itself, less what `pattern` hides.
#[derive(Debug, Clone, Copy)]
pub struct AttendCx<'a> {
    /// Position of the first new token, which is the number of tokens seen before.
    pub start: usize,
    /// Rotary tables of the model.
    pub rotary: &'a Rotary,
    /// Factor on the scores, usually `1 / sqrt(D)`.
    pub scale: f64,
    /// Sliding window, linear biases and padding; plain causal attention by default. Every call on one cache has the
    /// same.
    pub pattern: Pattern<'a>,
}

/// What one attention layer remembers of one batch of sequences.
pub trait LayerCache: Send {
    /// Adds the new tokens and attends over everything seen so far.
    ///
    /// `q` is `(B, H, T, D)`, `k` and `v` are `(B, Hkv, T, D)`, all *before* position embedding.
    /// Returns `softmax(q kᵀ · scale + mask) v`, `(B, H, T, D)`, the mask causal and as `cx.pattern` says.
    ///
    /// Feeding `T` tokens in one call gives what feeding them one by one gives: a scheme that
    /// compresses tokens as they arrive shows each new token its own compressed self.
    ///
    /// # Errors
    /// On shapes that do not fit what is held, on a position that does not continue it, and on
    /// values that cannot be coded. After an error the cache is as it was before the call.
    fn attend(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, cx: &AttendCx<'_>) -> Result<Tensor, CacheError>;

    /// Takes over the keys and values of an exact prefill, `(B, Hkv, T, D)` before position
    /// embedding, without attending. Only allowed on an empty cache.
    ///
    /// # Errors
    /// As [`LayerCache::attend`].
    fn absorb(&mut self, k: &Tensor, v: &Tensor, rotary: &Rotary) -> Result<(), CacheError>;

    /// As [`LayerCache::absorb`] for rows of different lengths, padded at the front.
    ///
    /// # Errors
    /// As [`LayerCache::absorb`], and where a scheme needs whole texts.
    fn absorb_padded(
        &mut self,
        k: &Tensor,
        v: &Tensor,
        rotary: &Rotary,
        padding: Padding<'_>,
    ) -> Result<(), CacheError> {
        match padding {
            Padding::Left(rows) if rows.iter().any(|&n| n > 0) => {
                Err(CacheError::PaddedPrefill { found: rows.to_vec() })
            }
            _ => self.absorb(k, v, rotary),
        }
    }

    /// Tokens held (`S`).
    fn len(&self) -> usize;

    /// True when no token is held.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The keys that a token which comes next is scored against, as the cache holds them now: `(B, Hkv, S, D)` in f32, after position
    /// embedding by `rotary`, which is the layer's. Their products with rotated queries are the logits of attention before scale,
    /// bias and mask, so they show what a scheme does to these. Only for rows without padding.
    ///
    /// `None` where not all tokens have a key any more, where no token is held, and, by default, where a cache does not say.
    ///
    /// # Errors
    /// [`CacheError::ContextLength`] if the tables of `rotary` end before the last token, or if a tensor operation fails.
    fn scored_keys(&self, _rotary: &Rotary) -> Result<Option<Tensor>, CacheError> {
        Ok(None)
    }

    /// Bytes really allocated by this layer, by part. What layers share is counted once by
    /// [`Scheme::shared_bytes`].
    fn footprint(&self) -> Footprint;

    /// Forgets all tokens.
    fn clear(&mut self);
}

/// What a scheme is on a device.
pub enum OnTensors {
    /// It holds tensors anyway.
    AsItIs,
    /// The scheme to use there.
    Made(Box<dyn Scheme>),
    /// It codes on the host only: each token is copied there and what it attends to comes back.
    HostOnly,
}

/// A way to keep a cache: builds one [`LayerCache`] per layer.
pub trait Scheme: Send + Sync {
    /// The registered name, for example `csr-8`.
    fn name(&self) -> &str;

    /// Name of the dictionary set in use, or the empty string.
    fn dictionaries(&self) -> &str {
        ""
    }

    /// An empty cache for one layer.
    ///
    /// # Errors
    /// If the scheme has nothing for that layer.
    fn empty(&self, layer: usize) -> Result<Box<dyn LayerCache>, CacheError>;

    /// A cache for one layer that holds a finished exact prefill: `k` and `v` are
    /// `(B, Hkv, T, D)` before position embedding.
    ///
    /// # Errors
    /// As [`LayerCache::absorb`].
    fn after_prefill(
        &self,
        layer: usize,
        k: &Tensor,
        v: &Tensor,
        rotary: &Rotary,
    ) -> Result<Box<dyn LayerCache>, CacheError> {
        let mut cache = self.empty(layer)?;
        cache.absorb(k, v, rotary)?;
        Ok(cache)
    }

    /// As [`Scheme::after_prefill`], for schemes that choose what to keep by the prompt's last queries.
    ///
    /// # Errors
    /// As [`LayerCache::absorb`].
    fn after_observed_prefill(
        &self,
        layer: usize,
        k: &Tensor,
        v: &Tensor,
        _queries: &LastQueries,
        rotary: &Rotary,
    ) -> Result<Box<dyn LayerCache>, CacheError> {
        self.after_prefill(layer, k, v, rotary)
    }

    /// The same scheme with codes that are tensors on `device`: see [`crate::tensor`].
    ///
    /// # Errors
    /// If the device has no room for what the scheme shares.
    fn on_tensors(&self, _device: &Device) -> Result<OnTensors, CacheError> {
        Ok(OnTensors::HostOnly)
    }

    /// Bits per channel as the method's paper counts them, keys and values averaged.
    fn nominal_bits(&self) -> BitsPerChannel;

    /// [`Scheme::nominal_bits`] with everything that a coded token takes: scales, zero points, norms, outliers.
    /// Windows, per-sequence and shared tables are apart.
    fn stored_bits(&self) -> BitsPerChannel {
        self.nominal_bits()
    }

    /// Bytes held once for all layers and sequences: dictionaries and their tables.
    fn shared_bytes(&self) -> usize;

    /// Bytes of the same as a deployment would store them: what was learned, in f16, without tables made from it.
    fn stored_bytes(&self) -> usize {
        self.shared_bytes()
    }
}

/// Checks `(B, Hkv, T, D)` inputs against what a cache holds. Returns `(B, Hkv, T, D)`.
pub(crate) fn check_kv(
    k: &Tensor,
    v: &Tensor,
    held: Option<(usize, usize)>,
    head_dim: Option<usize>,
) -> Result<(usize, usize, usize, usize), CacheError> {
    let shape = |tensor, expected: String, t: &Tensor| CacheError::Shape { tensor, expected, found: t.dims().to_vec() };
    let (b, h, t, d) = k.dims4().map_err(|_| shape("keys", "(B, Hkv, T, D)".into(), k))?;
    if v.dims() != k.dims() {
        return Err(shape("values", format!("{:?}, that of the keys", k.dims()), v));
    }
    if let Some((hb, hh)) = held.filter(|&held| held != (b, h)) {
        return Err(shape("keys", format!("({hb}, {hh}, T, D), as held"), k));
    }
    if let Some(hd) = head_dim.filter(|&hd| hd != d) {
        return Err(shape("keys", format!("(B, Hkv, T, {hd})"), k));
    }
    Ok((b, h, t, d))
}

/// Checks that a call continues what is held.
pub(crate) fn check_start(start: usize, len: usize) -> Result<(), CacheError> {
    if start == len { Ok(()) } else { Err(CacheError::Position { start, len }) }
}
