//! Exact attention over tokens in several forms, one tile at a time.
//!
//! Within one call of many tokens, a token may be exact for the first queries and coded for the later ones. Such a
//! token is scored in both forms, and each query takes the form that it would see if tokens came one by one. Keys and
//! values have separate schedules. The softmax is updated tile by tile (Milakov and Gimelshein 2018). A reference is
//! subtracted from the scores. It may be below their maximum by at most [`TRAIL`], so the sums are rarely rescaled.

use std::ops::Range;

use kvcsr_codec::kernels::{Isa, Matrix, MatrixMut, RotaryTables, Softmax, multiply, multiply_add};

use super::stream::{Form, Stream, Until};
use super::{ScoresCodes, SumsCodes, TILE};
use crate::Reach;

/// Query rows that are processed in one pass over the tokens.
const QUERY_ROWS: usize = 512;

/// Below this number of query rows, separate dot products are faster than a matrix product.
const FEW_ROWS: usize = 4;

/// How far a score may exceed the reference that is subtracted from it before everything is rescaled. `e^16` times a
/// sum is far from overflow.
const TRAIL: f32 = 16.0;

/// A stream, and what each query token of the call sees of it.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) stream: &'a Stream,
    pub(super) until: &'a [Until],
}

/// The centre that was subtracted from all keys of a head before position embedding, `(D,)`, and the tables that rotate
/// it to a position.
#[derive(Clone, Copy)]
pub(super) struct Centre<'a> {
    pub(super) mean: &'a [f32],
    pub(super) tables: Option<RotaryTables<'a>>,
}

/// One key-value head of one sequence, in one call.
pub(super) struct HeadCall<'a> {
    pub(super) keys: Seen<'a>,
    pub(super) values: Seen<'a>,
    pub(super) head: usize,
    pub(super) head_dim: usize,
    /// The tables that rotate keys after restoring them. `None` if keys are coded after position embedding.
    pub(super) tables: Option<RotaryTables<'a>>,
    /// Whether scores and sums are computed on the codes where the method can do so.
    pub(super) on_codes: bool,
    /// What was subtracted from all keys, if anything.
    pub(super) centre: Option<Centre<'a>>,
    /// Position of the first query token.
    pub(super) start: usize,
    pub(super) reach: Reach,
    /// One slope per query head of the group, or none.
    pub(super) slopes: Option<&'a [f32]>,
}

/// Buffers of one thread. They are reused from call to call, so a decode step allocates nothing here.
#[derive(Default)]
pub(super) struct Scratch {
    /// `(rows, D)`
    queries: Vec<f32>,
    /// `(rows, tile)`: scores, then weights.
    scores: Vec<f32>,
    /// The same for the tokens of one form only.
    part: Vec<f32>,
    /// Part of the scores or weights as `(tile, rows)`, the order in which codes take and return them.
    turned: Vec<f32>,
    /// Keys or values `(tile, D)`.
    vectors: Vec<f32>,
    /// What keys that are scored on codes need to know about the queries.
    table: Vec<f32>,
    /// Sums of values, computed on codes.
    sums: Vec<f32>,
    /// Which tokens of a tile were not forgotten.
    kept: Vec<bool>,
    /// `(rows, D)`
    attended: Vec<f32>,
    /// One per row.
    softmax: Vec<Softmax>,
}

/// The part of a pass that is computed on codes.
#[derive(Clone, Copy)]
struct OnCodes<'a> {
    scores: Option<&'a dyn ScoresCodes>,
    sums: Option<&'a dyn SumsCodes>,
}

/// The query tokens of a pass, and the number of their rows, `(G, n)`.
#[derive(Clone)]
struct QueryRows {
    tokens: Range<usize>,
    count: usize,
}

impl QueryRows {
    /// The query token of a row.
    fn token(&self, row: usize) -> usize {
        self.tokens.start + row % self.tokens.len()
    }
}

