//! The uncompressed prefill of a text, and the scores of the schemes that take it over.

use std::time::Instant;

use candle_core::{Device, Tensor};
use kvcsr_cache::{Geometry, LayerCache, PrefillSnapshot, Scheme};
use kvcsr_codec::{BitsPerChannel, Footprint, measured_bits};
use kvcsr_model::Decoder;
use rayon::prelude::*;

use super::HeldoutText;
use super::distribution::{Position, compare, log_softmax};
use crate::error::{EvalError, Result};

/// Rows of logits computed at a time, so that memory stays limited for large vocabularies.
const LOGIT_ROWS: usize = 64;

/// The uncompressed prefill of a text's context, and the distributions of the uncompressed model after it.
pub struct Reference {
    snapshot: PrefillSnapshot,
    continuation: Vec<u32>,
    /// Natural-log probabilities `(continuation - 1, V)`, row by row.
    log_probs: Vec<Vec<f32>>,
}

/// The score of one scheme on one text.
#[derive(Debug, Clone)]
pub struct ContinuationScore {
    /// Number of distributions compared.
    pub scored: usize,
    /// Sum over positions of `-ln q(next token)`.
    pub nll_sum: f64,
    /// Sum over positions of `KL(p || q)` in nats, `p` uncompressed and `q` after compression.
    pub kl_sum: f64,
    /// Number of positions at which both have the same most likely token.
    pub top1_agree: usize,
    /// Bytes allocated for the tokens of the context, over all layers.
    pub footprint: Footprint,
    /// Number of tokens of the context.
    pub tokens: usize,
    /// Number of scalars that an uncompressed cache of the context holds, see [`Geometry::channels`].
    pub channels: usize,
    /// Time to take over and compress the prefill.
    pub encode_ms: f64,
    /// Time to read the continuation, including the compression of its tokens.
    pub score_ms: f64,
}

/// The measurements of one scheme at every position of one text.
#[derive(Debug, Clone)]
pub struct Measurement {
    /// One entry per scored distribution, in order.
    pub positions: Vec<Position>,
    /// Bytes allocated over all layers per token that an uncompressed cache holds, averaged over the continuation. If some layers
    /// have a sliding window, the number of tokens is the mean over the layers.
    pub bytes_per_token: f64,
    /// Time to take over and compress the prefill.
    pub encode_ms: f64,
    /// Time per token of decoding one token at a time after the continuation, if it was requested.
    pub decode_ms_per_token: Option<f64>,
}

impl Measurement {
    /// Bits per channel from every allocated byte, averaged over the continuation.
    pub fn measured_bits(&self, geometry: Geometry) -> BitsPerChannel {
        BitsPerChannel(8.0 * self.bytes_per_token / geometry.channels_per_token() as f64)
    }

    /// `KL(p || q)` at every position, in nats.
    pub fn kl(&self) -> Vec<f64> {
        self.positions.iter().map(|position| position.kl).collect()
    }
}

impl ContinuationScore {
    /// Mean KL to the distributions of the uncompressed cache, in nats per token.
    pub fn kl(&self) -> f64 {
        self.kl_sum / self.scored as f64
    }

    /// Fraction of the positions at which the most likely token is that of the uncompressed cache, 0 to 1.
    pub fn top1(&self) -> f64 {
        self.top1_agree as f64 / self.scored as f64
    }

    /// Perplexity of the continuation.
    pub fn perplexity(&self) -> f64 {
        (self.nll_sum / self.scored as f64).exp()
    }

    /// Bits per channel from every byte allocated for the context.
    pub fn measured_bits(&self) -> BitsPerChannel {
        measured_bits(self.footprint.total(), self.channels)
    }
}

impl Reference {
    /// Prefills the context, `chunk` tokens at a time, and reads the continuation without compression.
    ///
    /// # Errors
    /// If the text has fewer than two tokens after its context, or the model cannot run it.
    pub fn new(decoder: &Decoder, text: &HeldoutText, chunk: usize, dense: &dyn Scheme) -> Result<Self> {
        let (context, continuation) = text.ids.split_at_checked(text.context).unwrap_or((&text.ids, &[]));
        if context.is_empty() || continuation.len() < 2 {
            return Err(EvalError::TooShort { found: text.ids.len(), needed: text.context.max(1) + 2 });
        }
        let snapshot = decoder.prefill(context, chunk)?;
        let mut caches = snapshot.fork(dense, decoder.rotary())?;
        let mut log_probs = Vec::with_capacity(continuation.len() - 1);
        for_each_distribution(decoder, &continuation[..continuation.len() - 1], &mut caches, |rows| {
            log_probs.extend(rows.into_par_iter().map(log_softmax).collect::<Vec<_>>());
        })?;
        Ok(Self { snapshot, continuation: continuation.to_vec(), log_probs })
    }

    /// The uncompressed prefill of the context.
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
    pub fn score(&self, decoder: &Decoder, scheme: &dyn Scheme) -> Result<ContinuationScore> {
        let started = Instant::now();
        let mut caches = self.snapshot.fork(scheme, decoder.rotary())?;
        let encode_ms = started.elapsed().as_secs_f64() * 1e3;
        let footprint = caches.iter().map(|c| c.footprint()).sum();
        check_compressed(scheme.name(), &footprint, self.snapshot.len())?;
        let started = Instant::now();
        let compared = self.read(decoder, &mut caches, self.continuation.len(), |_, _| ())?;
        let score_ms = started.elapsed().as_secs_f64() * 1e3;
        Ok(ContinuationScore {
            scored: compared.len(),
            nll_sum: compared.iter().map(|c| c.nll).sum(),
            kl_sum: compared.iter().map(|c| c.kl).sum(),
            top1_agree: compared.iter().filter(|c| c.agree).count(),
            footprint,
            tokens: self.snapshot.len(),
            channels: decoder.channels(self.snapshot.len()),
            encode_ms,
            score_ms,
        })
    }

