//! One sequence's sparse codes, and its adaptive atoms.

use std::ops::Range;
use std::sync::LazyLock;

use kvcsr_codec::{Atoms, Footprint, OnlineAtoms, OrthogonalCodes, from_e4m3, score_codes, to_e4m3};

use super::Settings;
use crate::coded::{Block, CodedTokens, ScoresCodes, TILE, reserve};
use crate::schemes::sparse;

/// The numbers that coefficients stand for.
static VALUES: LazyLock<[f32; 256]> = LazyLock::new(|| std::array::from_fn(|code| from_e4m3(code as u8)));

/// Codes of one head. Without a threshold all rows have `S` entries; with one, `lengths` says how many.
#[derive(Default)]
struct Head {
    rows: usize,
    indices: Vec<u16>,
    coefficients: Vec<u8>,
    lengths: Vec<u8>,
    /// The first entry of every [`TILE`]th row.
    starts: Vec<u32>,
}

/// Coded keys or values of one sequence.
pub(super) struct LexicoTokens {
    settings: Settings,
    heads: Vec<Head>,
    adaptive: OnlineAtoms,
}

/// Codes of some rows as the pursuit gives them.
#[derive(Default)]
struct Fresh {
    indices: Vec<u16>,
    coefficients: Vec<f32>,
    lengths: Vec<u8>,
    residuals: Vec<f32>,
}

impl LexicoTokens {
    pub(super) fn new(settings: Settings) -> Self {
        let heads = (0..settings.heads).map(|_| Head::default()).collect();
        let adaptive = OnlineAtoms::new(settings.encoder.dictionary().width());
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

    /// Token by token, head by head: a vector that misses the threshold becomes an atom, which those after it can use.
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
                    fresh.lengths[0] = 1;
                    (fresh.indices[0], fresh.coefficients[0]) = ((offline + kept) as u16, norm);
                }
                self.heads[head].push(&fresh, self.settings.sparsity, true);
            }
        }
    }
}

impl Head {
    /// Keeps codes, only the entries used where lengths vary.
    fn push(&mut self, fresh: &Fresh, sparsity: usize, varying: bool) {
        let n = fresh.lengths.len();
        let (rows, each) =
            if varying { (fresh.lengths.iter().map(|&l| usize::from(l)).sum(), 1) } else { (n, sparsity) };
        reserve(&mut self.indices, rows, each);
        reserve(&mut self.coefficients, rows, each);
        if varying {
            reserve(&mut self.lengths, n, 1);
        }
        let rows = fresh.indices.chunks_exact(sparsity).zip(fresh.coefficients.chunks_exact(sparsity));
        for ((indices, coefficients), &length) in rows.zip(&fresh.lengths) {
            let used = if varying { usize::from(length) } else { sparsity };
            if varying {
                if self.rows.is_multiple_of(TILE) {
                    reserve(&mut self.starts, 1, 1);
                    self.starts.push(self.indices.len() as u32);
                }
                self.lengths.push(length);
            }
            self.indices.extend_from_slice(&indices[..used]);
            self.coefficients.extend(coefficients[..used].iter().map(|&c| to_e4m3(c)));
            self.rows += 1;
        }
    }

    /// Where the entries of row `token` begin.
    fn start(&self, token: usize, sparsity: usize) -> usize {
        if self.starts.is_empty() {
            return token * sparsity;
        }
        let first = token / TILE * TILE;
        self.starts[token / TILE] as usize + self.lengths[first..token].iter().map(|&l| usize::from(l)).sum::<usize>()
    }
}

impl CodedTokens for LexicoTokens {
    fn append(&mut self, block: &Block<'_>) {
        if self.settings.adaptive > 0 {
            self.append_adaptive(block);
            return;
        }
        let (sparsity, varying) = (self.settings.sparsity, self.settings.delta > 0.0);
        let each = block.rows.len() / self.heads.len();
        let mut fresh = Fresh::default();
        for (head, rows) in block.rows.chunks_exact(each).enumerate() {
            self.encode(rows, &mut fresh);
            self.heads[head].push(&fresh, sparsity, varying);
        }
    }

    fn restore(&self, head: usize, tokens: Range<usize>, out: &mut [f32]) {
        let (held, atoms, values) = (&self.heads[head], self.atoms(), &*VALUES);
        let sparsity = self.settings.sparsity;
        let mut at = held.start(tokens.start, sparsity);
        let mut coefficients = [0f32; 256];
        for (token, out) in tokens.zip(out.chunks_exact_mut(atoms.width())) {
            let length = held.lengths.get(token).map_or(sparsity, |&l| usize::from(l));
            let entries = at..at + length;
            for (c, &byte) in coefficients.iter_mut().zip(&held.coefficients[entries.clone()]) {
                *c = values[usize::from(byte)];
            }
            atoms.restore(&held.indices[entries], &coefficients[..length], out);
            at += length;
        }
    }

    fn scores_codes(&self) -> Option<&dyn ScoresCodes> {
        Some(self)
    }

    fn footprint(&self) -> Footprint {
        let own = size_of::<Self>() + self.heads.capacity() * size_of::<Head>();
        let heads = self.heads.iter().map(|head| Footprint {
            indices: head.indices.capacity() * size_of::<u16>(),
            coefficients: head.coefficients.capacity(),
            row_lengths: head.lengths.capacity() + head.starts.capacity() * size_of::<u32>(),
            ..Footprint::default()
        });
        heads.sum::<Footprint>() + self.adaptive.footprint() + Footprint { tables: own, ..Footprint::default() }
    }
}

impl ScoresCodes for LexicoTokens {
    /// With atoms of the sequence's own never: they grow from token to token.
    fn prepare(&self, queries: &[f32], tokens: usize, table: &mut Vec<f32>) -> bool {
        self.adaptive.is_empty() && sparse::prepare(self.atoms(), 1, self.settings.sparsity, queries, tokens, table)
    }

    fn score(&self, head: usize, tokens: Range<usize>, table: &[f32], out: &mut [f32]) {
        let (held, values, sparsity) = (&self.heads[head], &*VALUES, self.settings.sparsity);
        let queries = out.len() / tokens.len();
        let mut coefficients = [0f32; 512];
        let mut at = held.start(tokens.start, sparsity);
        // As many tokens at a time as have coefficients here; rows of different lengths one by one.
        let step = if held.lengths.is_empty() { coefficients.len() / sparsity } else { 1 };
        for (first, out) in tokens.step_by(step).zip(out.chunks_mut(step * queries)) {
            let codes = match held.lengths.get(first) {
                Some(&length) => usize::from(length),
                None => out.len() / queries * sparsity,
            };
            let entries = at..at + codes;
            for (c, &byte) in coefficients.iter_mut().zip(&held.coefficients[entries.clone()]) {
                *c = values[usize::from(byte)];
            }
            score_codes(table, 1, queries, &held.indices[entries], &coefficients[..codes], out);
            at += codes;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use kvcsr_codec::{Dictionary, Encoder};

    use super::*;
    use crate::coded::{Buffering, testing::variates};

    #[test]
    fn scores_on_codes_are_those_of_restored_keys() {
        let (d, atoms, heads, tokens) = (16, 40, 2, 300);
        let dictionary = Arc::new(Dictionary::normalised(d, variates(3, atoms * d)).unwrap());
        let rows = variates(4, heads * tokens * d);
        for (delta, queries) in [(0.0, 3), (0.0, 1), (0.6, 2), (0.0, 7)] {
            let settings = Settings {
                encoder: Arc::new(Encoder::new(dictionary.clone())),
                heads,
                sparsity: 5,
                delta,
                adaptive: 0,
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
