//! One sequence's sparse codes, and its adaptive atoms.

use std::ops::Range;
use std::sync::LazyLock;

use kvcsr_codec::{Atoms, Footprint, OnlineAtoms, OrthogonalCodes, from_e4m3, to_e4m3};

use super::super::coded::{Block, CodedTokens, TILE, reserve};
use super::Settings;

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
        let entries = if varying { fresh.lengths.iter().map(|&l| usize::from(l)).sum() } else { n * sparsity };
        reserve(&mut self.indices, entries, 1);
        reserve(&mut self.coefficients, entries, 1);
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
        static VALUES: LazyLock<[f32; 256]> = LazyLock::new(|| std::array::from_fn(|code| from_e4m3(code as u8)));
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