impl Seen<'_> {
    /// The range of `tile` that query token `token` sees in `form`, counted from the tile's first token.
    fn of(&self, form: Form, token: usize, tile: &Range<usize>) -> Range<usize> {
        let range = self.stream.needed(form, &self.until[token..=token], tile);
        range.start - tile.start..range.end - tile.start
    }

    /// The forms in which `rows` need tokens of `tile`, each with the range of these tokens, counted from the tile's
    /// first token.
    fn forms(&self, rows: &QueryRows, tile: &Range<usize>) -> impl Iterator<Item = (Form, Range<usize>)> {
        let until = &self.until[rows.tokens.clone()];
        let needed = Form::ALL.map(|form| (form, self.stream.needed(form, until, tile)));
        let start = tile.start;
        needed.into_iter().filter(|(_, range)| !range.is_empty()).map(move |(f, r)| (f, r.start - start..r.end - start))
    }
}

impl HeadCall<'_> {
    /// Attends only over the tokens `part`, with scaled and rotated queries `(G, T, D)` in one pass. The softmax and
    /// the sums are copied from `scratch` to `to`, and are later [joined](join) with those of the other parts.
    pub(super) fn attend_part(&self, queries: &[f32], part: Range<usize>, scratch: &mut Scratch, to: Part<'_>) {
        let tokens = self.keys.until.len();
        scratch.queries.clear();
        scratch.queries.extend_from_slice(queries);
        self.pass(&QueryRows { tokens: 0..tokens, count: queries.len() / self.head_dim }, part, scratch);
        to.softmax.copy_from_slice(&scratch.softmax);
        to.weighted.copy_from_slice(&scratch.attended);
    }

    /// Attends with scaled and rotated queries `(G, T, D)`. Writes to `out`, which has the same shape.
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
            self.pass(&QueryRows { tokens: first..first + n, count: group * n }, 0..usize::MAX, scratch);
            let rows = scratch.attended.chunks_exact_mut(d).zip(&scratch.softmax);
            rows.for_each(|(row, softmax)| softmax.normalise(row));
            for (out, attended) in out.chunks_exact_mut(tokens * d).zip(scratch.attended.chunks_exact(n * d)) {
                out[first * d..(first + n) * d].copy_from_slice(attended);
            }
        }
    }

    /// Computes the weighted sums over the tokens of `part`. They are not yet divided by the sum of the weights.
    fn pass(&self, rows: &QueryRows, part: Range<usize>, scratch: &mut Scratch) {
        let d = self.head_dim;
        reset(&mut scratch.attended, rows.count * d, 0.0);
        scratch.softmax.clear();
        scratch.softmax.resize(rows.count, Softmax::default());
        for buffer in [&mut scratch.scores, &mut scratch.part, &mut scratch.turned] {
            grow(buffer, rows.count * TILE);
        }
        grow(&mut scratch.vectors, TILE * d);
        let on_codes = self.on_codes(rows, &part, scratch);
        let sinks = self.keys.stream.sinks();
        let from = self.reach.first_seen(self.start + rows.tokens.start).max(part.start);
        let end = (self.start + rows.tokens.end).min(part.end);
        let mut at = if from < sinks { from } else { sinks + (from - sinks) / TILE * TILE };
        while at < end {
            let limit = if at < sinks { sinks.min(end) } else { end };
            let tile = at..(at + TILE).min(limit);
            at = tile.end;
            if !self.remembers(&tile, rows, scratch) {
                continue;
            }
            self.score(&tile, rows, on_codes, scratch);
            if let Some(centre) = self.centre {
                self.give_back(centre, &tile, scratch);
            }
            self.softmax(&tile, rows, scratch);
            self.gather(&tile, rows, on_codes, scratch);
        }
        if let Some(codes) = on_codes.sums {
            codes.finish(self.head, &scratch.sums, rows.count, &mut scratch.attended);
        }
    }

    /// Which scores and sums of this pass over `part` are computed on codes.
    fn on_codes(&self, rows: &QueryRows, part: &Range<usize>, scratch: &mut Scratch) -> OnCodes<'_> {
        let from = self.reach.first_seen(self.start + rows.tokens.start).max(part.start);
        let coded = |seen: &Seen<'_>| {
            let until = seen.until[rows.tokens.end - 1].coded.min(part.end);
            until.saturating_sub(from.max(seen.stream.sinks()))
        };
        let (of_keys, of_values) = (coded(&self.keys), coded(&self.values));
        scratch.sums.clear();
        let mut on_codes = OnCodes { scores: None, sums: None };
        if self.on_codes && self.tables.is_none() && of_keys > 0 {
            on_codes.scores = self
                .keys
                .stream
                .coded()
                .scores_codes()
                .filter(|codes| codes.prepare(&scratch.queries, of_keys, &mut scratch.table));
        }
        if self.on_codes && of_values > 0 {
            on_codes.sums = self.values.stream.coded().sums_codes().filter(|codes| {
                let numbers = codes.sums(rows.count, of_values);
                reset(&mut scratch.sums, numbers, 0.0);
                numbers > 0
            });
        }
        on_codes
    }

    /// Finds out which tokens of the tile were not forgotten. Returns false if no query sees any token there.
    fn remembers(&self, tile: &Range<usize>, rows: &QueryRows, scratch: &mut Scratch) -> bool {
        scratch.kept.clear();
        let coded = self.keys.stream.needed(Form::Coded, &self.keys.until[rows.tokens.clone()], tile);
        if coded.is_empty() || !self.keys.stream.coded().forgets() {
            return true;
        }
        let first = self.keys.stream.coded_from();
        scratch.kept.resize(coded.len(), false);
        self.keys.stream.coded().kept(self.head, coded.start - first..coded.end - first, &mut scratch.kept);
        let others = self.keys.forms(rows, tile).any(|(form, _)| form != Form::Coded);
        others || scratch.kept.contains(&true)
    }

    /// Scores of a tile, `(rows, tile)`. Each query uses the form of the keys that it sees.
    fn score(&self, tile: &Range<usize>, rows: &QueryRows, on_codes: OnCodes<'_>, scratch: &mut Scratch) {
        let (d, width, keys) = (self.head_dim, tile.len(), self.keys);
        let Scratch { queries, scores, part, turned, vectors, table, .. } = scratch;
        let one = keys.forms(rows, tile).count() == 1;
        for (form, tokens) in keys.forms(rows, tile) {
            let (to, stride) = if one { (&mut scores[tokens.start..], width) } else { (&mut part[..], tokens.len()) };
            let at = tile.start + tokens.start..tile.start + tokens.end;
            match on_codes.scores {
                Some(codes) if form == Form::Coded => {
                    let (first, turned) = (keys.stream.coded_from(), &mut turned[..tokens.len() * rows.count]);
                    codes.score(self.head, at.start - first..at.end - first, table, turned);
                    turn(turned, rows.count, to, stride);
                }
                _ => {
                    let vectors = &mut vectors[..tokens.len() * d];
                    keys.stream.fetch(form, self.head, at.clone(), vectors);
                    if let Some(tables) = self.tables {
                        tables.rotate(vectors, d, at.start);
                    }
                    products(vectors, queries, d, turned, Target { scores: to, stride, add: false });
                }
            }
            if one {
                continue;
            }
            for row in 0..rows.count {
                let own = keys.of(form, rows.token(row), tile);
                let scored = &part[row * stride + own.start - tokens.start..][..own.len()];
                scores[row * width + own.start..][..own.len()].copy_from_slice(scored);
            }
        }
    }

    /// Adds to the scores of a tile what the centre of its keys contributes.
    fn give_back(&self, centre: Centre<'_>, tile: &Range<usize>, scratch: &mut Scratch) {
        let (d, width) = (self.head_dim, tile.len());
        let Scratch { queries, scores, turned, vectors, .. } = scratch;
        let vectors = &mut vectors[..width * d];
        vectors.chunks_exact_mut(d).for_each(|row| row.copy_from_slice(centre.mean));
        if let Some(tables) = centre.tables {
            tables.rotate(vectors, d, tile.start);
        }
        products(vectors, queries, d, turned, Target { scores, stride: width, add: true });
    }

    /// Turns scores into weights relative to a reference. If the reference changes, rescales the sums so far.
    fn softmax(&self, tile: &Range<usize>, rows: &QueryRows, scratch: &mut Scratch) {
        let (d, width) = (self.head_dim, tile.len());
        let Scratch { scores, kept, attended, sums, softmax, .. } = scratch;
        let isa = Isa::detect();
        for (row, scores) in scores.chunks_exact_mut(width).take(rows.count).enumerate() {
            let position = self.start + rows.token(row);
            let seen = self.reach.first_seen(position).clamp(tile.start, tile.end) - tile.start
                ..(position + 1).clamp(tile.start, tile.end) - tile.start;
            scores[..seen.start].fill(0.0);
            scores[seen.end..].fill(0.0);
            if seen.is_empty() {
                continue;
            }
            if let Some(slopes) = self.slopes {
                let slope = slopes[row / rows.tokens.len()];
                for (offset, score) in scores[seen.clone()].iter_mut().enumerate() {
                    *score += slope * ((tile.start + seen.start + offset) as f32 - position as f32);
                }
            }
            if !kept.is_empty() {
                let coded = self.keys.of(Form::Coded, rows.token(row), tile).end;
                let forgotten =
                    kept.iter().enumerate().take(coded.min(seen.end)).skip(seen.start).filter(|(_, kept)| !**kept);
                forgotten.for_each(|(token, _)| scores[token] = f32::NEG_INFINITY);
            }
            let scores = &mut scores[seen];
            let largest = isa.max(scores);
            if largest == f32::NEG_INFINITY {
                scores.fill(0.0);
                continue;
            }
            let factor = softmax[row].raise(largest, TRAIL);
            if factor != 1.0 {
                attended[row * d..(row + 1) * d].iter_mut().for_each(|x| *x *= factor);
                sums.iter_mut().skip(row).step_by(rows.count).for_each(|x| *x *= factor);
            }
            let weight = isa.exponentials(scores, softmax[row].reference());
            softmax[row].add(weight);
        }
    }

    /// Adds the weighted values of a tile. Each query uses the form of the values that it sees.
    fn gather(&self, tile: &Range<usize>, rows: &QueryRows, on_codes: OnCodes<'_>, scratch: &mut Scratch) {
        let (d, width, values) = (self.head_dim, tile.len(), self.values);
        let Scratch { scores, part, turned, vectors, attended, sums, .. } = scratch;
        let one = values.forms(rows, tile).count() == 1;
        for (form, tokens) in values.forms(rows, tile) {
            let n = tokens.len();
            if !one {
                for (row, part) in part.chunks_exact_mut(n).take(rows.count).enumerate() {
                    let own = values.of(form, rows.token(row), tile);
                    part.fill(0.0);
                    let weights = &scores[row * width + own.start..][..own.len()];
                    part[own.start - tokens.start..][..own.len()].copy_from_slice(weights);
                }
            }
            let (weights, stride) = if one { (&scores[tokens.start..], width) } else { (&part[..], n) };
            let at = tile.start + tokens.start..tile.start + tokens.end;
            match on_codes.sums {
                Some(codes) if form == Form::Coded => {
                    let turned = &mut turned[..n * rows.count];
                    for (token, turned) in turned.chunks_exact_mut(rows.count).enumerate() {
                        turned.iter_mut().enumerate().for_each(|(row, to)| *to = weights[row * stride + token]);
                    }
                    let first = values.stream.coded_from();
                    codes.add(self.head, at.start - first..at.end - first, turned, rows.count, sums);
                }
                _ => {
                    let vectors = &mut vectors[..n * d];
                    values.stream.fetch(form, self.head, at, vectors);
                    if rows.count < FEW_ROWS {
                        let isa = Isa::detect();
                        let weights = weights.chunks(stride).zip(attended.chunks_exact_mut(d));
                        weights.for_each(|(weights, out)| isa.add_weighted(&weights[..n], vectors, out));
                    } else {
                        let weights = Matrix::spaced(weights, rows.count, n, stride);
                        let out = MatrixMut::new(attended, rows.count, d);
                        multiply_add(out, weights, Matrix::new(vectors, n, d));
                    }
                }
            }
        }
    }
}

