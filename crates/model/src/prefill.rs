//! The exact prefill. Every scheme starts from it.

use candle_core::{DType, Tensor};
use kvcsr_cache::{DenseCache, LayerCache, Padding, PrefillSnapshot, Recorded, Recording, Scheme};

use crate::arch::Arch;
use crate::decoder::Decoder;
use crate::error::{ModelError, Result};

/// A prompt in compressed caches, see [`Decoder::prefill_compressed`].
pub struct CompressedPrompt {
    /// One cache per layer.
    pub caches: Vec<Box<dyn LayerCache>>,
    /// Logits after the last token, `(1, V)`.
    pub last_logits: Tensor,
}

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
        let (mut keys, mut values, mut queries) = (Vec::new(), Vec::new(), Vec::new());
        let last_logits = self.prefill_layers(ids, chunk, |_, layer| {
            keys.push(layer.keys);
            values.push(layer.values);
            queries.extend(layer.queries);
            Ok(())
        })?;
        Ok(PrefillSnapshot { keys, values, queries, last_logits })
    }

    /// The same as [`Decoder::prefill`] and then [`PrefillSnapshot::fork`], but every layer is compressed before the next
    /// one is computed. So only one layer is held uncompressed, beside the residual stream of the prompt,
    /// `(T, hidden)` in f32. The caches have the same bits.
    ///
    /// # Errors
    /// The errors of [`Decoder::prefill`]. Also if the scheme cannot take a layer.
    pub fn prefill_compressed(&self, ids: &[u32], chunk: usize, scheme: &dyn Scheme) -> Result<CompressedPrompt> {
        let mut caches = Vec::with_capacity(self.arch().layers);
        let last_logits = self.prefill_layers(ids, chunk, |layer, Recorded { keys, values, queries }| {
            let rotary = self.rotary().of(layer);
            let cache = match &queries {
                Some(queries) => scheme.after_observed_prefill(layer, &keys, &values, queries, rotary),
                None => scheme.after_prefill(layer, &keys, &values, rotary),
            };
            caches.push(cache.map_err(ModelError::cache(layer))?);
            Ok(())
        })?;
        Ok(CompressedPrompt { caches, last_logits })
    }

    /// Takes a prompt through one layer after the other, and gives each layer's keys and values to `done`. Returns the logits
    /// after the last token.
    fn prefill_layers(
        &self,
        ids: &[u32],
        chunk: usize,
        mut done: impl FnMut(usize, Recorded) -> Result<()>,
    ) -> Result<Tensor> {
        if chunk == 0 {
            return Err(ModelError::Input {
                what: "chunk",
                expected: "at least one token".to_owned(),
                found: "0".to_owned(),
            });
        }
        self.arch().check_prompt(ids)?;
        let mut stream = ids.chunks(chunk).map(|piece| self.embed(&self.row(piece)?)).collect::<Result<Vec<_>>>()?;
        for layer in 0..self.arch().layers {
            let mut cache = Recording::new(DenseCache::new(DType::F32));
            let mut start = 0;
            for x in &mut stream {
                let tokens = x.dim(0)?;
                *x = self.pass(layer, x, (1, tokens), &mut cache, start, Padding::None)?;
                start += tokens;
            }
            done(
                layer,
                cache.finish().map_err(ModelError::cache(layer))?.expect("every layer attended at least once"),
            )?;
        }
        let last = stream.last().expect("a prompt has tokens");
        Ok(self.head(&last.narrow(0, last.dim(0)? - 1, 1)?.unsqueeze(0)?)?.squeeze(1)?)
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
