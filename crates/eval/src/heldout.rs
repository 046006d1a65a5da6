//! Quality after compression on held-out text: perplexity, KL divergence and top-1 agreement.
//!
//! A context is prefilled once, exactly. Every scheme takes over that prefill, compresses it, and
//! then reads the same continuation token by token (in one causal pass, which by the contract of
//! [`kvcsr_cache::LayerCache::attend`] is the same), compressing each token as it arrives. Its next-token distributions
//! are compared with those of the uncompressed cache at the same positions.
//!
//! Any [`Scheme`] can be scored, registered or your own:
//!
//! ```no_run
//! use kvcsr_cache::{Scheme, SchemeContext, registry};
//! use kvcsr_eval::heldout::{HeldoutText, Reference};
//!
//! # fn score(decoder: &kvcsr_model::Decoder, ids: Vec<u32>, own: &dyn Scheme) -> Result<(), Box<dyn std::error::Error>> {
//! let dense = registry::build("dense", &SchemeContext::new(decoder.geometry()))?;
//! let text = HeldoutText { context: ids.len() - 64, ids };
//! let reference = Reference::new(decoder, &text, 512, dense.as_ref())?;
//! let score = reference.score(decoder, own)?;
//! println!("{:.4} nats, {:.2} bits per channel", score.kl(), score.measured_bits(decoder.geometry()).0);
//! # Ok(()) }
//! ```
//!
//! The distribution after the context's last token is left out: it comes from the exact prefill
//! and is the same for every scheme.

use std::time::Instant;

use candle_core::{Device, Tensor};
use kvcsr_cache::{CacheError, Geometry, LayerCache, PrefillSnapshot, Scheme};
use kvcsr_codec::{BitsPerChannel, Footprint, measured_bits};
use kvcsr_model::Decoder;
use rayon::prelude::*;

/// What can go wrong while scoring held-out text.
#[derive(Debug, thiserror::Error)]
pub enum EvaluationError {
    /// The text has no continuation to score.
    #[error("a held-out text of {found} tokens is too short: {needed} are needed")]
    TooShort {
        /// Tokens of the text.
        found: usize,
        /// Tokens needed at least.
        needed: usize,
    },
    /// The scheme has coded no token of the context, so its score would be that of exact tokens.
    #[error(
        "scheme `{scheme}` has compressed none of the {tokens} tokens of context: all are in its exact window; \
         lengthen the context (evaluate.context) or shrink the window"
    )]
    NothingCompressed {
        /// The scheme.
        scheme: String,
        /// Tokens of the context.
        tokens: usize,
    },
    /// A scheme failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] kvcsr_model::ModelError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// Rows of logits taken at a time, so that memory stays bounded for large vocabularies.
const LOGIT_ROWS: usize = 64;

/// One held-out text: a context and what follows it.
#[derive(Debug, Clone)]
pub struct HeldoutText {
    /// Tokens of context and continuation.
    pub ids: Vec<u32>,
    /// How many of them are context.
    pub context: usize,
}

/// The exact prefill of a text's context and the uncompressed model's distributions after it.
pub struct Reference {
    snapshot: PrefillSnapshot,
    continuation: Vec<u32>,
    /// Natural-log probabilities `(continuation - 1, V)`, row by row.
    log_probs: Vec<Vec<f32>>,
}

/// How one scheme did on one text.
#[derive(Debug, Clone)]
pub struct ContinuationScore {
    /// Distributions compared.
    pub scored: usize,
    /// Sum over positions of `-ln q(next token)`.
    pub nll_sum: f64,
    /// Sum over positions of `KL(p || q)` in nats, `p` uncompressed and `q` after compression.
    pub kl_sum: f64,
    /// Positions where both prefer the same next token.
    pub top1_agree: usize,
    /// Bytes allocated for the context's tokens, all layers.
    pub footprint: Footprint,
    /// Tokens of the context.
    pub tokens: usize,
    /// Time to take over and compress the prefill.
    pub encode_ms: f64,
    /// Time to read the continuation, compression of its tokens included.
    pub score_ms: f64,
    /// Time per token of decoding token by token after it, where that was asked for.
    pub decode_ms_per_token: Option<f64>,
}

