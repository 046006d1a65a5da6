//! Generation with any caches, greedy or sampled.

use std::ops::ControlFlow;

use candle_core::{D, Tensor};
use candle_transformers::generation::LogitsProcessor;
use kvcsr_cache::LayerCache;

use crate::decoder::{Decoder, Logits};
use crate::error::{ModelError, Result};
use crate::stop::StopTokens;

/// How the next token is chosen.
pub enum Choice<'a> {
    /// The most likely token. If several are equal, the first one.
    Greedy,
    /// A token drawn by candle's sampler (temperature, top-k, top-p), which has its own seed.
    Sampled(&'a mut LogitsProcessor),
}

/// When generation ends.
#[derive(Debug, Clone, Copy)]
pub struct Limits<'a> {
    /// The largest number of tokens to generate.
    pub max_new_tokens: usize,
    /// Before this many tokens are generated, stop tokens are not chosen (transformers' `min_new_tokens`).
    pub min_new_tokens: usize,
    /// Tokens that end the text. They are not part of it.
    pub stop: &'a StopTokens,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// This stop token was chosen.
    Stop(u32),
    /// `max_new_tokens` tokens were generated.
    Length,
    /// The model has no more positions.
    Context,
    /// The callback requested it.
    Caller,
}

/// A generated continuation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// Its tokens, without the prompt and the stop token.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
}

impl Decoder {
    /// Continues one sequence from `logits`, `(1, V)`. They must be the logits after the last token that `caches` hold.
    ///
    /// Each token is passed to `on_token` when it is chosen. On return, the caches hold the generated tokens. They hold
    /// the last one only if a stop token followed it.
    ///
    /// # Errors
    /// The errors of [`Decoder::forward`]. With [`Choice::Greedy`] also [`ModelError::Input`], if `logits` is not
    /// `(1, V)` or contains a NaN.
    pub fn generate(
        &self,
        logits: &Tensor,
        caches: &mut [Box<dyn LayerCache>],
        mut choice: Choice<'_>,
        limits: Limits<'_>,
        mut on_token: impl FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generated> {
        let mut ids = Vec::new();
        let mut logits = logits.clone();
        let finish = loop {
            if ids.len() >= limits.max_new_tokens {
                break Finish::Length;
            }
            let barred = if ids.len() < limits.min_new_tokens { limits.stop.ids() } else { &[] };
            let next = match &mut choice {
                Choice::Greedy => self.most_likely(&logits, barred)?,
                Choice::Sampled(sampler) => sampler.sample(&self.without(&logits, barred)?)?,
            };
            if limits.stop.contains(next) {
                break Finish::Stop(next);
            }
            ids.push(next);
            if on_token(next).is_break() {
                break Finish::Caller;
            }
            if ids.len() == limits.max_new_tokens {
                break Finish::Length;
            }
            if caches.first().is_some_and(|cache| cache.len() >= self.arch().max_positions) {
                break Finish::Context;
            }
            logits = self.forward(&self.row(&[next])?, caches, Logits::Last)?;
        };
        Ok(Generated { ids, finish })
    }

    /// Converts `logits` from `(1, V)` to `(V)`, and sets those of `barred` to minus infinity.
    fn without(&self, logits: &Tensor, barred: &[u32]) -> Result<Tensor> {
        let mut row = logits.squeeze(0)?.to_vec1::<f32>()?;
        for &id in barred {
            if let Some(logit) = row.get_mut(id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(Tensor::from_vec(row, logits.dim(D::Minus1)?, logits.device())?)
    }

    /// The token with the largest logit that is not in `barred`. If several are equal, the first one.
    fn most_likely(&self, logits: &Tensor, barred: &[u32]) -> Result<u32> {
        let input = |expected: String, found: String| ModelError::Input { what: "logits", expected, found };
        if logits.dims() != [1, self.arch().vocab] {
            return Err(input(format!("[1, {}]", self.arch().vocab), format!("{:?}", logits.dims())));
        }
        let mut best: Option<(u32, f32)> = None;
        for (id, logit) in (0u32..).zip(logits.squeeze(0)?.to_vec1::<f32>()?) {
            if logit.is_nan() {
                return Err(input("numbers".to_owned(), format!("NaN for token {id}")));
            }
            if best.is_none_or(|(_, top)| logit > top) && !barred.contains(&id) {
                best = Some((id, logit));
            }
        }
        best.map(|(id, _)| id).ok_or_else(|| input("a token that is not a stop token".to_owned(), "none".to_owned()))
    }
}
