//! A wrapper that keeps what it is shown, for calibration and for prefill snapshots.

use candle_core::Tensor;
use kvcsr_codec::Footprint;

use crate::{AttendCx, CacheError, LayerCache, Rotary};

/// Any cache, plus the keys and values it was given, before position embedding.
pub struct Recording<C> {
    inner: C,
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
}

impl<C: LayerCache> Recording<C> {
    /// Records what passes into `inner`.
    pub fn new(inner: C) -> Self {
        Self { inner, keys: Vec::new(), values: Vec::new() }
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
    }
}
