//! The seam: the interface through which a decoder uses a cache, and what a scheme builds.

use candle_core::{Device, Tensor};
use kvcsr_codec::{BitsPerChannel, Footprint};

use crate::{CacheError, LastQueries, Padding, Pattern, Rotary};

/// The properties of a model that the cache needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// The number of decoder layers.
    pub layers: usize,
    /// Key-value heads of a layer (`Hkv`).
    pub kv_heads: usize,
    /// Channels of a head (`D`).
    pub head_dim: usize,
}

impl Geometry {
    /// The number of channels of one cached token over all layers, for keys and values together.
    pub fn channels_per_token(&self) -> usize {
        2 * self.layers * self.kv_heads * self.head_dim
    }

    /// How many numbers an uncompressed cache of a text of `tokens` tokens holds, over the keys and values of all
    /// layers. `rotary` says how far back each layer sees. Bits per channel are measured against this number. So
    /// `dense-f16` has 16 bits on every model: under every scheme, a layer with a sliding window holds only its window.
    pub fn channels(&self, tokens: usize, rotary: &Rotary) -> usize {
        let held: usize = (0..self.layers).map(|layer| rotary.of(layer).reach().held(tokens)).sum();
        2 * self.kv_heads * self.head_dim * held
    }
}

/// Everything about one attention call except the tensors of the tokens.
///
/// Attention is causal: new token `t` sees all tokens held before the call, and the new tokens up to and including
/// itself, except those that `pattern` hides.
#[derive(Debug, Clone, Copy)]
pub struct AttendCx<'a> {
    /// The position of the first new token. It equals the number of tokens seen before.
    pub start: usize,
    /// Rotary tables of the model.
    pub rotary: &'a Rotary,
    /// The factor on the scores, usually `1 / sqrt(D)`.
    pub scale: f64,
    /// Sliding window, linear biases and padding. The default is plain causal attention. It must be the same in every
    /// call on one cache.
    pub pattern: Pattern<'a>,
}

/// What one attention layer stores of one batch of sequences.
pub trait LayerCache: Send {
    /// Adds the new tokens, and attends over all tokens so far.
    ///
    /// `q` is `(B, H, T, D)`, `k` and `v` are `(B, Hkv, T, D)`, all *before* position embedding. Returns
    /// `softmax(q kᵀ · scale + mask) v`, `(B, H, T, D)`. The mask is causal, with what `cx.pattern` adds.
    ///
    /// `T` tokens in one call give the same result as `T` calls with one token. If a scheme compresses tokens when they
    /// arrive, each new token sees its own restored form.
    ///
    /// # Errors
    /// If shapes do not fit the tokens held, if the position does not continue them, or if numbers cannot be coded.
    /// After an error the cache is as it was before the call.
    fn attend(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, cx: &AttendCx<'_>) -> Result<Tensor, CacheError>;

    /// Takes over the keys and values of an exact prefill, `(B, Hkv, T, D)` before position embedding, without
    /// attending. This is allowed only on an empty cache.
    ///
    /// # Errors
    /// The errors of [`LayerCache::attend`].
    fn absorb(&mut self, k: &Tensor, v: &Tensor, rotary: &Rotary) -> Result<(), CacheError>;

    /// The same as [`LayerCache::absorb`], for rows of different lengths that are padded at the front.
    ///
    /// # Errors
    /// The errors of [`LayerCache::absorb`], and an error if a scheme needs whole texts.
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

    /// The number of tokens held (`S`).
    fn len(&self) -> usize;

    /// Whether no token is held.
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

    /// The bytes that this layer really allocates, by part. What layers share is not included: [`Scheme::shared_bytes`]
    /// counts it once.
    fn footprint(&self) -> Footprint;

    /// Forgets all tokens.
    fn clear(&mut self);
}

/// How a scheme runs on a device.
pub enum OnTensors {
    /// The scheme stores tensors anyway, and runs there without change.
    AsItIs,
    /// This scheme must be used there.
    Made(Box<dyn Scheme>),
    /// The scheme codes only on the host: each token is copied to the host, and its attention output is copied back.
    HostOnly,
}

/// A way to store a cache. It builds one [`LayerCache`] per layer.
pub trait Scheme: Send + Sync {
    /// The registered name, for example `csr-8`.
    fn name(&self) -> &str;

    /// The name of the dictionary set in use, or the empty string.
    fn dictionaries(&self) -> &str {
        ""
    }

    /// An empty cache for one layer.
    ///
    /// # Errors
    /// If the scheme has no such layer.
    fn empty(&self, layer: usize) -> Result<Box<dyn LayerCache>, CacheError>;

    /// A cache for one layer that holds a finished exact prefill. `k` and `v` are `(B, Hkv, T, D)` before position
    /// embedding.
    ///
    /// # Errors
    /// The errors of [`LayerCache::absorb`].
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

    /// The same as [`Scheme::after_prefill`], for schemes that use the prompt's last queries to choose what they keep.
    ///
    /// # Errors
    /// The errors of [`LayerCache::absorb`].
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
    /// If the device does not have enough memory for the data that the scheme shares.
    fn on_tensors(&self, _device: &Device) -> Result<OnTensors, CacheError> {
        Ok(OnTensors::HostOnly)
    }

    /// Bits per channel as the method's paper counts them, averaged over keys and values.
    fn nominal_bits(&self) -> BitsPerChannel;

    /// [`Scheme::nominal_bits`] with everything else that a coded token takes: scales, zero points, norms, outliers.
    /// Windows, tables of a sequence and shared tables are not included.
    fn stored_bits(&self) -> BitsPerChannel {
        self.nominal_bits()
    }

    /// The bytes that are held once for all layers and sequences: dictionaries and their tables.
    fn shared_bytes(&self) -> usize;

    /// The same data as a deployment would store it, in bytes: what was learned, in f16, without the tables computed
    /// from it.
    fn stored_bytes(&self) -> usize {
        self.shared_bytes()
    }
}

/// Checks `(B, Hkv, T, D)` inputs against what the cache holds. Returns `(B, Hkv, T, D)`.
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

/// Checks that a call continues what the cache holds.
pub(crate) fn check_start(start: usize, len: usize) -> Result<(), CacheError> {
    if start == len { Ok(()) } else { Err(CacheError::Position { start, len }) }
}
