//! Exact attention over tokens that are restored a tile at a time.
//!
//! Within one call of many tokens, a token may be exact for the first queries and coded for the later ones. Such a
//! token is scored in both forms, and each query takes the one that it would have seen. Keys and values have separate
//! schedules. The softmax is taken as the tiles come (Milakov and Gimelshein 2018).

use std::ops::Range;

use super::TILE;
use super::product::{multiply_transposed, strided};
use super::stream::Stream;
use crate::Reach;

/// Query rows that share one pass over the tokens.
const QUERY_ROWS: usize = 512;

/// Cosines and sines, `(positions, D / 2)` each.
#[derive(Clone, Copy)]
pub(super) struct Tables<'a> {
    pub(super) cos: &'a [f32],
    pub(super) sin: &'a [f32],
}

impl Tables<'_> {
    /// Rotates rows `(n, D)`, half-split order, the first at `position`.
    pub(super) fn rotate(self, rows: &mut [f32], d: usize, position: usize) {
        let half = d / 2;
        for (i, row) in rows.chunks_exact_mut(d).enumerate() {
            let at = (position + i) * half;
            let (front, back) = row.split_at_mut(half);
            let turns = self.cos[at..at + half].iter().zip(&self.sin[at..at + half]);
            for ((a, b), (&cos, &sin)) in front.iter_mut().zip(back).zip(turns) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

/// A stream and, per query token of the call, the position up to which it sees coded tokens.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) stream: &'a Stream,
    pub(super) until: &'a [usize],
}

/// One key-value head of one sequence, in one call.
pub(super) struct HeadCall<'a> {
    pub(super) keys: Seen<'a>,
    pub(super) values: Seen<'a>,
    pub(super) head: usize,
    pub(super) head_dim: usize,
    /// To rotate keys after restoring them; none where they are coded after position embedding.
    pub(super) tables: Option<Tables<'a>>,
    /// Position of the first query token.
    pub(super) start: usize,
    pub(super) reach: Reach,
    /// A slope per query head of the group, or none.
    pub(super) slopes: Option<&'a [f32]>,
}

/// Buffers for one call, reused from tile to tile.
#[derive(Default)]
pub(super) struct Scratch {
    queries: Vec<f32>,
    scores: [Vec<f32>; 2],
    tiles: [Vec<f32>; 2],
    /// What keys that are scored as they are coded need of the queries, and whether they are.
    table: Vec<f32>,
    prepared: bool,
    attended: Vec<f32>,
    largest: Vec<f32>,
    sums: Vec<f32>,
}

/// Which tokens of a tile are needed in which form.
struct Forms {
    restored: Range<usize>,
    exact: Range<usize>,
}

impl Seen<'_> {
    /// What the queries `rows` of the call need of `tile`, which is all sinks or no sinks.
    fn forms(&self, rows: Range<usize>, tile: &Range<usize>) -> Forms {
        if tile.start < self.stream.sinks() {
            return Forms { restored: tile.start..tile.start, exact: tile.clone() };
        }
        let until = &self.until[rows];
        let (least, most) = (until[0], until[until.len() - 1]);
        let clamp = |at: usize| at.clamp(tile.start, tile.end);
        Forms { restored: tile.start..clamp(most), exact: clamp(least)..tile.end }
    }

    /// Whether query `row` sees the token at `position` coded.
    fn coded_from(&self, row: usize, tile: &Range<usize>) -> usize {
        if tile.start < self.stream.sinks() { 0 } else { self.until[row].clamp(tile.start, tile.end) - tile.start }
    }
}

