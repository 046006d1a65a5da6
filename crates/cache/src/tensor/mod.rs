//! Codes as tensors on the model's device: the same methods, for devices on which the SIMD kernels do not run.
//!
//! On a GPU, codes, dictionaries and exact windows must stay on the model's device. A cache that copies them to the
//! host for every token is slower than the model itself. Here everything is a candle tensor, and every step is a candle
//! operation that exists on the CPU and on CUDA. So the CPU can test what a GPU runs: the conformance tests run every
//! scheme in this form too, and compare it with the SIMD path.
//!
//! A method supports this with [`Codec::tensors`](crate::coded::Codec::tensors) or
//! [`JointCodec::tensors`](crate::coded::JointCodec::tensors), which make stores whose codes are tensors. Everything
//! else is as in [`crate::coded`]: when tokens are coded, which form of them a query sees, windows, padding and sliding
//! windows. A [`TensorScheme`] is made from a [`CodedScheme`](crate::coded::CodedScheme).
//!
//! | | |
//! |---|---|
//! | the cache of one layer | [`TensorCache`] |
//! | attention over tiles of restored keys and values, with a running softmax | `attend` |
//! | matching pursuit, plain and orthogonal, as products, arg-max, gather and update | [`pursuit`] |
//! | small codes packed into bytes by arithmetic | [`packed`] |
//! | stores that grow | [`growing`] |
//! | the two most expensive steps as one CUDA kernel each, with the feature `cuda` | `fused` |
//!
//! Reads of numbers back to the host are counted, see [`host_reads`]. After the prompt, decode reads no numbers back.
//! So a prompt with NaN or an infinite number is refused, as on the host. Such a number in a decoded token is not
//! refused: it appears in the logits.

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

/// Makes stores for one layer's keys or values, without tokens: one store per sequence.
pub type Stores = Arc<dyn Fn() -> Result<Box<dyn TensorTokens>, CacheError> + Send + Sync>;

/// The stores of the keys and of the values of one sequence. They belong together.
pub type JointPair = (Box<dyn TensorTokens>, Box<dyn TensorTokens>);

/// How one layer's keys and values are stored together, as in [`crate::coded::JointCodec`].
#[derive(Clone)]
pub struct JointStores {
    /// Makes pairs of stores without tokens: one pair per sequence.
    pub empty: Arc<dyn Fn() -> Result<JointPair, CacheError> + Send + Sync>,
    /// See [`crate::coded::JointCodec::centres`]: `(Hkv, 1, D)` each.
    pub centres: Option<[Tensor; 2]>,
}

/// A whole prompt of one sequence, `(Hkv, tokens, D)` f32. Keys are before or after position embedding, depending on
/// where the method codes them.
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

/// Coded keys or values of one sequence, over all heads, as tensors. On the CPU this is [`crate::coded::CodedTokens`].
pub trait TensorTokens: Send {
    /// See [`crate::coded::CodedTokens::see_prompt`].
    ///
    /// # Errors
    /// If a tensor operation fails.
    fn see_prompt(&mut self, _prompt: &TensorPrompt<'_>) -> Result<(), CacheError> {
        Ok(())
    }

    /// Codes the tokens that follow those held so far: `rows` `(Hkv, n, D)` f32, contiguous. `prompt` says whether they
    /// are the first tokens of a prompt that is taken over as a whole.
    ///
    /// # Errors
    /// If a tensor operation fails.
    fn append(&mut self, rows: &Tensor, prompt: bool) -> Result<(), CacheError>;

    /// Restores `tokens`: `(Hkv, n, D)` f32.
    ///
    /// # Errors
    /// If a tensor operation fails.
    fn restore(&self, tokens: Range<usize>) -> Result<Tensor, CacheError>;

    /// Products of `queries` `(Hkv, rows, D)`, scaled and rotated, with the keys of `tokens`: `(Hkv, rows, n)`. If
    /// `rotary` is given, it rotates the keys; the first of them has position `first`. Returns `None` if restoring the
    /// keys first is as fast.
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

    /// Sums the values of `tokens` with `weights` `(Hkv, rows, n)`. Returns `(Hkv, rows, D)`.
    ///
    /// # Errors
    /// If a tensor operation fails.
    fn sum(&self, weights: &Tensor, tokens: Range<usize>) -> Result<Tensor, CacheError> {
        Ok(weights.contiguous()?.matmul(&self.restore(tokens)?)?)
    }

    /// Bytes allocated, by part. The store's own struct is included, as `tables`.
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

/// Rounds to the nearest f16, saturating.
pub(crate) fn saturated_half(x: &Tensor) -> Result<Tensor, CacheError> {
    const MOST: f32 = 65504.0;
    Ok(x.clamp(-MOST, MOST)?.to_dtype(DType::F16)?)
}

/// Rounds `x` to the nearest f16, saturating. The result is f32.
pub(crate) fn round_to_half(x: &Tensor) -> Result<Tensor, CacheError> {
    Ok(saturated_half(x)?.to_dtype(DType::F32)?)
}

/// Rounds `x`, whose absolute value must be below 2^22, to the nearest whole number, with ties to even. Adding and then
/// subtracting 1.5 · 2^23 does this in f32.
pub(crate) fn round_ties_even(x: &Tensor) -> Result<Tensor, CacheError> {
    const ROUND: f64 = 12_582_912.0;
    Ok(x.affine(1.0, ROUND)?.affine(1.0, -ROUND)?)
}
