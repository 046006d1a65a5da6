//! The common base of methods that code tokens once and restore them to attend.
//!
//! A method says how a block of tokens is coded and restored ([`Codec`], [`CodedTokens`]) and when tokens leave their
//! exact buffer ([`Buffering`]). The base does the rest, the same for all: it keeps each sequence's exact sinks, coded
//! middle and exact recent tokens, on the position scale of the sequence's own first token; takes prompts over; and
//! attends so that a call of many tokens shows each of them what it would see if tokens came one by one.
//!
//! Everything exact is stored in f16, and codecs see the f16 values, whether or not a token waited in a buffer.

pub mod affine;
mod attend;
pub mod bits;
mod buffering;
mod cache;
pub mod hadamard;
mod heads;
mod product;
mod stream;
#[cfg(test)]
pub(crate) mod testing;

use std::ops::Range;
use std::sync::Arc;

use kvcsr_codec::{BitsPerChannel, Footprint};

pub use self::buffering::Buffering;
pub use self::cache::CodedCache;
pub use self::heads::{HeadTokens, PerHead};
pub use self::product::{multiply, multiply_transposed};
use crate::{Binding, CacheError, Geometry, KeysCoded, LayerCache, Scheme, Window};

/// Tokens restored at a time. Ranges passed to [`CodedTokens::restore`] start at a multiple of it.
pub const TILE: usize = 128;

/// How one layer's keys, or its values, are coded. Shared by all sequences.
pub trait Codec: Send + Sync {
    /// A store for one sequence, without tokens.
    fn empty(&self) -> Box<dyn CodedTokens>;

    /// When tokens are coded.
    fn buffering(&self) -> Buffering;

    /// Bits per channel as the method's paper counts them.
    fn nominal_bits(&self) -> f64;

    /// Bits per channel of a coded token with scales, norms and whatever else it takes, per-sequence and shared tables
    /// apart.
    fn stored_bits(&self) -> f64;
}

/// Tokens to code, the keys or the values of one sequence.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// `(Hkv, tokens, D)`, finite.
    pub rows: &'a [f32],
    /// Tokens of the block, at least one.
    pub tokens: usize,
    /// Whether these are the first tokens of a prompt taken over as a whole, rather than tokens of decoding.
    pub prompt: bool,
}

/// Coded keys or values of one sequence, all heads.
pub trait CodedTokens: Send + Sync {
    /// Codes the tokens that follow those held. Any finite block can be coded.
    fn append(&mut self, block: &Block<'_>);

    /// Restores `tokens` of `head` into `out`, `(tokens, D)`. The range starts at a multiple of [`TILE`], or anywhere if
    /// it is shorter than that.
    fn restore(&self, head: usize, tokens: Range<usize>, out: &mut [f32]);

    /// Fills `table` with what [`CodedTokens::score`] needs to score `tokens` coded tokens for `queries` `(rows, D)`, which are
    /// scaled and rotated. False, the default, where scoring means restoring, because the method or these sizes ask for it.
    fn prepare(&self, _queries: &[f32], _tokens: usize, _table: &mut Vec<f32>) -> bool {
        false
    }

    /// Scores of `tokens` of `head` for the queries that `table` was prepared for, into `out`, `(tokens, rows)`. For keys
    /// that are coded after position embedding.
    fn score(&self, _head: usize, _tokens: Range<usize>, _table: &[f32], _out: &mut [f32]) {
        unreachable!("the store prepared no table");
    }

    /// Bytes allocated, by part, the store's own struct (as `tables`) included.
    fn footprint(&self) -> Footprint;

    /// Whether coding two blocks one after the other differs from coding them as one.
    fn keeps_blocks(&self) -> bool {
        false
    }
}

/// Tokens for which stores make room at a time while decoding.
const PAGE: usize = 32;

/// Makes room for `tokens` more of `each` elements, without the doubling of a growing vector: the ledger counts what is
/// allocated.
pub fn reserve<T>(store: &mut Vec<T>, tokens: usize, each: usize) {
    if store.capacity() - store.len() < tokens * each {
        let page = if store.is_empty() { tokens } else { tokens.max(PAGE) };
        store.reserve_exact(page * each);
    }
}

/// A layer's codecs: keys, values.
pub type LayerCodecs = (Arc<dyn Codec>, Arc<dyn Codec>);

/// A method bound to a model.
pub struct CodedScheme {
    name: String,
    artefacts: String,
    geometry: Geometry,
    keys_coded: KeysCoded,
    window: Window,
    layers: Vec<LayerCodecs>,
    shared_bytes: usize,
}

impl CodedScheme {
    /// The scheme that `bound` describes: `codecs` makes those of each layer. Keys are shown to codecs as the scheme's needs
    /// say.
    ///
    /// # Errors
    /// [`CacheError::Unsuitable`] for a model without channels, or what `codecs` says.
    pub fn new(
        bound: &Binding<'_>,
        window: Window,
        codecs: impl FnMut(usize) -> Result<LayerCodecs, CacheError>,
    ) -> Result<Self, CacheError> {
        let geometry = bound.geometry();
        if geometry.kv_heads == 0 || geometry.head_dim == 0 || !geometry.head_dim.is_multiple_of(2) {
            return Err(bound.unsuitable(format!("heads of an even number of channels, found {geometry:?}")));
        }
        let layers = (0..geometry.layers).map(codecs).collect::<Result<_, _>>()?;
        let (name, keys_coded) = (bound.scheme.to_owned(), bound.keys_coded());
        Ok(Self { name, artefacts: String::new(), geometry, keys_coded, window, layers, shared_bytes: 0 })
    }

    /// Names the trained artefacts in use, and counts their bytes.
    pub fn with_artefacts(mut self, name: &str, bytes: usize) -> Self {
        self.artefacts = name.to_owned();
        self.shared_bytes = bytes;
        self
    }

    fn mean(&self, bits: impl Fn(&dyn Codec) -> f64) -> BitsPerChannel {
        let sum: f64 = self.layers.iter().map(|(k, v)| bits(k.as_ref()) + bits(v.as_ref())).sum();
        BitsPerChannel(sum / (2 * self.layers.len()) as f64)
    }
}

impl Scheme for CodedScheme {
    fn name(&self) -> &str {
        &self.name
    }

    fn dictionaries(&self) -> &str {
        &self.artefacts
    }

    fn empty(&self, layer: usize) -> Result<Box<dyn LayerCache>, CacheError> {
        let codecs = self.layers.get(layer).ok_or_else(|| {
            let reason = format!("layer {layer} of a model built for {} layers", self.layers.len());
            CacheError::Unsuitable { scheme: self.name.clone(), reason }
        })?;
        Ok(Box::new(CodedCache::new(layer, self.geometry, self.keys_coded, self.window, codecs.clone())))
    }

    fn nominal_bits(&self) -> BitsPerChannel {
        self.mean(|codec| codec.nominal_bits())
    }

    fn stored_bits(&self) -> BitsPerChannel {
        self.mean(|codec| codec.stored_bits())
    }

    fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }
}