impl HeadCall<'_> {
    /// Attends with scaled and rotated queries `(G, T, D)` into `out` of the same shape.
    pub(super) fn attend(&self, queries: &[f32], out: &mut [f32], scratch: &mut Scratch) {
        let (d, tokens) = (self.head_dim, self.keys.until.len());
        let group = queries.len() / (tokens * d);
        let block = (QUERY_ROWS / group).clamp(1, tokens);
        for first in (0..tokens).step_by(block) {
            let n = block.min(tokens - first);
            scratch.queries.clear();
            for queries in queries.chunks_exact(tokens * d) {
                scratch.queries.extend_from_slice(&queries[first * d..(first + n) * d]);
            }
            self.attend_block(first..first + n, group, scratch);
            for (out, attended) in out.chunks_exact_mut(tokens * d).zip(scratch.attended.chunks_exact(n * d)) {
                out[first * d..(first + n) * d].copy_from_slice(attended);
            }
        }
    }

    /// The first position that the query at `position` sees.
    fn first_seen(&self, position: usize) -> usize {
        match self.reach {
            Reach::Full => 0,
            Reach::Sliding(tokens) => (position + 1).saturating_sub(tokens.max(1)),
        }
    }

    fn attend_block(&self, block: Range<usize>, group: usize, scratch: &mut Scratch) {
        let (d, n) = (self.head_dim, block.len());
        let rows = group * n;
        reset(&mut scratch.attended, rows * d, 0.0);
        reset(&mut scratch.largest, rows, f32::NEG_INFINITY);
        reset(&mut scratch.sums, rows, 0.0);
        for tile in &mut scratch.tiles {
            tile.resize(TILE * d, 0.0);
        }
        for scores in &mut scratch.scores {
            scores.resize(rows * TILE, 0.0);
        }
        let until = self.keys.until[block.clone()].last().copied().unwrap_or(0);
        scratch.prepared =
            self.tables.is_none() && self.keys.stream.prepare(&scratch.queries, until, &mut scratch.table);
        let sinks = self.keys.stream.sinks();
        let from = self.first_seen(self.start + block.start);
        let end = self.start + block.end;
        let mut at = if from < sinks { from } else { sinks + (from - sinks) / TILE * TILE };
        while at < end {
            let limit = if at < sinks { sinks.min(end) } else { end };
            let tile = at..(at + TILE).min(limit);
            at = tile.end;
            self.score(&tile, &block, rows, scratch);
            self.softmax(&tile, &block, rows, scratch);
            self.gather(&tile, &block, rows, scratch);
        }
        for (row, &sum) in scratch.attended.chunks_exact_mut(d).zip(&scratch.sums) {
            let inverse = 1.0 / sum;
            row.iter_mut().for_each(|x| *x *= inverse);
        }
    }

    /// Scores of a tile, `(rows, tile)`, each query with the form of the keys that it sees.
    fn score(&self, tile: &Range<usize>, block: &Range<usize>, rows: usize, scratch: &mut Scratch) {
        let (d, width) = (self.head_dim, tile.len());
        let Scratch { queries, scores: [scores, other], tiles: [keys, _], table, prepared, .. } = scratch;
        let forms = self.keys.forms(block.clone(), tile);
        let (restored, exact) = (forms.restored.len(), forms.exact.len());
        if restored > 0 && *prepared {
            let other = &mut other[..restored * rows];
            self.keys.stream.score(self.head, forms.restored.clone(), table, other);
            for (token, of_token) in other.chunks_exact(rows).enumerate() {
                for (row, &score) in of_token.iter().enumerate() {
                    scores[row * width + token] = score;
                }
            }
        } else if restored > 0 {
            let keys = &mut keys[..restored * d];
            self.keys.stream.restored(self.head, forms.restored.clone(), keys);
            self.rotate(keys, forms.restored.start);
            strided([rows, d, restored], queries, d, keys, [1, d], scores, width, false);
        }
        if exact == 0 {
            return;
        }
        let keys = &mut keys[..exact * d];
        self.keys.stream.exact(self.head, forms.exact.clone(), keys);
        self.rotate(keys, forms.exact.start);
        let skipped = width - exact;
        if restored <= skipped {
            strided([rows, d, exact], queries, d, keys, [1, d], &mut scores[skipped..], width, false);
            return;
        }
        multiply_transposed([rows, d, exact], queries, keys, other);
        let n = block.len();
        for (row, (scores, other)) in
            scores.chunks_exact_mut(width).zip(other.chunks_exact(exact)).take(rows).enumerate()
        {
            let coded = self.keys.coded_from(block.start + row % n, tile).max(skipped);
            scores[coded..].copy_from_slice(&other[coded - skipped..]);
        }
    }

    fn rotate(&self, keys: &mut [f32], position: usize) {
        if let Some(tables) = self.tables {
            tables.rotate(keys, self.head_dim, position);
        }
    }

    /// Turns scores into weights relative to the largest score so far, and rescales what was gathered before.
    fn softmax(&self, tile: &Range<usize>, block: &Range<usize>, rows: usize, scratch: &mut Scratch) {
        let (d, n, width) = (self.head_dim, block.len(), tile.len());
        let Scratch { scores: [scores, _], attended, largest, sums, .. } = scratch;
        for (row, scores) in scores.chunks_exact_mut(width).take(rows).enumerate() {
            let position = self.start + block.start + row % n;
            let seen = self.first_seen(position).clamp(tile.start, tile.end) - tile.start
                ..(position + 1).clamp(tile.start, tile.end) - tile.start;
            if seen.is_empty() {
                scores.fill(0.0);
                continue;
            }
            if let Some(slopes) = self.slopes {
                let slope = slopes[row / n];
                for (offset, score) in scores.iter_mut().enumerate() {
                    *score += slope * ((tile.start + offset) as f32 - position as f32);
                }
            }
            scores[..seen.start].fill(0.0);
            scores[seen.end..].fill(0.0);
            let scores = &mut scores[seen];
            let top = scores.iter().copied().fold(largest[row], f32::max);
            if top > largest[row] {
                let factor = (largest[row] - top).exp();
                sums[row] *= factor;
                attended[row * d..(row + 1) * d].iter_mut().for_each(|x| *x *= factor);
                largest[row] = top;
            }
            let mut sum = 0.0;
            for score in scores {
                *score = (*score - top).exp();
                sum += *score;
            }
            sums[row] += sum;
        }
    }

    /// Adds the tile's values by weight, each query with the form of the values that it sees.
    fn gather(&self, tile: &Range<usize>, block: &Range<usize>, rows: usize, scratch: &mut Scratch) {
        let (d, n, width) = (self.head_dim, block.len(), tile.len());
        let Scratch { scores: [weights, other], tiles: [_, values], attended, .. } = scratch;
        let forms = self.values.forms(block.clone(), tile);
        let (restored, exact) = (forms.restored.len(), forms.exact.len());
        let skipped = width - exact;
        if restored > skipped && exact > 0 {
            for (row, (weights, other)) in
                weights.chunks_exact_mut(width).zip(other.chunks_exact_mut(exact)).take(rows).enumerate()
            {
                let coded = self.values.coded_from(block.start + row % n, tile).max(skipped);
                other[..coded - skipped].fill(0.0);
                other[coded - skipped..].copy_from_slice(&weights[coded..]);
                weights[coded..].fill(0.0);
            }
        }
        if restored > 0 {
            let values = &mut values[..restored * d];
            self.values.stream.restored(self.head, forms.restored.clone(), values);
            strided([rows, restored, d], weights, width, values, [d, 1], attended, d, true);
        }
        if exact > 0 {
            let values = &mut values[..exact * d];
            self.values.stream.exact(self.head, forms.exact.clone(), values);
            if restored > skipped {
                strided([rows, exact, d], other, exact, values, [d, 1], attended, d, true);
            } else {
                strided([rows, exact, d], &weights[skipped..], width, values, [d, 1], attended, d, true);
            }
        }
    }
}

fn reset(buffer: &mut Vec<f32>, n: usize, value: f32) {
    buffer.clear();
    buffer.resize(n, value);
}
