//! The common base of all methods that code tokens. There is one cache, and a method is a small part of it.
//!
//! A method says how a block of tokens is coded and restored ([`Codec`], [`CodedTokens`]), when tokens leave their
//! exact buffer ([`Buffering`]), and what it takes from a finished prompt ([`CodedTokens::see_prompt`]). If it can, it
//! also says how keys are scored ([`ScoresCodes`]) and values summed ([`SumsCodes`]) without restoring them. The base
//! does everything else, in the same way for all methods: padding; the exact sinks, the coded middle, and the graded
//! and exact recent tokens of each sequence; the running softmax; restoring in tiles; checks that leave a cache as it
//! was; and the byte counts.
//!
//! A sequence is a row of a batch without its padding. Each sequence has its own positions and group boundaries. They
//! are counted from its first token of text, so a sequence in a batch is coded as it would be alone.
//!
//! | a token is | where |
//! |---|---|
//! | a sink: one of the first tokens, exact | f16, permanently |
//! | coded | in the method's store, permanently |
//! | graded: coded, but still one of the newest | 4 bits, beside its code; minus the centre that the method gives for all tokens |
//! | exact: not coded yet, or in the window | f16 |
//!
//! In a layer with a sliding window, tokens that no later token sees are dropped, [`TILE`] at a time. This applies to
//! every form, also to sinks.
//!
//! In a call of many tokens, each token sees what it would see if tokens came one by one. Exact tokens are stored in
//! f16. Codecs get the f16 values, whether or not a token waited in a buffer, unless they ask for [full
//! precision](Codec::full_precision).
//!
//! Codecs can be composed of stages, see [`stages`].

pub mod affine;
pub(crate) mod arrival;
mod attend;
pub mod blocks;
mod buffering;
mod cache;
pub mod hadamard;
mod heads;
mod rows;
pub(crate) mod schedule;
pub(crate) mod scheme;
pub mod stages;
mod stream;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod trits;

use std::ops::Range;
use std::sync::Arc;

use kvcsr_codec::{Footprint, Kind};

pub use self::buffering::Buffering;
pub use self::cache::CodedCache;
pub use self::heads::{HeadTokens, PerHead};
pub use self::scheme::CodedScheme;
pub(crate) use self::stream::{SLACK, dropped_tokens, window_bytes};
use crate::CacheError;
use crate::tensor::{JointStores, Stores, Uploads};

/// Tokens that are restored at a time. Ranges passed to [`CodedTokens::restore`] start at a multiple of it.
pub const TILE: usize = 128;

/// How the keys or the values of one layer are coded. Shared by all sequences.
pub trait Codec: Send + Sync {
    /// A store for one sequence, without tokens.
    fn empty(&self) -> Box<dyn CodedTokens>;

    /// When tokens are coded.
    fn buffering(&self) -> Buffering {
        Buffering::None
    }

    /// Bits per channel as the method's paper counts them.
    fn nominal_bits(&self) -> f64;

    /// Bits per channel of a coded token, with scales, norms and everything else that it takes. Tables of a sequence
    /// and shared tables are not counted.
    fn stored_bits(&self) -> f64 {
        self.nominal_bits()
    }

    /// Whether tokens are coded from f32 instead of f16. It applies if tokens are coded when they arrive, without a
    /// buffer or window.
    fn full_precision(&self) -> bool {
        false
    }

    /// Whether the tokens of the first `attend` call are the prompt, so that [`CodedTokens::see_prompt`] sees them
    /// before they are coded. If false, only a prefill that is taken over is a prompt.
    fn first_call_is_prompt(&self) -> bool {
        false
    }

    /// Whether [`CodedTokens::see_prompt`] wants to see the last queries of a prompt.
    fn sees_queries(&self) -> bool {
        false
    }

    /// Whether attention of few queries is split into parts of the tokens, where one thread works on several heads of a
    /// part. Heads then share what is unpacked of a tile, and the work is divided among the threads even if there are
    /// few heads. False if tables or sums are made for all tokens of a head.
    fn in_parts(&self) -> bool {
        true
    }

    /// What makes the stores whose codes are tensors. `uploads` copies its tables to the device. `None` if the method
    /// has no such stores.
    ///
    /// # Errors
    /// If the device does not have enough memory for the tables.
    fn tensors(&self, _uploads: &mut Uploads) -> Result<Option<Stores>, CacheError> {
        Ok(None)
    }
}

