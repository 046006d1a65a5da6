//! The sparse codes of one sequence, and its adaptive atoms.

use std::ops::Range;

use kvcsr_codec::{Atoms, Codes, Footprint, OnlineAtoms, OrthogonalCodes, score_codes};

use super::Settings;
use crate::coded::{Block, CodedTokens, ScoresCodes};
use crate::schemes::sparse::{self, BUFFERS};

/// Coded keys or values of one sequence.
pub(super) struct LexicoTokens {
    settings: Settings,
    /// One per head, with rows of `S` entries. With a threshold, each row has as many entries as it needs.
    heads: Vec<Codes>,
    adaptive: OnlineAtoms,
}

/// The codes of some rows, as the pursuit returns them.
#[derive(Default)]
struct Fresh {
    indices: Vec<u16>,
    coefficients: Vec<f32>,
    lengths: Vec<u8>,
    residuals: Vec<f32>,
}

impl LexicoTokens {
    pub(super) fn new(settings: Settings) -> Self {
        let dictionary = settings.encoder.dictionary();
        let varying = settings.delta > 0.0 || settings.adaptive > 0;
        let new = if varying { Codes::ragged } else { Codes::new };
        let codes = new(settings.layout, settings.sparsity, settings.nameable());
        let heads = vec![codes; settings.heads];
        let adaptive = OnlineAtoms::new(dictionary.width());
        Self { settings, heads, adaptive }
    }

    fn atoms(&self) -> Atoms<'_> {
        let dictionary = self.settings.encoder.dictionary();
        Atoms::new(dictionary, &self.adaptive).expect("the scheme leaves room for adaptive atoms")
    }

    fn encode(&self, rows: &[f32], fresh: &mut Fresh) {
        let Settings { encoder, sparsity, delta, .. } = &self.settings;
        let n = rows.len() / encoder.dictionary().width();
        fresh.indices.resize(n * sparsity, 0);
        fresh.coefficients.resize(n * sparsity, 0.0);
        fresh.lengths.resize(n, 0);
        fresh.residuals.resize(n, 0.0);
        let codes = OrthogonalCodes {
            indices: &mut fresh.indices,
            coefficients: &mut fresh.coefficients,
            lengths: &mut fresh.lengths,
            residuals: &mut fresh.residuals,
        };
        encoder
            .encode_orthogonal(self.atoms(), rows, *sparsity, *delta, codes)
            .expect("blocks are finite f16 rows of the dictionary's width");
    }

    /// Codes token by token and head by head. A vector that misses the threshold becomes an atom. Later vectors can use
    /// it.
    fn append_adaptive(&mut self, block: &Block<'_>) {
        let d = self.settings.encoder.dictionary().width();
        let offline = self.settings.encoder.dictionary().len();
        let missed = self.settings.delta * self.settings.delta;
        let mut fresh = Fresh::default();
        for token in 0..block.tokens {
            for head in 0..self.heads.len() {
                let row = &block.rows[(head * block.tokens + token) * d..][..d];
                self.encode(row, &mut fresh);
                let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
                let kept = self.adaptive.len();
                if fresh.residuals[0] > missed && kept < self.settings.adaptive && norm > 0.0 {
                    self.adaptive.sample(std::iter::once(row));
                    fresh.coefficients.fill(0.0);
                    (fresh.indices[0], fresh.coefficients[0]) = ((offline + kept) as u16, norm);
                }
                self.heads[head].append(&fresh.indices, &fresh.coefficients);
            }
        }
    }
}

impl CodedTokens for LexicoTokens {
    fn append(&mut self, block: &Block<'_>) {
        if self.settings.adaptive > 0 {
            self.append_adaptive(block);
            return;
        }
        let mut fresh = Fresh::default();
        self.encode(block.rows, &mut fresh);
        let each = fresh.indices.len() / self.heads.len();
        let codes = fresh.indices.chunks_exact(each).zip(fresh.coefficients.chunks_exact(each));
        for (head, (indices, coefficients)) in self.heads.iter_mut().zip(codes) {
            head.append(indices, coefficients);
        }
    }