/// Tokens of a part. A part begins at the start of a tile.
const PART: usize = 4 * TILE;
/// Up to this number of query rows, a pass is split into parts.
pub(super) const PART_ROWS: usize = 32;

/// Where the results of a part are written: a [`Softmax`] and weighted sums `(D,)` for each query row.
pub(super) struct Part<'a> {
    pub(super) softmax: &'a mut [Softmax],
    pub(super) weighted: &'a mut [f32],
}

/// The parts of `held` tokens, of which the first `sinks` are sinks. They do not depend on the number of threads.
pub(super) fn parts(held: usize, sinks: usize) -> impl ExactSizeIterator<Item = Range<usize>> {
    let count = held.saturating_sub(sinks).div_ceil(PART).max(1);
    (0..count).map(move |part| {
        let from = if part == 0 { 0 } else { sinks + part * PART };
        from..if part + 1 == count { usize::MAX } else { sinks + (part + 1) * PART }
    })
}

/// Joins the parts of one query row. `softmax` and `weighted` hold `rows` rows per part; the row of the first part is
/// at `row`. The result replaces the sums of the first part.
pub(super) fn join(softmax: &[Softmax], weighted: &mut [f32], (row, rows): (usize, usize), d: usize) {
    let parts = || softmax.iter().skip(row).step_by(rows);
    let whole = Softmax::joined(parts());
    for (part, softmax) in parts().enumerate() {
        let share = softmax.share(&whole);
        let (first, own) = weighted.split_at_mut(if part == 0 { 0 } else { (part * rows + row) * d });
        if part == 0 {
            own[row * d..(row + 1) * d].iter_mut().for_each(|x| *x *= share);
        } else {
            let sums = first[row * d..(row + 1) * d].iter_mut();
            sums.zip(&own[..d]).for_each(|(sum, x)| *sum += share * x);
        }
    }
    whole.normalise(&mut weighted[row * d..(row + 1) * d]);
}