/// The codecs of one layer.
#[derive(Clone)]
pub(crate) enum LayerCodecs {
    /// Keys and values are coded separately.
    Apart(Arc<dyn Codec>, Arc<dyn Codec>),
    /// Keys and values are coded together.
    Together(Arc<dyn JointCodec>),
}

impl LayerCodecs {
    fn each(&self) -> Option<[&dyn Codec; 2]> {
        match self {
            Self::Apart(keys, values) => Some([keys.as_ref(), values.as_ref()]),
            Self::Together(_) => None,
        }
    }

    /// See [`Codec::in_parts`].
    fn in_parts(&self) -> bool {
        self.each().is_none_or(|codecs| codecs.iter().all(|codec| codec.in_parts()))
    }

    /// Bits per channel as the method's paper counts them, averaged over keys and values.
    fn nominal_bits(&self) -> f64 {
        match self {
            Self::Apart(keys, values) => 0.5 * (keys.nominal_bits() + values.nominal_bits()),
            Self::Together(codec) => codec.nominal_bits(),
        }
    }

    /// Bits per channel with everything that a coded token takes, averaged over keys and values.
    fn stored_bits(&self) -> f64 {
        match self {
            Self::Apart(keys, values) => 0.5 * (keys.stored_bits() + values.stored_bits()),
            Self::Together(codec) => codec.stored_bits(),
        }
    }
}

/// How the keys and values of one layer are coded together, when they arrive. Shared by all sequences.
///
/// The two stores of a sequence belong together. Each call gives the same blocks first to the store of keys, then to
/// the store of values. Nothing is restored between the two.
pub trait JointCodec: Send + Sync {
    /// The stores of the keys and of the values of one sequence, without tokens.
    fn empty(&self) -> (Box<dyn CodedTokens>, Box<dyn CodedTokens>);

    /// Bits per channel as the method counts them.
    fn nominal_bits(&self) -> f64;

    /// Bits per channel of a coded token, with everything that it takes.
    fn stored_bits(&self) -> f64 {
        self.nominal_bits()
    }

    /// The centres of keys and of values in a graded window, `(Hkv, D)` each. A centre is subtracted before a token is
    /// stored in 4 bits, and added again afterwards. Otherwise the part that all tokens have in common, such as a bias
    /// of keys, would use up the precision of the 4 bits. Empty if no centre is known.
    fn centres(&self) -> [Arc<[f32]>; 2] {
        [Arc::default(), Arc::default()]
    }

    /// See [`Codec::tensors`].
    ///
    /// # Errors
    /// If the device does not have enough memory for the tables.
    fn tensors(&self, _uploads: &mut Uploads) -> Result<Option<JointStores>, CacheError> {
        Ok(None)
    }
}

/// Tokens to code: the keys or the values of one sequence.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// `(Hkv, tokens, D)`, finite and below 1e30 in absolute value.
    pub rows: &'a [f32],
    /// Tokens of the block, at least one.
    pub tokens: usize,
    /// Whether these are the first tokens of a prompt that is taken over as a whole. False for tokens of decode.
    pub prompt: bool,
}

/// A whole prompt of one sequence, with its sinks and recent tokens.
#[derive(Debug, Clone, Copy)]
pub struct Prompt<'a> {
    /// Tokens of the prompt.
    pub tokens: usize,
    /// `(Hkv, tokens, D)`, before or after position embedding, depending on where the method codes keys.
    pub keys: &'a [f32],
    /// `(Hkv, tokens, D)`.
    pub values: &'a [f32],
    /// The last queries of the prompt, if the method wants to see them and the prefill kept them.
    pub queries: Option<PromptQueries<'a>>,
}

/// Queries of the last tokens of a prompt.
#[derive(Debug, Clone, Copy)]
pub struct PromptQueries<'a> {
    /// The number of tokens whose queries these are.
    pub tokens: usize,
    /// `(H, tokens, D)`, not scaled; before or after position embedding, the same as the keys.
    pub rows: &'a [f32],
}

impl Prompt<'_> {
    /// Keys or values.
    pub fn of(&self, kind: Kind) -> &[f32] {
        match kind {
            Kind::Key => self.keys,
            Kind::Value => self.values,
        }
    }
}