    fn restore(&self, head: usize, tokens: Range<usize>, out: &mut [f32]) {
        let mut buffers = BUFFERS.take();
        self.heads[head].restore(self.atoms(), tokens, &mut buffers, out);
        BUFFERS.set(buffers);
    }

    fn scores_codes(&self) -> Option<&dyn ScoresCodes> {
        Some(self)
    }

    fn footprint(&self) -> Footprint {
        let own = size_of::<Self>() + self.heads.capacity() * size_of::<Codes>();
        let codes: Footprint = self.heads.iter().map(Codes::footprint).sum();
        codes + self.adaptive.footprint() + Footprint { tables: own, ..Footprint::default() }
    }

    fn learns(&self) -> bool {
        self.settings.adaptive > 0
    }

    fn drop_first(&mut self, tokens: usize) {
        self.heads.iter_mut().for_each(|codes| codes.drop_first(tokens));
    }
}

impl ScoresCodes for LexicoTokens {
    /// Returns false if the sequence has its own atoms, because their number grows from token to token.
    fn prepare(&self, queries: &[f32], tokens: usize, table: &mut Vec<f32>) -> bool {
        self.adaptive.is_empty() && sparse::prepare(self.atoms(), 1, self.settings.sparsity, queries, tokens, table)
    }

    fn score(&self, head: usize, tokens: Range<usize>, table: &[f32], out: &mut [f32]) {
        let queries = out.len() / tokens.len();
        let mut buffers = BUFFERS.take();
        let (indices, coefficients) = buffers.unpacked(&self.heads[head], tokens);
        score_codes(table, 1, queries, indices, coefficients, out);
        BUFFERS.set(buffers);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use kvcsr_codec::{CodeLayout, CoefficientFormat, Dictionary, Encoder};

    use super::*;
    use crate::coded::{Buffering, TILE, testing::variates};

    #[test]
    fn scores_on_codes_are_those_of_restored_keys() {
        let (d, atoms, heads, tokens) = (16, 40, 2, 300);
        let dictionary = Arc::new(Dictionary::normalised(d, variates(3, atoms * d)).unwrap());
        let rows = variates(4, heads * tokens * d);
        let packed = CodeLayout::Packed(CoefficientFormat::Fp8);
        let bytes = CodeLayout::Bytes;
        for (delta, queries, layout) in
            [(0.0, 3, bytes), (0.0, 1, packed), (0.6, 2, bytes), (0.0, 7, bytes), (0.6, 3, packed)]
        {
            let settings = Settings {
                encoder: Arc::new(Encoder::new(dictionary.clone())),
                heads,
                sparsity: 5,
                delta,
                adaptive: 0,
                layout,
                buffering: Buffering::None,
            };
            let mut held = LexicoTokens::new(settings);
            held.append(&Block { rows: &rows, tokens, prompt: true });
            let q = variates(5, queries * d);
            let mut table = Vec::new();
            assert!(held.prepare(&q, tokens, &mut table), "{tokens} tokens are worth a table of {atoms} atoms");
            assert!(!held.prepare(&q, 4, &mut Vec::new()), "4 tokens are not");
            for (head, part) in [(0, 0..TILE), (1, TILE..2 * TILE), (1, 2 * TILE..tokens)] {
                let (mut scores, mut keys) = (vec![f32::NAN; part.len() * queries], vec![0.0; part.len() * d]);
                held.score(head, part.clone(), &table, &mut scores);
                held.restore(head, part, &mut keys);
                for (key, scores) in keys.chunks_exact(d).zip(scores.chunks_exact(queries)) {
                    for (q, score) in q.chunks_exact(d).zip(scores) {
                        let expected: f32 = q.iter().zip(key).map(|(a, b)| a * b).sum();
                        assert!((score - expected).abs() < 1e-3, "delta {delta}: {score} {expected}");
                    }
                }
            }
        }
    }
}
