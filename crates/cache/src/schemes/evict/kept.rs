//! Exact tokens that were not deleted, and attention over them.

use std::ops::Range;

use candle_core::{Device, Tensor};
use half::f16;
use kvcsr_codec::Footprint;
use kvcsr_codec::kernels::{Isa, Softmax};
use rayon::prelude::*;

use crate::{AttendCx, Bias, CacheError, Reach};

/// Queries that attend at a time. This limits the memory for scores.
const QUERY_TILE: usize = 128;
/// Up to this number of query rows, keys are scored in their stored form.
const FEW_ROWS: usize = 8;
/// Values that are widened to f32 at a time.
const WIDENED: usize = 256;

/// The tokens that one key-value head of one text keeps, ordered by position.
#[derive(Debug, Clone, Default)]
pub(super) struct KeptHead {
    /// Positions of the kept tokens.
    pub positions: Vec<u32>,
    /// Keys after position embedding, `(kept, D)`.
    pub keys: Vec<f16>,
    /// Values, `(kept, D)`.
    pub values: Vec<f16>,
}

impl KeptHead {
    /// Adds the tokens at `positions`; `keys` and `values` are `(tokens, D)`.
    pub fn push(&mut self, positions: Range<usize>, keys: &[f16], values: &[f16]) {
        self.positions.reserve_exact(positions.len());
        self.keys.reserve_exact(keys.len());
        self.values.reserve_exact(values.len());
        self.positions.extend(positions.map(|p| p as u32));
        self.keys.extend_from_slice(keys);
        self.values.extend_from_slice(values);
    }

    /// Removes the last `tokens` tokens.
    pub fn pop(&mut self, tokens: usize, head_dim: usize) {
        self.truncate(self.positions.len() - tokens, head_dim);
        self.shrink();
    }

    /// Deletes every token for which `keep` returns false. `keep` gets the token's index and position. Frees the memory
    /// of deleted tokens, except for space for one more token.
    pub fn retain(&mut self, head_dim: usize, keep: impl Fn(usize, u32) -> bool) {
        let (d, tokens) = (head_dim, self.positions.len());
        let (mut kept, mut at) = (0, 0);
        while at < tokens {
            let run = (at..tokens).take_while(|&place| keep(place, self.positions[place])).count();
            if kept < at {
                self.positions.copy_within(at..at + run, kept);
                self.keys.copy_within(at * d..(at + run) * d, kept * d);
                self.values.copy_within(at * d..(at + run) * d, kept * d);
            }
            kept += run;
            // The token after the run is not kept.
            at += run + 1;
        }
        self.truncate(kept, d);
        if self.positions.capacity() > kept + 1 {
            self.shrink();
        }
    }

    fn truncate(&mut self, tokens: usize, d: usize) {
        self.positions.truncate(tokens);
        self.keys.truncate(tokens * d);
        self.values.truncate(tokens * d);
    }

    fn shrink(&mut self) {
        self.positions.shrink_to_fit();
        self.keys.shrink_to_fit();
        self.values.shrink_to_fit();
    }

    /// Attention of a few scaled queries `(rows, D)`. `scores` `(rows, kept)` are added to their scores.
    fn few(&self, queries: &[f32], mut scores: Vec<f32>, d: usize) -> Vec<f32> {
        let (isa, n, rows) = (Isa::detect(), self.positions.len(), queries.len() / d);
        for (at, key) in self.keys.chunks_exact(d).enumerate() {
            for (query, scores) in queries.chunks_exact(d).zip(scores.chunks_exact_mut(n)) {
                scores[at] += isa.dot(key, query);
            }
        }
        let mut softmax = vec![Softmax::default(); rows];
        for (softmax, scores) in softmax.iter_mut().zip(scores.chunks_exact_mut(n)) {
            softmax.weigh(isa, scores);
        }
        let (mut wide, mut out) = (vec![0f32; WIDENED.min(n) * d], vec![0f32; rows * d]);
        for (block, values) in self.values.chunks(WIDENED * d).enumerate() {
            let (wide, tokens) = (&mut wide[..values.len()], values.len() / d);
            isa.widen(values, wide);
            for (scores, out) in scores.chunks_exact(n).zip(out.chunks_exact_mut(d)) {
                isa.add_weighted(&scores[block * WIDENED..][..tokens], wide, out);
            }
        }
        out.chunks_exact_mut(d).zip(&softmax).for_each(|(out, softmax)| softmax.normalise(out));
        out
    }

