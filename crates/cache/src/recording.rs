//! A wrapper that keeps the keys and values that pass through it, for calibration and for prefill snapshots.

use candle_core::Tensor;
use kvcsr_codec::Footprint;

use crate::snapshot::OBSERVED;
use crate::{AttendCx, CacheError, LastQueries, LayerCache, Rotary};

/// Any cache, and the keys and values that it was given, before position embedding.
pub struct Recording<C> {
    inner: C,
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
    queries: Option<LastQueries>,
}

/// What one layer was given.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// `(B, Hkv, T, D)`, before position embedding.
    pub keys: Tensor,
    /// `(B, Hkv, T, D)`.
    pub values: Tensor,
    /// The last queries. `None` if no token attended.
    pub queries: Option<LastQueries>,
}

impl<C: LayerCache> Recording<C> {
    /// Wraps `inner`, and records what is passed to it.
    pub fn new(inner: C) -> Self {
        Self { inner, keys: Vec::new(), values: Vec::new(), queries: None }
    }

    /// Returns what was recorded since the last call: keys and values `(B, Hkv, T, D)`. `None` if nothing was recorded.
    ///
    /// # Errors
    /// If the recorded pieces cannot be joined.
    pub fn take(&mut self) -> Result<Option<(Tensor, Tensor)>, CacheError> {
        if self.keys.is_empty() {
            return Ok(None);
        }
        Ok(Some((joined(std::mem::take(&mut self.keys))?, joined(std::mem::take(&mut self.values))?)))
    }

    /// Drops the wrapped cache and returns what was recorded since the last [`Recording::take`]. `None` if nothing was.
    ///
    /// # Errors
    /// If the recorded pieces cannot be joined.
    pub fn finish(self) -> Result<Option<Recorded>, CacheError> {
        let Self { inner, keys, values, queries } = self;
        // The pieces are joined when the memory of the cache is free again.
        drop(inner);
        if keys.is_empty() {
            return Ok(None);
        }
        Ok(Some(Recorded { keys: joined(keys)?, values: joined(values)?, queries }))
    }
}

/// Pieces of a text as one tensor, which owns its memory.
fn joined(pieces: Vec<Tensor>) -> Result<Tensor, CacheError> {
    Ok(match &pieces[..] {
        [one] => one.contiguous()?,
        pieces => Tensor::cat(pieces, 2)?,
    })
}

impl<C> Recording<C> {
    /// The queries of the last tokens that attended, at most 64. `None` if no token attended.
    pub fn last_queries(&self) -> Option<&LastQueries> {
        self.queries.as_ref()
    }

    /// Stores a copy of the last queries, so that the call's own tensor can be freed.
    fn observe(&mut self, q: &Tensor, scale: f64) -> Result<(), CacheError> {
        let last = |x: &Tensor, most: usize| -> Result<Tensor, CacheError> {
            let tokens = x.dim(2)?;
            let kept = tokens.min(most);
            Ok(x.narrow(2, tokens - kept, kept)?.force_contiguous()?)
        };
        let new = last(q, OBSERVED)?;
        let room = OBSERVED - new.dim(2)?;
        let queries = match &self.queries {
            Some(held) if room > 0 => Tensor::cat(&[last(&held.queries, room)?, new], 2)?,
            _ => new,
        };
        self.queries = Some(LastQueries { queries, scale });
        Ok(())
    }
}

impl<C: LayerCache> LayerCache for Recording<C> {
    fn attend(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, cx: &AttendCx<'_>) -> Result<Tensor, CacheError> {
        let out = self.inner.attend(q, k, v, cx)?;
        self.observe(q, cx.scale)?;
        self.keys.push(k.clone());
        self.values.push(v.clone());
        Ok(out)
    }

    fn absorb(&mut self, k: &Tensor, v: &Tensor, rotary: &Rotary) -> Result<(), CacheError> {
        self.inner.absorb(k, v, rotary)?;
        self.keys.push(k.clone());
        self.values.push(v.clone());
        Ok(())
    }

    fn len(&self) -> usize {
        self.inner.len()
    }

    fn footprint(&self) -> Footprint {
        self.inner.footprint()
    }

    fn clear(&mut self) {
        self.inner.clear();
        self.keys.clear();
        self.values.clear();
        self.queries = None;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{DType, Device};

    use super::*;
    use crate::DenseCache;
    use crate::conformance::{Inputs, Setting};

    #[test]
    fn the_last_queries_are_those_of_the_last_tokens_whatever_the_calls() {
        let setting = Setting { batch: 1, heads: 2, kv_heads: 1, head_dim: 8 };
        let rotary = Rotary::new(8, 1e4, 256, &Device::Cpu).unwrap();
        let x = Inputs::random(setting, 150).unwrap();
        for cuts in [&[0usize, 150][..], &[0, 140, 149, 150], &[0, 1, 60, 70, 150]] {
            let mut cache = Recording::new(DenseCache::new(DType::F32));
            assert!(cache.last_queries().is_none());
            for w in cuts.windows(2) {
                x.feed(&mut cache, &rotary, Default::default(), w[0]..w[1]).unwrap();
            }
            let numbers = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let found = cache.last_queries().unwrap();
            assert_eq!(found.queries.dims(), [1, 2, OBSERVED, 8]);
            assert_eq!(numbers(&found.queries), numbers(&x.q.narrow(2, 150 - OBSERVED, OBSERVED).unwrap()));
            cache.clear();
            assert!(cache.last_queries().is_none());
        }
    }
}