    /// Lets `scheme` take over the prefill and read the continuation, `piece` tokens per call. Keeps the result at every position.
    /// The allocated bytes are read after every piece, so the bits are those of a cache in use. A scheme whose buffer is empty
    /// after the context therefore does not look smaller than it is. A `piece` that does not divide the block of any method, such
    /// as 193, samples several fill levels of the buffers.
    ///
    /// # Errors
    /// The same as [`Reference::score`].
    pub fn measure(&self, decoder: &Decoder, scheme: &dyn Scheme, piece: usize) -> Result<Measurement> {
        self.measure_and_decode(decoder, scheme, piece, 0)
    }

    /// Does the same as [`Reference::measure`], and then decodes the first `decode` tokens of the continuation again, one per call.
    /// This gives the time per token after that many tokens, including the output head.
    ///
    /// # Errors
    /// The same as [`Reference::score`]. The context, the continuation and the decoded tokens must fit the model's context length.
    pub fn measure_and_decode(
        &self,
        decoder: &Decoder,
        scheme: &dyn Scheme,
        piece: usize,
        decode: usize,
    ) -> Result<Measurement> {
        let started = Instant::now();
        let mut caches = self.snapshot.fork(scheme, decoder.rotary())?;
        let encode_ms = started.elapsed().as_secs_f64() * 1e3;
        let footprint = caches.iter().map(|c| c.footprint()).sum();
        check_compressed(scheme.name(), &footprint, self.snapshot.len())?;
        let mut readings = Vec::new();
        let context = self.snapshot.len();
        let per_token = decoder.geometry().channels_per_token() as f64;
        let positions = self.read(decoder, &mut caches, piece.max(1), |done, caches| {
            let bytes: usize = caches.iter().map(|c| c.footprint().total()).sum();
            readings.push((done, bytes as f64 / (decoder.channels(context + done) as f64 / per_token)));
        })?;
        // Each reading is weighted by the number of tokens in its piece.
        let mut before = 0;
        let mut weighted = 0.0;
        for (done, bytes_per_token) in readings {
            weighted += bytes_per_token * (done - before) as f64;
            before = done;
        }
        let bytes_per_token = weighted / before as f64;
        let started = Instant::now();
        for &id in self.continuation.iter().cycle().take(decode) {
            let hidden = decoder.forward_hidden(&Tensor::new(&[[id]], &Device::Cpu)?, &mut caches)?;
            decoder.head(&hidden)?.flatten_all()?.to_vec1::<f32>()?;
        }
        let decode_ms_per_token = (decode > 0).then(|| started.elapsed().as_secs_f64() * 1e3 / decode as f64);
        Ok(Measurement { positions, bytes_per_token, encode_ms, decode_ms_per_token })
    }

    /// Reads all tokens of the continuation except the last, `piece` tokens per call, and compares the distributions with those of
    /// the uncompressed model. After every call, `after` gets the number of tokens read so far and the caches.
    fn read(
        &self,
        decoder: &Decoder,
        caches: &mut [Box<dyn LayerCache>],
        piece: usize,
        mut after: impl FnMut(usize, &[Box<dyn LayerCache>]),
    ) -> Result<Vec<Position>> {
        let mut compared = Vec::with_capacity(self.log_probs.len());
        for ids in self.continuation[..self.log_probs.len()].chunks(piece) {
            for_each_distribution(decoder, ids, caches, |rows| {
                let done = compared.len();
                let reference = &self.log_probs[done..done + rows.len()];
                let next = &self.continuation[done + 1..done + 1 + rows.len()];
                let part: Vec<Position> = rows
                    .into_par_iter()
                    .zip(reference)
                    .zip(next)
                    .map(|((row, p), &token)| compare(p, &log_softmax(row), token as usize))
                    .collect();
                compared.extend(part);
            })?;
            after(compared.len(), caches);
        }
        Ok(compared)
    }
}

/// Refuses to score a compressing scheme that has not compressed anything yet.
fn check_compressed(scheme: &str, footprint: &Footprint, tokens: usize) -> Result<()> {
    let codes = footprint.indices + footprint.coefficients + footprint.packed;
    if codes == 0 && footprint.dense == 0 {
        return Err(EvalError::NothingCompressed { scheme: scheme.to_owned(), tokens });
    }
    Ok(())
}

/// Runs tokens and passes on the logits after each, in order.
fn for_each_distribution(
    decoder: &Decoder,
    ids: &[u32],
    caches: &mut [Box<dyn LayerCache>],
    mut visit: impl FnMut(Vec<Vec<f32>>),
) -> Result<()> {
    let ids = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
    let hidden = decoder.forward_hidden(&ids, caches)?;
    let rows = hidden.dim(1)?;
    for first in (0..rows).step_by(LOGIT_ROWS) {
        let part = hidden.narrow(1, first, LOGIT_ROWS.min(rows - first))?;
        visit(decoder.head(&part)?.squeeze(0)?.to_vec2::<f32>()?);
    }
    Ok(())
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
}
