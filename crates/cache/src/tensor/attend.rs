//! Exact attention over tokens in several forms, as tensors, one tile at a time. It is `coded::attend` in tensor
//! operations.

use std::ops::Range;

use candle_core::{D, DType, Device, Tensor};

use super::stream::TensorStream;
use crate::coded::schedule::{Form, Until};
use crate::{CacheError, Reach, Rotary};

/// Query rows of a head that are processed in one pass over the tokens.
const QUERY_ROWS: usize = 512;
/// What is added to the score of a token that a query does not see.
const HIDDEN: f32 = -1e30;
/// Lower than any visible score, and higher than [`HIDDEN`].
const LOWEST: f32 = -1e20;

/// A stream, and what each query token of the call sees of it.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) stream: &'a TensorStream,
    pub(super) until: &'a [Until],
}

/// All heads of one sequence, in one call.
pub(super) struct SequenceCall<'a> {
    pub(super) keys: Seen<'a>,
    pub(super) values: Seen<'a>,
    /// The tables that rotate keys after restoring them. `None` if keys are coded after position embedding.
    pub(super) rotary: Option<&'a Rotary>,
    /// The centre that was subtracted from all keys before position embedding, `(Hkv, 1, D)`, and the tables that
    /// rotate it.
    pub(super) centre: Option<(&'a Tensor, &'a Rotary)>,
    /// Position of the first query token.
    pub(super) start: usize,
    pub(super) reach: Reach,
    /// One slope per query head, `(Hkv, G, 1, 1)`, or none.
    pub(super) slopes: Option<&'a Tensor>,
    /// Tokens of a tile.
    pub(super) tile: usize,
}

/// The query tokens of a pass, and their rows, `(Hkv, G, n)`.
struct Queries {
    tokens: Range<usize>,
    /// Query heads per key-value head.
    group: usize,
    /// `(Hkv, G n, D)`, scaled and rotated.
    rows: Tensor,
}

/// A running softmax, and the weighted sums.
struct Sums {
    /// `(Hkv, rows, 1)`
    largest: Tensor,
    weight: Tensor,
    /// `(Hkv, rows, D)`
    attended: Tensor,
}

/// One form of a tile's tokens: the tokens that some query sees in this form. If not all queries do, the mask says
/// which ones: `(G n, m)` of 0 and 1.
struct Part {
    form: Form,
    tokens: Range<usize>,
    mask: Option<Tensor>,
}

