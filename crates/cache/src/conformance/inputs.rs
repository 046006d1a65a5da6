//! Seeded inputs for one attention layer.

use std::ops::Range;

use candle_core::{Device, Tensor};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Setting;
use crate::{AttendCx, CacheError, LayerCache, Pattern, Rotary};

/// Positions of the rotary tables that checks use.
pub const MAX_POSITIONS: usize = 1100;

/// Queries, keys and values of one layer before position embedding, `(B, H or Hkv, T, D)`.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Queries.
    pub q: Tensor,
    /// Keys.
    pub k: Tensor,
    /// Values.
    pub v: Tensor,
}

impl Inputs {
    /// Seeded uniform numbers in -1..1.
    ///
    /// # Errors
    /// If the tensors cannot be made.
    pub fn random(setting: Setting, tokens: usize) -> Result<Self, CacheError> {
        let Setting { batch, heads, kv_heads, head_dim } = setting;
        let of = |seed, heads| tensor(seed, (batch, heads, tokens, head_dim));
        Ok(Self { q: of(1, heads)?, k: of(2, kv_heads)?, v: of(3, kv_heads)? })
    }

    /// The same inputs on a device.
    ///
    /// # Errors
    /// If the device does not have enough memory.
    pub fn on(&self, device: &Device) -> Result<Self, CacheError> {
        let there = |x: &Tensor| x.to_device(device);
        Ok(Self { q: there(&self.q)?, k: there(&self.k)?, v: there(&self.v)? })
    }

    /// The tokens of `range`.
    ///
    /// # Errors
    /// If there are no such tokens.
    pub fn tokens(&self, range: Range<usize>) -> Result<Self, CacheError> {
        let part = |x: &Tensor| x.narrow(2, range.start, range.len());
        Ok(Self { q: part(&self.q)?, k: part(&self.k)?, v: part(&self.v)? })
    }

    /// One or more rows of the batch.
    pub(super) fn rows(&self, range: Range<usize>) -> Result<Self, CacheError> {
        let part = |x: &Tensor| x.narrow(0, range.start, range.len());
        Ok(Self { q: part(&self.q)?, k: part(&self.k)?, v: part(&self.v)? })
    }

    /// Attends to the tokens of `range` in one call. The cache must not have seen them yet.
    ///
    /// # Errors
    /// The errors of [`LayerCache::attend`].
    pub fn feed(
        &self,
        cache: &mut dyn LayerCache,
        rotary: &Rotary,
        pattern: Pattern<'_>,
        range: Range<usize>,
    ) -> Result<Tensor, CacheError> {
        let start = range.start;
        let Self { q, k, v } = self.tokens(range)?;
        let scale = 1.0 / (q.dim(3)? as f64).sqrt();
        cache.attend(&q, &k, &v, &AttendCx { start, rotary, scale, pattern })
    }
}

/// Seeded uniform numbers in -1..1.
pub fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

/// [`noise`] as a tensor of the given shape.
///
/// # Errors
/// If the tensor cannot be made.
pub fn tensor(seed: u64, shape: (usize, usize, usize, usize)) -> Result<Tensor, CacheError> {
    let n = shape.0 * shape.1 * shape.2 * shape.3;
    Ok(Tensor::from_vec(noise(seed, n), shape, &Device::Cpu)?)
}

/// The largest absolute difference between two tensors of the same shape.
///
/// # Errors
/// If they have different shapes.
pub fn largest_difference(a: &Tensor, b: &Tensor) -> Result<f32, CacheError> {
    Ok((a - b)?.abs()?.max_all()?.to_scalar::<f32>()?)
}

pub(super) fn finite(x: &Tensor) -> Result<bool, CacheError> {
    Ok(x.flatten_all()?.to_vec1::<f32>()?.iter().all(|x| x.is_finite()))
}