impl ContinuationScore {
    /// Mean KL to the uncompressed cache's distributions, in nats per token.
    pub fn kl(&self) -> f64 {
        self.kl_sum / self.scored as f64
    }

    /// Share of positions where the most likely token is that of the uncompressed cache, 0 to 1.
    pub fn top1(&self) -> f64 {
        self.top1_agree as f64 / self.scored as f64
    }

    /// Perplexity of the continuation.
    pub fn perplexity(&self) -> f64 {
        (self.nll_sum / self.scored as f64).exp()
    }

    /// Bits per channel of every byte allocated for the context.
    pub fn measured_bits(&self, geometry: Geometry) -> BitsPerChannel {
        let Geometry { layers, kv_heads, head_dim } = geometry;
        measured_bits(self.footprint.total(), self.tokens, kv_heads, head_dim, layers)
    }
}

impl Reference {
    /// Prefills the context, `chunk` tokens at a time, and reads the continuation uncompressed.
    ///
    /// # Errors
    /// If the text has fewer than two tokens after its context, or the model cannot run it.
    pub fn new(
        decoder: &Decoder,
        text: &HeldoutText,
        chunk: usize,
        dense: &dyn Scheme,
    ) -> Result<Self, EvaluationError> {
        let (context, continuation) = text.ids.split_at_checked(text.context).unwrap_or((&text.ids, &[]));
        if context.is_empty() || continuation.len() < 2 {
            return Err(EvaluationError::TooShort { found: text.ids.len(), needed: text.context.max(1) + 2 });
        }
        let snapshot = decoder.prefill(context, chunk)?;
        let mut caches = snapshot.fork(dense, decoder.rotary())?;
        let mut log_probs = Vec::with_capacity(continuation.len() - 1);
        for_each_distribution(decoder, continuation, &mut caches, |rows| {
            log_probs.extend(rows.into_par_iter().map(log_softmax).collect::<Vec<_>>());
        })?;
        Ok(Self { snapshot, continuation: continuation.to_vec(), log_probs })
    }

    /// The exact prefill of the context.
    #[must_use]
    pub fn snapshot(&self) -> &PrefillSnapshot {
        &self.snapshot
    }

    /// The tokens after the context.
    pub fn continuation(&self) -> &[u32] {
        &self.continuation
    }

    /// Lets `scheme` take over the prefill and read the continuation.
    ///
    /// # Errors
    /// If the scheme or the model fails.
    pub fn score(&self, decoder: &Decoder, scheme: &dyn Scheme) -> Result<ContinuationScore, EvaluationError> {
        self.score_and_decode(decoder, scheme, 0)
    }

    /// [`Reference::score`], and then the continuation's first `decode` tokens once more, one call each: the time that a
    /// token takes after a context of this length, head included.
    ///
    /// # Errors
    /// As [`Reference::score`]; context, continuation and decoded tokens must fit the model's context length.
    pub fn score_and_decode(
        &self,
        decoder: &Decoder,
        scheme: &dyn Scheme,
        decode: usize,
    ) -> Result<ContinuationScore, EvaluationError> {
        let started = Instant::now();
        let mut caches = self.snapshot.fork(scheme, decoder.rotary())?;
        let encode_ms = started.elapsed().as_secs_f64() * 1e3;
        let footprint = caches.iter().map(|c| c.footprint()).sum();
        check_compressed(scheme.name(), &footprint, self.snapshot.len())?;
        let started = Instant::now();
        let mut compared = Vec::with_capacity(self.log_probs.len());
        for_each_distribution(decoder, &self.continuation, &mut caches, |rows| {
            let done = compared.len();
            let reference = &self.log_probs[done..done + rows.len()];
            let next = &self.continuation[done + 1..done + 1 + rows.len()];
            let part: Vec<Comparison> = rows
                .into_par_iter()
                .zip(reference)
                .zip(next)
                .map(|((row, p), &token)| compare(p, &log_softmax(row), token as usize))
                .collect();
            compared.extend(part);
        })?;
        let score_ms = started.elapsed().as_secs_f64() * 1e3;
        let started = Instant::now();
        for &id in self.continuation.iter().cycle().take(decode) {
            let hidden = decoder.forward_hidden(&Tensor::new(&[[id]], &Device::Cpu)?, &mut caches)?;
            decoder.head(&hidden)?.flatten_all()?.to_vec1::<f32>()?;
        }
        let decode_ms_per_token = (decode > 0).then(|| started.elapsed().as_secs_f64() * 1e3 / decode as f64);
        Ok(ContinuationScore {
            scored: compared.len(),
            nll_sum: compared.iter().map(|c| c.nll).sum(),
            kl_sum: compared.iter().map(|c| c.kl).sum(),
            top1_agree: compared.iter().filter(|c| c.agree).count(),
            footprint,
            tokens: self.snapshot.len(),
            encode_ms,
            score_ms,
            decode_ms_per_token,
        })
    }
}