/// Coded keys or values of one sequence, over all heads.
pub trait CodedTokens: Send + Sync {
    /// Takes what it needs from a finished prompt, before any of it is coded: atoms, a basis, a choice of tokens.
    fn see_prompt(&mut self, _prompt: &Prompt<'_>) {}

    /// Codes the tokens that follow those held so far. Blocks may have any size.
    fn append(&mut self, block: &Block<'_>);

    /// Restores `tokens` of `head` into `out`, `(tokens, D)`. The range starts at a multiple of [`TILE`]. It may start
    /// anywhere if it is shorter than [`TILE`].
    fn restore(&self, head: usize, tokens: Range<usize>, out: &mut [f32]);

    /// Scores keys without restoring them, for keys that are coded after position embedding.
    fn scores_codes(&self) -> Option<&dyn ScoresCodes> {
        None
    }

    /// Sums values without restoring them.
    fn sums_codes(&self) -> Option<&dyn SumsCodes> {
        None
    }

    /// Whether some tokens were forgotten permanently. Nothing attends to them any more.
    fn forgets(&self) -> bool {
        false
    }

    /// For a store that [forgets](CodedTokens::forgets): writes to `kept` which of `tokens` of `head` are still there.
    /// The keys decide. The values of forgotten tokens may be restored as any finite numbers.
    fn kept(&self, _head: usize, _tokens: Range<usize>, kept: &mut [bool]) {
        kept.fill(true);
    }

    /// Bytes allocated, by part. The store's own struct is included, as `tables`.
    fn footprint(&self) -> Footprint;

    /// Whether two blocks coded one after the other differ from the same tokens coded as one block.
    fn keeps_blocks(&self) -> bool {
        false
    }

    /// Whether the codes of a token depend on tokens that were coded before it, other than those of its own
    /// [group](CodedTokens::drop_step).
    fn learns(&self) -> bool {
        self.keeps_blocks()
    }

    /// The number of tokens dropped is always a multiple of this.
    fn drop_step(&self) -> usize {
        1
    }

    /// Drops the first `tokens` tokens, a multiple of [`TILE`] and of [`CodedTokens::drop_step`], and frees their
    /// memory. This is for layers with a sliding window, where no later token sees them. The remaining tokens are
    /// counted from 0 again. They are restored as before.
    fn drop_first(&mut self, tokens: usize);
}

/// Computes scores of keys from their codes.
pub trait ScoresCodes {
    /// Fills `table` with what [`ScoresCodes::score`] needs to score `tokens` coded tokens for `queries` `(rows, D)`.
    /// The queries are scaled and rotated. Returns false if restoring these tokens is less work.
    fn prepare(&self, queries: &[f32], tokens: usize, table: &mut Vec<f32>) -> bool;

    /// Writes to `out`, `(tokens, rows)`, the scores of `tokens` of `head` for the queries that `table` was prepared
    /// for.
    fn score(&self, head: usize, tokens: Range<usize>, table: &[f32], out: &mut [f32]);
}

/// Computes weighted sums of values from their codes.
pub trait SumsCodes {
    /// How many numbers the sums of `rows` query rows over `tokens` coded tokens take, a multiple of `rows`. Returns 0
    /// if restoring these tokens is less work. The last dimension of the sums is `rows`, so that the base can rescale
    /// them.
    fn sums(&self, rows: usize, tokens: usize) -> usize;

    /// Adds `tokens` of `head`, with `weights` `(tokens, rows)`, to the sums.
    fn add(&self, head: usize, tokens: Range<usize>, weights: &[f32], rows: usize, sums: &mut [f32]);

    /// Turns the sums into values of `head`, and adds these to `out`, `(rows, D)`.
    fn finish(&self, head: usize, sums: &[f32], rows: usize, out: &mut [f32]);
}

/// During decode, stores reserve memory for this number of tokens at a time.
pub(crate) const PAGE: usize = 32;
/// Elements of keys and values are limited to this absolute value, so that sums of products stay finite.
pub(crate) const LARGEST: f32 = 1e30;

/// Drops the first `elements` elements of a store, and frees their memory.
pub fn drop_front<T>(store: &mut Vec<T>, elements: usize) {
    store.drain(..elements);
    store.shrink_to_fit();
}

/// The smallest number that is a multiple of both `a` and `b`. Both must be greater than 0.
pub(crate) fn common_step(a: usize, b: usize) -> usize {
    let (mut divisor, mut rest) = (a, b);
    while rest > 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    a / divisor * b
}

/// Reserves memory for `tokens` more tokens with `each` elements. Unlike a growing vector, it does not double the
/// capacity: the ledger counts what is allocated.
pub fn reserve<T>(store: &mut Vec<T>, tokens: usize, each: usize) {
    if store.capacity() - store.len() < tokens * each {
        let page = if store.is_empty() { tokens } else { tokens.max(PAGE) };
        store.reserve_exact(page * each);
    }
}
