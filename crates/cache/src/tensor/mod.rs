//! Codes as tensors on the model's device: the same methods where the SIMD kernels cannot reach.
//!
//! On a GPU, codes, dictionaries and exact windows must stay where the model is: a cache that copies them to the host for every token
//! is slower than the model itself. Here everything is a candle tensor, and every step is a candle operation that the CPU and CUDA
//! both have. So the CPU proves what a card runs: the conformance tests run every scheme below this way too, and compare it with the
//! SIMD path.
//!
//! A method takes part by [`Codec::tensors`](crate::coded::Codec::tensors), or
//! [`JointCodec::tensors`](crate::coded::JointCodec::tensors): stores for codes that are tensors. When tokens are coded, which form of
//! them a query sees, windows, padding and sliding windows are those of [`crate::coded`]; [`TensorScheme`] is made from a
//! [`CodedScheme`](crate::coded::CodedScheme).
//!
//! | | |
//! |---|---|
//! | one layer's cache | [`TensorCache`] |
//! | attention over tiles of restored keys and values, with a running softmax | `attend` |
//! | matching pursuit, plain and orthogonal, as products, arg-max, gather and update | [`pursuit`] |
//! | small codes packed into bytes by arithmetic | [`packed`] |
//! | stores that grow | [`growing`] |
//! | the two hottest steps as one CUDA kernel each, with feature `cuda` | `fused` |
//!
//! Where numbers are read back to the host is counted, see [`host_reads`]: once a prompt is in, decoding reads nothing. So a prompt with
//! a NaN or an infinite number is refused, as on the host, and such a number in a decoded token is not: it shows in the logits.

pub(crate) mod affine;
mod attend;
pub(crate) mod blocks;
mod cache;
pub(crate) mod codes;
pub mod e4m3;
#[cfg(feature = "cuda")]
mod fused;
pub mod growing;
mod host;
mod orthogonal;
pub mod packed;
mod place;
pub mod pursuit;
pub(crate) mod scheme;
mod stream;
mod uploads;

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use kvcsr_codec::{Footprint, Kind};

pub use self::cache::TensorCache;
pub use self::host::{host_reads, read_to_host};
pub use self::place::Attention;
pub use self::scheme::TensorScheme;
pub use self::uploads::Uploads;
use crate::{CacheError, Rotary};

/// Makes stores of one layer's keys, or of its values, without tokens: one per sequence.
pub type Stores = Arc<dyn Fn() -> Result<Box<dyn TensorTokens>, CacheError> + Send + Sync>;

/// Stores of the keys and of the values of one sequence that belong to each other.
pub type JointPair = (Box<dyn TensorTokens>, Box<dyn TensorTokens>);

/// How one layer's keys and values are stored together, as [`crate::coded::JointCodec`] does.
#[derive(Clone)]
pub struct JointStores {
    /// Makes stores without tokens: one pair per sequence.
    pub empty: Arc<dyn Fn() -> Result<JointPair, CacheError> + Send + Sync>,
    /// See [`crate::coded::JointCodec::centres`]: `(Hkv, 1, D)` each.
    pub centres: Option<[Tensor; 2]>,
}

/// A whole prompt of one sequence, `(Hkv, tokens, D)` f32; keys before or after position embedding, as the method codes them.
#[derive(Debug, Clone, Copy)]
pub struct TensorPrompt<'a> {
    /// Keys.
    pub keys: &'a Tensor,
    /// Values.
    pub values: &'a Tensor,
}

impl TensorPrompt<'_> {
    /// Keys or values.
    pub fn of(&self, kind: Kind) -> &Tensor {
        match kind {
            Kind::Key => self.keys,
            Kind::Value => self.values,
        }
    }
}

/// Coded keys or values of one sequence, all heads, as tensors: what [`crate::coded::CodedTokens`] is on the CPU.
pub trait TensorTokens: Send {
    /// See [`crate::coded::CodedTokens::see_prompt`].
    ///
    /// # Errors
    /// If a tensor operation fails.
    fn see_prompt(&mut self, _prompt: &TensorPrompt<'_>) -> Result<(), CacheError> {
        Ok(())
    }

    /// Codes the tokens that follow those held: `rows` `(Hkv, n, D)` f32, contiguous. `prompt` says whether they are the first of a
    /// prompt taken over as a whole.
    ///
    /// # Errors
    /// If a tensor operation fails.
    fn append(&mut self, rows: &Tensor, prompt: bool) -> Result<(), CacheError>;

    /// Restores `tokens`: `(Hkv, n, D)` f32.
    ///
    /// # Errors
    /// If a tensor operation fails.
    fn restore(&self, tokens: Range<usize>) -> Result<Tensor, CacheError>;

    /// Products of `queries` `(Hkv, rows, D)`, scaled and rotated, with the keys of `tokens`, rotated by `rotary` from position `first`
    /// on if there is one: `(Hkv, rows, n)`. Nothing where restoring the keys first is as good.
    ///
    /// # Errors
    /// If a tensor operation fails.
    fn scores(
        &self,
        _queries: &Tensor,
        _tokens: Range<usize>,
        _rotary: Option<(&Rotary, usize)>,
    ) -> Result<Option<Tensor>, CacheError> {
        Ok(None)
    }

    /// Sums the values of `tokens` with `weights` `(Hkv, rows, n)`: `(Hkv, rows, D)`.
    ///
    /// # Errors
    /// If a tensor operation fails.
    fn sum(&self, weights: &Tensor, tokens: Range<usize>) -> Result<Tensor, CacheError> {
        Ok(weights.contiguous()?.matmul(&self.restore(tokens)?)?)
    }

    /// Bytes allocated, by part, the store's own struct (as `tables`) included.
    fn footprint(&self) -> Footprint;

    /// See [`crate::coded::CodedTokens::keeps_blocks`].
    fn keeps_blocks(&self) -> bool {
        false
    }

    /// See [`crate::coded::CodedTokens::learns`].
    fn learns(&self) -> bool {
        self.keeps_blocks()
    }

    /// See [`crate::coded::CodedTokens::drop_step`].
    fn drop_step(&self) -> usize {
        1
    }

    /// See [`crate::coded::CodedTokens::drop_first`].
    ///
    /// # Errors
    /// If a tensor operation fails.
    fn drop_first(&mut self, tokens: usize) -> Result<(), CacheError>;
}

/// The nearest f16, saturating.
pub(crate) fn saturated_half(x: &Tensor) -> Result<Tensor, CacheError> {
    const MOST: f32 = 65504.0;
    Ok(x.clamp(-MOST, MOST)?.to_dtype(DType::F16)?)
}

/// `x` rounded to the nearest f16, saturating, as f32.
pub(crate) fn round_to_half(x: &Tensor) -> Result<Tensor, CacheError> {
    Ok(saturated_half(x)?.to_dtype(DType::F32)?)
}

/// `x`, below 2^22 in size, rounded to the nearest whole number, ties to even: adding and taking off 1.5 · 2^23 rounds so in f32.
pub(crate) fn round_ties_even(x: &Tensor) -> Result<Tensor, CacheError> {
    const ROUND: f64 = 12_582_912.0;
    Ok(x.affine(1.0, ROUND)?.affine(1.0, -ROUND)?)
}
