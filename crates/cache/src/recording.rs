//! A wrapper that keeps what it is shown, for calibration and for prefill snapshots.

use candle_core::Tensor;
use kvcsr_codec::Footprint;

use crate::{AttendCx, CacheError, LayerCache, Rotary};

/// Any cache, plus the keys and values it was given, before position embedding, and if asked for the last queries.
pub struct Recording<C> {
    inner: C,
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
    /// Queries to keep.
    last: usize,
    /// `(B, H, at most last, D)`
    queries: Option<Tensor>,
}

impl<C: LayerCache> Recording<C> {
    /// Records what passes into `inner`.
    pub fn new(inner: C) -> Self {
        Self { inner, keys: Vec::new(), values: Vec::new(), last: 0, queries: None }
    }

    /// Keeps the queries of the last `tokens` tokens too.
    pub fn with_queries(mut self, tokens: usize) -> Self {
        self.last = tokens;
        self
    }

    /// Hands out the last queries, `(B, H, W, D)` before position embedding; none if none were asked for.
    pub fn take_queries(&mut self) -> Option<Tensor> {
        self.queries.take()
    }

    /// Keeps the last of the queries held and `q`.
    fn keep_queries(&mut self, q: &Tensor) -> Result<(), CacheError> {
        if self.last == 0 {
            return Ok(());
        }
        let all = match self.queries.take() {
            None => q.clone(),
            Some(before) => Tensor::cat(&[&before, q], 2)?,
        };
        let (tokens, kept) = (all.dim(2)?, all.dim(2)?.min(self.last));
        self.queries = Some(all.narrow(2, tokens - kept, kept)?.contiguous()?);
        Ok(())
    }

    /// Hands out what was recorded since the last call: keys and values `(B, Hkv, T, D)`, or none
    /// if nothing was.
    ///
    /// # Errors
    /// If the pieces cannot be joined.
    pub fn take(&mut self) -> Result<Option<(Tensor, Tensor)>, CacheError> {
        if self.keys.is_empty() {
            return Ok(None);
        }
        let join = |parts: &mut Vec<Tensor>| -> Result<Tensor, CacheError> {
            let joined = if parts.len() == 1 { parts[0].contiguous()? } else { Tensor::cat(parts, 2)? };
            parts.clear();
            Ok(joined)
        };
        Ok(Some((join(&mut self.keys)?, join(&mut self.values)?)))
    }
}

impl<C: LayerCache> LayerCache for Recording<C> {
    fn attend(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, cx: &AttendCx<'_>) -> Result<Tensor, CacheError> {
        let out = self.inner.attend(q, k, v, cx)?;
        self.keep_queries(q)?;
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