/// Where scores are written: rows that are `stride` apart. The scores are added to what is there, or replace it.
struct Target<'a> {
    scores: &'a mut [f32],
    stride: usize,
    add: bool,
}

/// Scores of the keys `(n, D)` for the queries `(rows, D)`. `turned` is scratch.
fn products(keys: &[f32], queries: &[f32], d: usize, turned: &mut [f32], to: Target<'_>) {
    let (n, rows) = (keys.len() / d, queries.len() / d);
    let Target { scores, stride, add } = to;
    if rows < FEW_ROWS {
        let turned = &mut turned[..n * rows];
        Isa::detect().scores(keys, queries, d, turned);
        if !add {
            return turn(turned, rows, scores, stride);
        }
        for (token, added) in turned.chunks_exact(rows).enumerate() {
            added.iter().enumerate().for_each(|(row, x)| scores[row * stride + token] += x);
        }
    } else {
        let product = if add { multiply_add } else { multiply };
        let (queries, keys) = (Matrix::new(queries, rows, d), Matrix::new(keys, n, d));
        product(MatrixMut::spaced(scores, rows, n, stride), queries, keys.transposed());
    }
}

/// Transposes scores `(tokens, rows)` into rows that are `stride` apart.
fn turn(scores: &[f32], rows: usize, to: &mut [f32], stride: usize) {
    for (token, scores) in scores.chunks_exact(rows).enumerate() {
        scores.iter().enumerate().for_each(|(row, &score)| to[row * stride + token] = score);
    }
}

fn reset(buffer: &mut Vec<f32>, n: usize, value: f32) {
    buffer.clear();
    buffer.resize(n, value);
}

fn grow(buffer: &mut Vec<f32>, n: usize) {
    if buffer.len() < n {
        buffer.resize(n, 0.0);
    }
}
