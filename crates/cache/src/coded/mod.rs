//! The common base of all methods that code tokens: one cache, of which a method is a small part.
//!
//! A method says how a block of tokens is coded and restored ([`Codec`], [`CodedTokens`]), when tokens leave their exact
//! buffer ([`Buffering`]), what it takes from a finished prompt ([`CodedTokens::see_prompt`]) and, where it can, how keys
//! are scored ([`ScoresCodes`]) and values summed ([`SumsCodes`]) without restoring them. The base does the rest, the same
//! for all: padding, each sequence's exact sinks, coded middle, graded and exact recent tokens, the running softmax,
//! restoring in tiles, checks that leave a cache as it was, and bytes.
//!
//! A sequence is a row of a batch without its padding. It has positions and group boundaries of its own, counted from its
//! first token of text, so that it is coded as it would be alone.
//!
//! | a token is | where |
//! |---|---|
//! | a sink: one of the first, exact | f16, for good |
//! | coded | in the method's store, for good |
//! | graded: coded, but still among the newest | 4 bits, beside its code; less what the method says all tokens share |
//! | exact: not coded yet, or in the window | f16 |
//!
//! In a layer with a sliding window, tokens that no later one sees are dropped, in every form, sinks too: [`TILE`] at a time.
//!
//! A call of many tokens shows each of them what it would see if tokens came one by one. Exact tokens are stored in f16,
//! and codecs see the f16 values whether or not a token waited in a buffer, unless they ask for [full
//! precision](Codec::full_precision).
//!
//! Codecs can be put together from stages, see [`stages`].

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

/// Tokens restored at a time. Ranges passed to [`CodedTokens::restore`] start at a multiple of it.
pub const TILE: usize = 128;

/// How one layer's keys, or its values, are coded. Shared by all sequences.
pub trait Codec: Send + Sync {
    /// A store for one sequence, without tokens.
    fn empty(&self) -> Box<dyn CodedTokens>;

    /// When tokens are coded.
    fn buffering(&self) -> Buffering {
        Buffering::None
    }

    /// Bits per channel as the method's paper counts them.
    fn nominal_bits(&self) -> f64;

    /// Bits per channel of a coded token with scales, norms and whatever else it takes, per-sequence and shared tables
    /// apart.
    fn stored_bits(&self) -> f64 {
        self.nominal_bits()
    }

    /// Whether tokens that are coded as they come, without buffer or window, are coded from f32 instead of f16.
    fn full_precision(&self) -> bool {
        false
    }

    /// Whether the tokens of the first call of attention are the prompt, so that [`CodedTokens::see_prompt`] sees them
    /// before they are coded. Otherwise only a prefill that is taken over is a prompt.
    fn first_call_is_prompt(&self) -> bool {
        false
    }

    /// Whether [`CodedTokens::see_prompt`] wants to see the last queries of a prompt.
    fn sees_queries(&self) -> bool {
        false
    }

    /// Whether few queries attend by parts of the tokens, all heads of a part on one thread: heads then share what is unpacked of a
    /// tile, and threads the work however few heads there are. Not where tables or sums are made for all tokens of a head.
    fn in_parts(&self) -> bool {
        true
    }

    /// What makes stores of codes that are tensors, with its tables copied by `uploads`; nothing where the method has none.
    ///
    /// # Errors
    /// If the device has no room for the tables.
    fn tensors(&self, _uploads: &mut Uploads) -> Result<Option<Stores>, CacheError> {
        Ok(None)
    }
}

/// A layer's codecs.
#[derive(Clone)]
pub(crate) enum LayerCodecs {
    /// Keys and values are coded by themselves.
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

    /// Mean over keys and values of bits per channel as the method's paper counts them.
    fn nominal_bits(&self) -> f64 {
        match self {
            Self::Apart(keys, values) => 0.5 * (keys.nominal_bits() + values.nominal_bits()),
            Self::Together(codec) => codec.nominal_bits(),
        }
    }

    /// The same with everything that a coded token takes.
    fn stored_bits(&self) -> f64 {
        match self {
            Self::Apart(keys, values) => 0.5 * (keys.stored_bits() + values.stored_bits()),
            Self::Together(codec) => codec.stored_bits(),
        }
    }
}

/// How one layer's keys and values are coded together, as they come. Shared by all sequences.
///
/// The two stores of a sequence belong to each other. Each call hands the same blocks first to the store of keys, then to that of
/// values; nothing is restored between the two.
pub trait JointCodec: Send + Sync {
    /// Stores of the keys and of the values of one sequence, without tokens.
    fn empty(&self) -> (Box<dyn CodedTokens>, Box<dyn CodedTokens>);

    /// Bits per channel as the method counts them.
    fn nominal_bits(&self) -> f64;

    /// Bits per channel of a coded token with everything it takes.
    fn stored_bits(&self) -> f64 {
        self.nominal_bits()
    }

    /// What keys, and values, of a graded window lose before they are stored, and get back afterwards, `(Hkv, D)` each: what all
    /// tokens have in common, such as a bias of keys, would take the precision of their 4 bits. Empty where nothing is known.
    fn centres(&self) -> [Arc<[f32]>; 2] {
        [Arc::default(), Arc::default()]
    }

    /// See [`Codec::tensors`].
    ///
    /// # Errors
    /// If the device has no room for the tables.
    fn tensors(&self, _uploads: &mut Uploads) -> Result<Option<JointStores>, CacheError> {
        Ok(None)
    }
}

/// Tokens to code, the keys or the values of one sequence.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// `(Hkv, tokens, D)`, finite and below 1e30 in absolute value.
    pub rows: &'a [f32],
    /// Tokens of the block, at least one.
    pub tokens: usize,
    /// Whether these are the first tokens of a prompt taken over as a whole, rather than tokens of decoding.
    pub prompt: bool,
}