    pub fn footprint(&self) -> Footprint {
        Footprint {
            dense: (self.keys.capacity() + self.values.capacity()) * size_of::<f16>(),
            indices: self.positions.capacity() * size_of::<u32>(),
            ..Footprint::default()
        }
    }
}

/// Attention of the queries of one text, `(H, T, D)` after position embedding, at its positions `start ..`, over the
/// tokens that its heads keep. These already include the new tokens. `sees(query, key)` can hide more keys than
/// causality and reach do. Returns `(H, T, D)`.
pub(super) fn attend(
    queries: &Tensor,
    heads: &[KeptHead],
    (start, cx): (usize, &AttendCx<'_>),
    sees: impl Fn(usize, usize) -> bool + Sync,
) -> Result<Tensor, CacheError> {
    let (query_heads, tokens, d) = queries.dims3()?;
    let group = query_heads / heads.len();
    let outs: Vec<Tensor> = heads
        .par_iter()
        .enumerate()
        .map(|(number, head)| {
            let n = head.positions.len();
            let own = queries.narrow(0, number * group, group)?;
            if group * tokens <= FEW_ROWS {
                let members = number * group..(number + 1) * group;
                let added = added(start..start + tokens, &head.positions, cx, members, &sees);
                let own = (own * cx.scale)?.flatten_all()?.to_vec1::<f32>()?;
                return Ok(Tensor::from_vec(head.few(&own, added, d), (group, tokens, d), &Device::Cpu)?);
            }
            let numbers = |x: &[f16]| -> Result<Tensor, CacheError> {
                let mut wide = vec![0f32; x.len()];
                Isa::detect().widen(x, &mut wide);
                Ok(Tensor::from_vec(wide, (n, d), &Device::Cpu)?)
            };
            let (keys, values) = (numbers(&head.keys)?.t()?.contiguous()?, numbers(&head.values)?);
            let mut tiles = Vec::new();
            for first in (0..tokens).step_by(QUERY_TILE) {
                let rows = QUERY_TILE.min(tokens - first);
                let q = (own.narrow(1, first, rows)? * cx.scale)?.reshape((group * rows, d))?;
                let places = start + first..start + first + rows;
                let added = added(places, &head.positions, cx, number * group..(number + 1) * group, &sees);
                let added = Tensor::from_vec(added, (group * rows, n), &Device::Cpu)?;
                let scores = (q.matmul(&keys)? + added)?;
                let out = candle_nn::ops::softmax_last_dim(&scores)?.matmul(&values)?;
                tiles.push(out.reshape((group, rows, d))?);
            }
            Ok(Tensor::cat(&tiles, 1)?)
        })
        .collect::<Result<_, CacheError>>()?;
    Ok(Tensor::cat(&outs, 0)?)
}

/// What is added to the scores of the queries at `places` over the kept keys, `(G, rows, kept)`: `-inf` if a query does
/// not see a key, otherwise a linear bias or 0.
fn added(
    places: Range<usize>,
    positions: &[u32],
    cx: &AttendCx<'_>,
    members: Range<usize>,
    sees: &impl Fn(usize, usize) -> bool,
) -> Vec<f32> {
    let reach = match cx.pattern.reach {
        Reach::Full => usize::MAX,
        Reach::Sliding(tokens) => tokens.max(1),
    };
    let mut all = Vec::with_capacity(members.len() * places.len() * positions.len());
    for member in members {
        let slope = match cx.pattern.bias {
            Bias::None => 0.0,
            Bias::Alibi(alibi) => alibi.slopes()[member],
        };
        for query in places.clone() {
            all.extend(positions.iter().map(|&key| {
                let key = key as usize;
                let visible = key == query || (key < query && query - key < reach && sees(query, key));
                if visible { -slope * (query - key) as f32 } else { f32::NEG_INFINITY }
            }));
        }
    }
    all
}