/// Refuses to score a compressing scheme before it has compressed anything.
fn check_compressed(scheme: &str, footprint: &Footprint, tokens: usize) -> Result<(), EvaluationError> {
    let codes = footprint.indices + footprint.coefficients + footprint.packed;
    if codes == 0 && footprint.dense == 0 {
        return Err(EvaluationError::NothingCompressed { scheme: scheme.to_owned(), tokens });
    }
    Ok(())
}

/// Runs all but the last token of the continuation and hands out rows of logits, in order.
fn for_each_distribution(
    decoder: &Decoder,
    continuation: &[u32],
    caches: &mut [Box<dyn LayerCache>],
    mut visit: impl FnMut(Vec<Vec<f32>>),
) -> Result<(), EvaluationError> {
    let ids = &continuation[..continuation.len() - 1];
    let ids = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
    let hidden = decoder.forward_hidden(&ids, caches)?;
    let rows = hidden.dim(1)?;
    for first in (0..rows).step_by(LOGIT_ROWS) {
        let part = hidden.narrow(1, first, LOGIT_ROWS.min(rows - first))?;
        visit(decoder.head(&part)?.squeeze(0)?.to_vec2::<f32>()?);
    }
    Ok(())
}

struct Comparison {
    nll: f64,
    kl: f64,
    agree: bool,
}

/// `ln softmax(x)`, with the normaliser summed in f64.
fn log_softmax(mut row: Vec<f32>) -> Vec<f32> {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|&x| f64::from(x - max).exp()).sum();
    let shift = f64::from(max) + sum.ln();
    for x in &mut row {
        *x = (f64::from(*x) - shift) as f32;
    }
    row
}

fn compare(p: &[f32], q: &[f32], next: usize) -> Comparison {
    let kl = p.iter().zip(q).map(|(&p, &q)| f64::from(p).exp() * (f64::from(p) - f64::from(q))).sum::<f64>();
    Comparison { nll: -f64::from(q[next]), kl: kl.max(0.0), agree: argmax(p) == argmax(q) }
}

fn argmax(x: &[f32]) -> usize {
    x.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (i, &v)| if v > best.1 { (i, v) } else { best }).0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn schemes_that_compressed_nothing_are_not_scored() {
        let window = Footprint { window: 100, tables: 10, ..Footprint::default() };
        let error = check_compressed("kivi-2", &window, 96).unwrap_err().to_string();
        assert!(error.contains("`kivi-2`") && error.contains("96 tokens"), "{error}");
        for footprint in [
            Footprint { packed: 1, ..window },
            Footprint { indices: 1, ..window },
            Footprint { dense: 1, ..Footprint::default() },
        ] {
            assert!(check_compressed("x", &footprint, 96).is_ok());
        }
    }

    #[test]
    fn comparison_of_two_distributions_by_hand() {
        let p = log_softmax(vec![0.0, (3f32).ln()]); // 1/4, 3/4
        let q = log_softmax(vec![(3f32).ln(), 0.0]); // 3/4, 1/4
        let c = compare(&p, &q, 1);
        assert!((c.nll - 4f64.ln()).abs() < 1e-6);
        assert!((c.kl - 0.5 * 3f64.ln()).abs() < 1e-6); // (3/4 - 1/4) ln 3
        assert!(!c.agree);
        let same = compare(&p, &p, 0);
        assert!(same.kl == 0.0 && same.agree);
    }
}