/// A whole prompt of one sequence, sinks and recent tokens included.
#[derive(Debug, Clone, Copy)]
pub struct Prompt<'a> {
    /// Tokens of the prompt.
    pub tokens: usize,
    /// `(Hkv, tokens, D)`, before or after position embedding, as the method codes keys.
    pub keys: &'a [f32],
    /// `(Hkv, tokens, D)`.
    pub values: &'a [f32],
    /// Its last queries, if the method wants to see them and whoever made the prefill kept them.
    pub queries: Option<PromptQueries<'a>>,
}

/// Queries of the last tokens of a prompt.
#[derive(Debug, Clone, Copy)]
pub struct PromptQueries<'a> {
    /// How many tokens' queries these are.
    pub tokens: usize,
    /// `(H, tokens, D)`, not scaled; before or after position embedding, as the keys.
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

/// Coded keys or values of one sequence, all heads.
pub trait CodedTokens: Send + Sync {
    /// Takes what it needs of a finished prompt, before any of it is coded: atoms, a basis, a choice of tokens.
    fn see_prompt(&mut self, _prompt: &Prompt<'_>) {}

    /// Codes the tokens that follow those held. Any block can be coded.
    fn append(&mut self, block: &Block<'_>);

    /// Restores `tokens` of `head` into `out`, `(tokens, D)`. The range starts at a multiple of [`TILE`], or anywhere if
    /// it is shorter than that.
    fn restore(&self, head: usize, tokens: Range<usize>, out: &mut [f32]);

    /// A way to score keys without restoring them, for keys that are coded after position embedding.
    fn scores_codes(&self) -> Option<&dyn ScoresCodes> {
        None
    }

    /// A way to sum values without restoring them.
    fn sums_codes(&self) -> Option<&dyn SumsCodes> {
        None
    }

    /// Whether some tokens were forgotten for good: nothing attends to them any more.
    fn forgets(&self) -> bool {
        false
    }

    /// Of a store that [forgets](CodedTokens::forgets), which of `tokens` of `head` are still there. Keys decide; values of
    /// forgotten tokens are restored as any finite numbers.
    fn kept(&self, _head: usize, _tokens: Range<usize>, kept: &mut [bool]) {
        kept.fill(true);
    }

    /// Bytes allocated, by part, the store's own struct (as `tables`) included.
    fn footprint(&self) -> Footprint;

    /// Whether coding two blocks one after the other differs from coding them as one.
    fn keeps_blocks(&self) -> bool {
        false
    }

    /// Whether the codes of a token depend on tokens that were coded before it, those of its own [group](CodedTokens::drop_step)
    /// apart.
    fn learns(&self) -> bool {
        self.keeps_blocks()
    }

    /// Tokens are dropped in multiples of this.
    fn drop_step(&self) -> usize {
        1
    }

    /// Drops the first `tokens` tokens, a multiple of [`TILE`] and of [`CodedTokens::drop_step`], and gives their memory
    /// back: in a layer with a sliding window no later token sees them. The tokens left are counted from 0 again, and
    /// restored as before.
    fn drop_first(&mut self, tokens: usize);
}

/// Scores of keys, taken from their codes.
pub trait ScoresCodes {
    /// Fills `table` with what [`ScoresCodes::score`] needs to score `tokens` coded tokens for `queries` `(rows, D)`, which
    /// are scaled and rotated. False where restoring these tokens is less work.
    fn prepare(&self, queries: &[f32], tokens: usize, table: &mut Vec<f32>) -> bool;

    /// Scores of `tokens` of `head` for the queries that `table` was prepared for, into `out`, `(tokens, rows)`.
    fn score(&self, head: usize, tokens: Range<usize>, table: &[f32], out: &mut [f32]);
}

/// Weighted sums of values, taken over their codes first.
pub trait SumsCodes {
    /// Numbers that the sums of `rows` query rows over `tokens` coded tokens take, a multiple of `rows`; 0 where restoring
    /// these tokens is less work. The last dimension of the sums is `rows`, so that the base can rescale them.
    fn sums(&self, rows: usize, tokens: usize) -> usize;

    /// Adds `tokens` of `head` with `weights` `(tokens, rows)` to the sums.
    fn add(&self, head: usize, tokens: Range<usize>, weights: &[f32], rows: usize, sums: &mut [f32]);

    /// Adds the values of `head` that the sums stand for to `out`, `(rows, D)`.
    fn finish(&self, head: usize, sums: &[f32], rows: usize, out: &mut [f32]);
}

/// Tokens for which stores make room at a time while decoding.
pub(crate) const PAGE: usize = 32;
/// Larger elements of keys and values are stored as this, so that sums of products stay finite.
pub(crate) const LARGEST: f32 = 1e30;

/// Drops the first `elements` of a store, and the memory they took.
pub fn drop_front<T>(store: &mut Vec<T>, elements: usize) {
    store.drain(..elements);
    store.shrink_to_fit();
}

/// The smallest number that is a multiple of both, neither being 0.
pub(crate) fn common_step(a: usize, b: usize) -> usize {
    let (mut divisor, mut rest) = (a, b);
    while rest > 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    a / divisor * b
}

/// Makes room for `tokens` more of `each` elements, without the doubling of a growing vector: the ledger counts what is
/// allocated.
pub fn reserve<T>(store: &mut Vec<T>, tokens: usize, each: usize) {
    if store.capacity() - store.len() < tokens * each {
        let page = if store.is_empty() { tokens } else { tokens.max(PAGE) };
        store.reserve_exact(page * each);
    }
}
