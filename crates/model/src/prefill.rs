//! The exact prefill. Every scheme starts from it.

use candle_core::{DType, Tensor};
use kvcsr_cache::{DenseCache, LayerCache, Padding, PrefillSnapshot, Recording};

use crate::arch::Arch;
use crate::decoder::{Decoder, Logits};
use crate::error::{ModelError, Result};

impl Decoder {
    /// Runs a prompt through uncompressed f32 caches. Returns a state from which any scheme can start: for every layer,
    /// keys before position embedding and values, `(1, Hkv, T, D)`; the last queries; and the logits after the last
    /// token, `(1, V)`.
    ///
    /// `chunk` tokens are fed at a time. This limits the memory for activations and scores. The result does not depend
    /// on it, except for rounding. A few hundred tokens are enough for full speed.
    ///
    /// # Errors
    /// [`ModelError::Input`] if `chunk` is zero. Also the errors of [`Arch::check_prompt`], before anything is
    /// computed.
    pub fn prefill(&self, ids: &[u32], chunk: usize) -> Result<PrefillSnapshot> {
        if chunk == 0 {
            return Err(ModelError::Input {
                what: "chunk",
                expected: "at least one token".to_owned(),
                found: "0".to_owned(),
            });
        }
        self.arch().check_prompt(ids)?;
        let mut caches: Vec<_> = (0..self.arch().layers).map(|_| Recording::new(DenseCache::new(DType::F32))).collect();
        let mut borrowed: Vec<&mut dyn LayerCache> =
            caches.iter_mut().map(|cache| cache as &mut dyn LayerCache).collect();
        let split = ids.len().saturating_sub(1) / chunk * chunk;
        for piece in ids[..split].chunks(chunk) {
            self.forward_over(&self.row(piece)?, &mut borrowed, Logits::None, Padding::None)?;
        }
        let last_logits = self.forward_over(&self.row(&ids[split..])?, &mut borrowed, Logits::Last, Padding::None)?;

        let mut keys = Vec::with_capacity(caches.len());
        let mut values = Vec::with_capacity(caches.len());
        let mut queries = Vec::with_capacity(caches.len());
        for (layer, cache) in caches.iter_mut().enumerate() {
            let recorded = cache.take().map_err(ModelError::cache(layer))?;
            let (k, v) = recorded.expect("every layer attended at least once");
            keys.push(k);
            values.push(v);
            queries.extend(cache.last_queries().cloned());
        }
        Ok(PrefillSnapshot { keys, values, queries, last_logits })
    }

    /// One sequence of ids as a `(1, T)` tensor for [`Decoder::forward`].
    ///
    /// # Errors
    /// If the tensor cannot be made on the decoder's device.
    pub fn row(&self, ids: &[u32]) -> Result<Tensor> {
        Ok(Tensor::new(ids, self.device())?.unsqueeze(0)?)
    }
}

impl Arch {
    /// Checks that a prompt can be prefilled: it is not longer than the model's context, and all its ids are in the
    /// vocabulary.
    ///
    /// # Errors
    /// [`ModelError::Input`], with the length and the limit, or with the id that is too large and its position.
    pub fn check_prompt(&self, ids: &[u32]) -> Result<()> {
        let input = |expected: String, found: String| Err(ModelError::Input { what: "prompt", expected, found });
        let (positions, vocab) = (self.max_positions, self.vocab);
        if ids.is_empty() {
            return input("at least one token".to_owned(), "none".to_owned());
        }
        if ids.len() > positions {
            return input(format!("at most {positions} positions of the model"), format!("{} tokens", ids.len()));
        }
        match ids.iter().position(|id| *id as usize >= vocab) {
            Some(at) => {
                input(format!("ids below {vocab}, the model's vocabulary"), format!("id {} at index {at}", ids[at]))
            }
            None => Ok(()),
        }
    }
}
