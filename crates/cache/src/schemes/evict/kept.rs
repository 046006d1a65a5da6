//! Tokens that were not deleted, exactly, and attention over them.

use candle_core::{Device, Tensor};
use half::f16;
use kvcsr_codec::Footprint;
use rayon::prelude::*;

use crate::{AttendCx, Bias, CacheError, Reach};

/// Queries attended at once, which bounds the memory of scores.
const QUERY_TILE: usize = 128;

/// What one key-value head of one text keeps, in order of position.
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
    pub fn push(&mut self, positions: std::ops::Range<usize>, keys: &[f16], values: &[f16]) {
        self.positions.extend(positions.map(|p| p as u32));
        self.keys.extend_from_slice(keys);
        self.values.extend_from_slice(values);
    }

    /// Deletes every token whose place in the list `keep` refuses, and the memory it took.
    pub fn retain(&mut self, head_dim: usize, keep: impl Fn(usize, u32) -> bool) {
        let mut kept = Self::default();
        for (at, &position) in self.positions.iter().enumerate().filter(|&(at, &p)| keep(at, p)) {
            kept.positions.push(position);
            let row = at * head_dim..(at + 1) * head_dim;
            kept.keys.extend_from_slice(&self.keys[row.clone()]);
            kept.values.extend_from_slice(&self.values[row]);
        }
        kept.positions.shrink_to_fit();
        kept.keys.shrink_to_fit();
        kept.values.shrink_to_fit();
        *self = kept;
    }

    pub fn footprint(&self) -> Footprint {
        Footprint {
            dense: (self.keys.capacity() + self.values.capacity()) * size_of::<f16>(),
            indices: self.positions.capacity() * size_of::<u32>(),
            ..Footprint::default()
        }
    }
}

/// Attention of the queries of one text, `(H, T, D)` after position embedding, at its positions `start ..`, over what its heads
/// keep; the new tokens are among it. `sees(query, key)` hides more than causality and reach do. Returns `(H, T, D)`.
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
            let numbers = |x: &[f16]| -> Result<Tensor, CacheError> {
                let wide: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
                Ok(Tensor::from_vec(wide, (n, d), &Device::Cpu)?)
            };
            let (keys, values) = (numbers(&head.keys)?.t()?.contiguous()?, numbers(&head.values)?);
            let own = queries.narrow(0, number * group, group)?;
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

/// What is added to the scores of queries at `places` over kept keys: `-inf` where a query does not see a key, else a linear
/// bias or 0. `(G, rows, kept)`.
fn added(
    places: std::ops::Range<usize>,
    positions: &[u32],
    cx: &AttendCx<'_>,
    members: std::ops::Range<usize>,
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