impl SequenceCall<'_> {
    /// Attention of `queries` `(Hkv, G, n, D)`, scaled and rotated. The output has the same shape.
    pub(super) fn attend(&self, queries: &Tensor) -> Result<Tensor, CacheError> {
        let (heads, group, n, d) = queries.dims4()?;
        let block = (QUERY_ROWS / group).clamp(1, n);
        let mut out = Vec::with_capacity(n.div_ceil(block));
        for first in (0..n).step_by(block) {
            let tokens = first..(first + block).min(n);
            let rows =
                queries.narrow(2, first, tokens.len())?.contiguous()?.reshape((heads, group * tokens.len(), d))?;
            let attended = self.pass(&Queries { tokens: tokens.clone(), group, rows })?;
            out.push(attended.reshape((heads, group, tokens.len(), d))?);
        }
        if out.len() == 1 { Ok(out.swap_remove(0)) } else { Ok(Tensor::cat(&out, 2)?) }
    }

    fn pass(&self, queries: &Queries) -> Result<Tensor, CacheError> {
        let (heads, rows, _) = queries.rows.dims3()?;
        let device = queries.rows.device();
        let mut sums = Sums {
            largest: Tensor::full(LOWEST, (heads, rows, 1), device)?,
            weight: Tensor::zeros((heads, rows, 1), DType::F32, device)?,
            attended: queries.rows.zeros_like()?,
        };
        let sinks = self.keys.stream.schedule.window.sinks;
        let mut at = self.reach.first_seen(self.start + queries.tokens.start);
        let end = self.start + queries.tokens.end;
        while at < end {
            let limit = if at < sinks { sinks.min(end) } else { end };
            let tile = at..(at + self.tile).min(limit);
            at = tile.end;
            self.add(queries, &tile, &mut sums)?;
        }
        // Every query sees itself. A total weight of 0 is possible only if scores exceed f32.
        Ok(sums.attended.broadcast_div(&sums.weight.maximum(f32::MIN_POSITIVE)?)?)
    }

    /// Adds the tokens of `tile` to the sums.
    fn add(&self, queries: &Queries, tile: &Range<usize>, sums: &mut Sums) -> Result<(), CacheError> {
        let mut scores = self.scores(queries, tile)?;
        if let Some(slopes) = self.slopes {
            scores = self.biased(&scores, slopes, queries, tile)?;
        }
        if let Some(hidden) = self.hidden(queries, tile, scores.device())? {
            scores = scores.broadcast_add(&hidden)?;
        }
        let largest = sums.largest.maximum(&scores.max_keepdim(D::Minus1)?)?;
        let factor = (&sums.largest - &largest)?.exp()?;
        let weights = scores.broadcast_sub(&largest)?.exp()?;
        sums.weight = ((&sums.weight * &factor)? + weights.sum_keepdim(D::Minus1)?)?;
        sums.attended = sums.attended.broadcast_mul(&factor)?;
        sums.largest = largest;
        for Part { form, tokens, mask } in self.parts(self.values, queries, tile, weights.device())? {
            let own = weights.narrow(2, tokens.start - tile.start, tokens.len())?;
            let own = match mask {
                None => own,
                Some(mask) => own.broadcast_mul(&mask.unsqueeze(0)?)?,
            };
            sums.attended = (&sums.attended + self.values.stream.sum(form, tokens, &own)?)?;
        }
        Ok(())
    }

    /// Scores of a tile, `(Hkv, rows, m)`. Each query uses the form of the keys that it sees.
    fn scores(&self, queries: &Queries, tile: &Range<usize>) -> Result<Tensor, CacheError> {
        let parts = self.parts(self.keys, queries, tile, queries.rows.device())?;
        let mixed = parts.iter().any(|part| part.mask.is_some());
        let mut all: Option<Tensor> = None;
        let mut apart = Vec::with_capacity(parts.len());
        for Part { form, tokens, mask } in parts {
            let direct = match form {
                Form::Coded if self.centre.is_none() => {
                    self.keys.stream.scores(&queries.rows, tokens.clone(), self.rotary)?
                }
                _ => None,
            };
            let scores = match direct {
                Some(scores) => scores,
                None => queries.rows.matmul(&self.keys(form, tokens.clone())?.t()?)?,
            };
            if !mixed {
                apart.push(scores);
                continue;
            }
            // If all queries of the part see the tokens in this form, the mask is all ones.
            let own = match mask {
                None => scores,
                Some(mask) => scores.broadcast_mul(&mask.unsqueeze(0)?)?,
            };
            let own = own.pad_with_zeros(2, tokens.start - tile.start, tile.end - tokens.end)?;
            all = Some(match all {
                None => own,
                Some(all) => (all + own)?,
            });
        }
        match all {
            Some(all) => Ok(all),
            None if apart.len() == 1 => Ok(apart.swap_remove(0)),
            None => Ok(Tensor::cat(&apart, 2)?),
        }
    }

    /// The keys in the form in which they are scored, `(Hkv, m, D)`.
    fn keys(&self, form: Form, tokens: Range<usize>) -> Result<Tensor, CacheError> {
        let mut keys = self.keys.stream.fetch(form, tokens.clone())?;
        if let Some(rotary) = self.rotary {
            if let Some((mean, _)) = self.centre {
                keys = keys.broadcast_add(mean)?;
            }
            return Ok(rotary.apply(&keys.unsqueeze(0)?, tokens.start)?.squeeze(0)?);
        }
        if let Some((mean, rotary)) = self.centre {
            let (heads, n, d) = keys.dims3()?;
            let mean = mean.broadcast_as((heads, n, d))?.contiguous()?;
            keys = (keys + rotary.apply(&mean.unsqueeze(0)?, tokens.start)?.squeeze(0)?)?;
        }
        Ok(keys)
    }

    /// The forms in which some query sees tokens of the tile. If the ranges of two forms overlap, they have masks.
    fn parts(
        &self,
        seen: Seen<'_>,
        queries: &Queries,
        tile: &Range<usize>,
        device: &Device,
    ) -> Result<Vec<Part>, CacheError> {
        let until = &seen.until[queries.tokens.clone()];
        let needed = |form| (form, seen.stream.schedule.needed(form, until, tile));
        let forms = || Form::ALL.map(needed).into_iter().filter(|(_, tokens)| !tokens.is_empty());
        if forms().map(|(_, tokens)| tokens.len()).sum::<usize>() == tile.len() {
            return Ok(forms().map(|(form, tokens)| Part { form, tokens, mask: None }).collect());
        }
        let mut parts = Vec::with_capacity(Form::ALL.len());
        for (form, tokens) in forms() {
            let mut mask = vec![0f32; until.len() * tokens.len()];
            for (row, until) in mask.chunks_exact_mut(tokens.len()).zip(until) {
                let own = seen.stream.schedule.needed(form, std::slice::from_ref(until), tile);
                let own = own.start.max(tokens.start)..own.end.min(tokens.end);
                if !own.is_empty() {
                    row[own.start - tokens.start..own.end - tokens.start].fill(1.0);
                }
            }
            let mask = Tensor::from_vec(mask, (until.len(), tokens.len()), device)?;
            parts.push(Part { form, mask: Some(of_heads(&mask, queries.group)?), tokens });
        }
        Ok(parts)
    }

    /// What is added to hide the tokens of a tile from the queries that do not see them, `(1, rows, m)`. `None` if no
    /// token is hidden.
    fn hidden(&self, queries: &Queries, tile: &Range<usize>, device: &Device) -> Result<Option<Tensor>, CacheError> {
        let position = |token: usize| self.start + token;
        let last_is_seen = position(queries.tokens.start) + 1 >= tile.end;
        let first_is_seen = self.reach.first_seen(position(queries.tokens.end - 1)) <= tile.start;
        if last_is_seen && first_is_seen {
            return Ok(None);
        }
        let mut hidden = vec![HIDDEN; queries.tokens.len() * tile.len()];
        for (row, token) in hidden.chunks_exact_mut(tile.len()).zip(queries.tokens.clone()) {
            let clamp = |at: usize| at.clamp(tile.start, tile.end) - tile.start;
            let from = clamp(self.reach.first_seen(position(token)));
            let to = clamp(position(token) + 1);
            if from < to {
                row[from..to].fill(0.0);
            }
        }
        let hidden = Tensor::from_vec(hidden, (queries.tokens.len(), tile.len()), device)?;
        Ok(Some(of_heads(&hidden, queries.group)?.unsqueeze(0)?))
    }

    /// Adds a bias that depends on the distance.
    fn biased(
        &self,
        scores: &Tensor,
        slopes: &Tensor,
        queries: &Queries,
        tile: &Range<usize>,
    ) -> Result<Tensor, CacheError> {
        let (heads, rows, m) = scores.dims3()?;
        let n = queries.tokens.len();
        let distances: Vec<f32> = queries
            .tokens
            .clone()
            .flat_map(|token| tile.clone().map(move |at| at as f32 - (self.start + token) as f32))
            .collect();
        let distances = Tensor::from_vec(distances, (1, 1, n, m), scores.device())?;
        let bias = slopes.broadcast_mul(&distances)?.reshape((heads, rows, m))?;
        Ok((scores + bias)?)
    }
}

/// Repeats the rows `(n, m)` of query tokens for each query head of a group: `(G n, m)`.
fn of_heads(rows: &Tensor, group: usize) -> Result<Tensor, CacheError> {
    let (n, m) = rows.dims2()?;
    Ok(rows.unsqueeze(0)?.broadcast_as((group, n, m))?.reshape((group * n, m))?)
}
