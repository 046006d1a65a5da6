//! Attention on codes: the dense cache is never formed.
//!
//! For one key-value head and all query rows that share it:
//! - Keys are coded before position embedding, so they are restored a tile at a time, rotated and
//!   scored while the tile is in the cache. Keys coded after it need no restoring: with the products
//!   `D q` of all atoms and a query, the score of a key is the sum over its codes of coefficient times
//!   product, `S s + N d` operations in all.
//! - Values are never restored. `sum_t p_t D r_t = D (sum_t p_t r_t)`: attention weight times
//!   coefficient adds up per atom, and one product with the dictionary ends the pass. For `S`
//!   tokens and `N` atoms that costs `S s + N d` instead of `S s d`.
//!
//! The softmax is taken as the tiles come (Milakov and Gimelshein 2018). Scores are only ever
//! subtracted a reference that trails their maximum by at most 16, so that the sums per
//! atom are rescaled rarely.

use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::decode::beyond;
use super::early::used;
use crate::kernels::{Isa, Softmax, correlate};
use crate::{Atoms, CodecError, Codes};

pub use crate::kernels::RotaryTables;

/// Tokens restored at a time: at 128 channels the keys are 32 KiB, a level-1 cache.
pub const TILE: usize = 64;

/// Queries from which on a matrix product is faster than one dot product after the other.
const PRODUCT_QUERIES: usize = 4;

/// Online atoms expanded at a time.
const ATOM_TILE: usize = 64;

/// How far a score may exceed the reference before everything is rescaled: `e^16` times a sum is
/// far from overflow, and a relative rounding error does not depend on it.
const SLACK: f32 = 16.0;

/// Codes of one head's keys or values, `chunks` rows per token, and the atoms they name.
#[derive(Clone, Copy, Debug)]
pub struct CodedHead<'a> {
    /// Rows `(tokens, chunks)`.
    pub codes: &'a Codes,
    /// Offline and online atoms.
    pub atoms: Atoms<'a>,
    /// Pieces of a head vector, the paper's `s_n`.
    pub chunks: usize,
}

impl CodedHead<'_> {
    fn tokens(&self) -> usize {
        self.codes.rows() / self.chunks
    }

    fn head_dim(&self) -> usize {
        self.chunks * self.atoms.width()
    }
}

/// Buffers of [`HeadAttention`], reused from call to call: once they have grown to a model's size,
/// attending allocates nothing. They take a tile of keys and, per query row, a sum for every atom.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    /// One per query.
    softmax: Vec<Softmax>,
    /// Weighted values `(Q, D)`, not yet divided by the sums.
    out: Vec<f32>,
    /// Keys of a tile `(TILE, D)`.
    keys: Vec<f32>,
    /// Scores, then weights, of a tile `(TILE, Q)`.
    weights: Vec<f32>,
    /// Codes of a tile.
    indices: Vec<u16>,
    coefficients: Vec<f32>,
    /// Attention weight times coefficient per atom, `(chunks, N, Q)`.
    sums: Vec<f32>,
    /// Products of atoms and queries, `(chunks, N, Q)`.
    products: Vec<f32>,
    /// Online atoms as f32, or a chunk of the queries.
    expanded: Vec<f32>,
    /// An exact value.
    value: Vec<f32>,
}

/// The first `n` elements, which the buffer grows to hold.
fn sized<T: Copy + Default>(buffer: &mut Vec<T>, n: usize) -> &mut [T] {
    if buffer.len() < n {
        buffer.resize(n, T::default());
    }
    &mut buffer[..n]
}

/// Softmax attention of `Q` query rows over one key-value head, in as many passes as there are
/// kinds of storage.
#[derive(Debug)]
pub struct HeadAttention<'a> {
    /// `(Q, D)`, after position embedding and scaling.
    queries: &'a [f32],
    head_dim: usize,
    /// Rotates keys; none where they are kept after position embedding, or the model has none.
    tables: Option<RotaryTables<'a>>,
    isa: Isa,
    scratch: &'a mut AttentionScratch,
}

impl<'a> HeadAttention<'a> {
    /// Attention of `queries`, `(Q, head_dim)`, rotated and scaled, over keys that `tables` rotate,
    /// or that are kept as they are to be scored.
    ///
    /// # Panics
    /// If the queries are not whole rows of an even width, or none.
    #[must_use]
    pub fn new(
        queries: &'a [f32],
        head_dim: usize,
        tables: Option<RotaryTables<'a>>,
        scratch: &'a mut AttentionScratch,
    ) -> Self {
        assert!(!queries.is_empty() && queries.len().is_multiple_of(head_dim) && head_dim.is_multiple_of(2));
        let count = queries.len() / head_dim;
        sized(&mut scratch.softmax, count).fill(Softmax::default());
        sized(&mut scratch.out, queries.len()).fill(0.0);
        sized(&mut scratch.keys, TILE * head_dim);
        sized(&mut scratch.weights, TILE * count);
        Self { queries, head_dim, tables, isa: Isa::detect(), scratch }
    }

    /// Query rows, `Q`.
    fn count(&self) -> usize {
        self.queries.len() / self.head_dim
    }

    /// Adds coded tokens, the first of them at position `start`. Query `q` sees the tokens
    /// `visible[q]` of them.
    ///
    /// # Errors
    /// If keys and values differ in tokens or width, the rotary tables end before a token's
    /// position, or a code names an atom that is not there. The sums are then of no use.
    ///
    /// # Panics
    /// If there is not one range per query.
    pub fn coded(
        &mut self,
        keys: CodedHead<'_>,
        values: CodedHead<'_>,
        start: usize,
        visible: &[Range<usize>],
    ) -> Result<(), CodecError> {
        let (d, count) = (self.head_dim, self.count());
        CodecError::length("keys' channels", d, keys.head_dim())?;
        CodecError::length("values' channels", d, values.head_dim())?;
        CodecError::length("tokens of the values", keys.tokens(), values.tokens())?;
        let seen = span(visible, keys.tokens());
        if seen.is_empty() {
            return Ok(());
        }
        self.check_positions(start + seen.end)?;
        if self.tables.is_none() {
            self.multiply(keys);
        }
        let (key_codes, value_codes) = (keys.codes.sparsity() * keys.chunks, values.codes.sparsity() * values.chunks);
        // Taken out for the loop, so that the rest of the scratch stays free to borrow.
        let mut indices = std::mem::take(&mut self.scratch.indices);
        let mut coefficients = std::mem::take(&mut self.scratch.coefficients);
        let mut sums = std::mem::take(&mut self.scratch.sums);
        sized(&mut indices, TILE * key_codes.max(value_codes));
        sized(&mut coefficients, TILE * key_codes.max(value_codes));
        sized(&mut sums, values.chunks * values.atoms.len() * count).fill(0.0);
        let mut pass = || -> Result<(), CodecError> {
            let sums = &mut sums[..values.chunks * values.atoms.len() * count];
            for first in seen.clone().step_by(TILE) {
                let n = TILE.min(seen.end - first);
                let (indices_k, coefficients_k) = (&mut indices[..n * key_codes], &mut coefficients[..n * key_codes]);
                unpack(keys, first, indices_k, coefficients_k)?;
                if self.tables.is_some() {
                    self.restore(keys, indices_k, coefficients_k);
                    self.rotate(start + first, n);
                    self.score(n);
                } else {
                    let products = &self.scratch.products[..keys.chunks * keys.atoms.len() * count];
                    let scores = &mut self.scratch.weights[..n * count];
                    self.isa.score_codes(products, keys.chunks, indices_k, coefficients_k, scores, count);
                }
                self.weigh(first, n, visible, sums);

                let (indices, coefficients) = (&mut indices[..n * value_codes], &mut coefficients[..n * value_codes]);
                unpack(values, first, indices, coefficients)?;
                let weights = &self.scratch.weights[..n * count];
                self.isa.scatter(sums, count, values.chunks, indices, coefficients, weights);
            }
            self.gather(values, sums);
            Ok(())
        };
        let done = pass();
        (self.scratch.indices, self.scratch.coefficients, self.scratch.sums) = (indices, coefficients, sums);
        done
    }

    /// Adds tokens kept exactly, f16 `(n, D)` with keys before position embedding, the first of
    /// them at position `start`. Query `q` sees the tokens `visible[q]` of them.
    ///
    /// # Errors
    /// If keys and values differ in length, or the rotary tables end before a token's position.
    ///
    /// # Panics
    /// If there is not one range per query.
    pub fn exact(
        &mut self,
        keys: &[f16],
        values: &[f16],
        start: usize,
        visible: &[Range<usize>],
    ) -> Result<(), CodecError> {
        let (d, count) = (self.head_dim, self.count());
        CodecError::length("exact values", keys.len(), values.len())?;
        let seen = span(visible, keys.len() / d);
        if seen.is_empty() {
            return Ok(());
        }
        self.check_positions(start + seen.end)?;
        sized(&mut self.scratch.value, d);
        for first in seen.clone().step_by(TILE) {
            let n = TILE.min(seen.end - first);
            keys[first * d..(first + n) * d].convert_to_f32_slice(&mut self.scratch.keys[..n * d]);
            self.rotate(start + first, n);
            self.score(n);
            self.weigh(first, n, visible, &mut []);
            let AttentionScratch { out, value, weights, .. } = &mut *self.scratch;
            let value = &mut value[..d];
            let rows = values[first * d..(first + n) * d].chunks_exact(d).zip(weights.chunks_exact(count));
            for (row, weights) in rows {
                row.convert_to_f32_slice(value);
                self.isa.gather(&mut out[..count * d], d, value, d, weights, count);
            }
        }
        Ok(())
    }

    /// Writes `softmax(scores) values` to `out`, `(Q, D)`; zeros for a query that saw nothing.
    ///
    /// # Panics
    /// If `out` has another size.
    pub fn finish(&self, out: &mut [f32]) {
        assert_eq!(out.len(), self.queries.len());
        out.copy_from_slice(&self.scratch.out[..out.len()]);
        for (out, softmax) in out.chunks_exact_mut(self.head_dim).zip(&self.scratch.softmax) {
            softmax.normalise(out);
        }
    }

    fn check_positions(&self, end: usize) -> Result<(), CodecError> {
        let Some(tables) = self.tables else { return Ok(()) };
        let positions = tables.positions(self.head_dim);
        if end <= positions { Ok(()) } else { Err(CodecError::RowRange { start: 0, end, rows: positions }) }
    }

    /// Restores the keys of a tile from their codes.
    fn restore(&mut self, keys: CodedHead<'_>, indices: &[u16], coefficients: &[f32]) {
        let (s, width) = (keys.codes.sparsity(), keys.atoms.width());
        let rows = indices.chunks_exact(s).zip(coefficients.chunks_exact(s));
        for (out, (indices, coefficients)) in self.scratch.keys.chunks_exact_mut(width).zip(rows) {
            let used = used(coefficients);
            keys.atoms.combine(self.isa, &indices[..used], &coefficients[..used], out);
        }
    }

    /// Rotates the first `n` keys of the tile, the first of them at `position`.
    fn rotate(&mut self, position: usize, n: usize) {
        let Some(tables) = self.tables else { return };
        tables.rotate(&mut self.scratch.keys[..n * self.head_dim], self.head_dim, position);
    }

    /// Scores `(n, Q)` of the tile's `n` keys.
    fn score(&mut self, n: usize) {
        let count = self.count();
        let AttentionScratch { keys, weights, .. } = &mut *self.scratch;
        let (keys, scores) = (&keys[..n * self.head_dim], &mut weights[..n * count]);
        if count < PRODUCT_QUERIES {
            self.isa.scores(keys, self.queries, self.head_dim, scores);
        } else {
            correlate(self.queries, keys, self.head_dim, scores);
        }
    }

    /// Products of every atom with the queries, `(chunks, N, Q)`: scores of keys that need no
    /// rotation are sums of these.
    fn multiply(&mut self, keys: CodedHead<'_>) {
        let (count, d, width) = (self.count(), self.head_dim, keys.atoms.width());
        let offline = keys.atoms.offline();
        let AttentionScratch { products, expanded, .. } = &mut *self.scratch;
        let products = sized(products, keys.chunks * keys.atoms.len() * count);
        let expanded = sized(expanded, count * width + ATOM_TILE * width);
        let (part, tile) = expanded.split_at_mut(count * width);
        for (c, products) in products.chunks_exact_mut(keys.atoms.len() * count).enumerate() {
            for (part, query) in part.chunks_exact_mut(width).zip(self.queries.chunks_exact(d)) {
                part.copy_from_slice(&query[c * width..(c + 1) * width]);
            }
            let (products, online_products) = products.split_at_mut(offline.len() * count);
            correlate(part, offline.atoms(), width, products);
            let Some(online) = keys.atoms.online() else { continue };
            for (t, products) in online_products.chunks_mut(ATOM_TILE * count).enumerate() {
                let atoms = &mut tile[..products.len() / count * width];
                online.expand(t * ATOM_TILE, atoms);
                correlate(part, atoms, width, products);
            }
        }
    }

    /// Turns the tile's `n` rows of scores into weights `(n, Q)` and adds them to the sums,
    /// rescaling what was summed before where a score is far above the reference.
    fn weigh(&mut self, first: usize, n: usize, visible: &[Range<usize>], sums: &mut [f32]) {
        let (count, d) = (self.count(), self.head_dim);
        assert_eq!(visible.len(), count, "a range per query");
        let AttentionScratch { weights, softmax, out, .. } = &mut *self.scratch;
        let weights = &mut weights[..n * count];
        let seen = |range: &Range<usize>| {
            (range.start.clamp(first, first + n) - first, range.end.clamp(first, first + n) - first)
        };
        for (q, range) in visible.iter().enumerate() {
            let (from, to) = seen(range);
            let top = (from..to).fold(f32::NEG_INFINITY, |m, t| m.max(weights[t * count + q]));
            let factor = softmax[q].raise(top, SLACK);
            if factor != 1.0 {
                out[q * d..(q + 1) * d].iter_mut().for_each(|x| *x *= factor);
                sums.iter_mut().skip(q).step_by(count).for_each(|x| *x *= factor);
            }
        }
        for weights in weights.chunks_exact_mut(count) {
            weights.iter_mut().zip(&*softmax).for_each(|(weight, softmax)| *weight -= softmax.reference());
        }
        self.isa.exponentials(weights, 0.0);
        for (q, range) in visible.iter().enumerate() {
            let (from, to) = seen(range);
            (0..n).filter(|t| !(from..to).contains(t)).for_each(|t| weights[t * count + q] = 0.0);
        }
        for weights in weights.chunks_exact(count) {
            softmax.iter_mut().zip(weights).for_each(|(softmax, &weight)| softmax.add(weight));
        }
    }

    /// The product with the dictionary: `sums` `(chunks, N, Q)` into the weighted values.
    fn gather(&mut self, values: CodedHead<'_>, sums: &[f32]) {
        let (count, width, d) = (self.count(), values.atoms.width(), self.head_dim);
        let offline = values.atoms.offline();
        let AttentionScratch { out, expanded, .. } = &mut *self.scratch;
        let expanded = sized(expanded, ATOM_TILE * width);
        for (c, sums) in sums.chunks_exact(values.atoms.len() * count).enumerate() {
            let out = &mut out[c * width..count * d];
            let (sums, online_sums) = sums.split_at(offline.len() * count);
            self.isa.gather(out, d, offline.atoms(), width, sums, count);
            let Some(online) = values.atoms.online() else { continue };
            for (tile, sums) in online_sums.chunks(ATOM_TILE * count).enumerate() {
                let atoms = &mut expanded[..sums.len() / count * width];
                online.expand(tile * ATOM_TILE, atoms);
                self.isa.gather(out, d, atoms, width, sums, count);
            }
        }
    }
}

/// The smallest range that holds all of `visible`, within `0..tokens`.
fn span(visible: &[Range<usize>], tokens: usize) -> Range<usize> {
    let ranges = || visible.iter().filter(|range| !range.is_empty());
    let start = ranges().map(|range| range.start).min().unwrap_or(0);
    let end = ranges().map(|range| range.end).max().unwrap_or(0).min(tokens);
    start.min(end)..end
}

/// Codes of the tokens from `first` on, as many as the slices hold.
fn unpack(head: CodedHead<'_>, first: usize, indices: &mut [u16], coefficients: &mut [f32]) -> Result<(), CodecError> {
    let s = head.codes.sparsity();
    let row = first * head.chunks;
    head.codes.unpack(row..row + indices.len() / s, indices, coefficients);
    match beyond(indices, head.atoms.len()) {
        None => Ok(()),
        Some(at) => {
            Err(CodecError::UnknownAtom { row: row + at / s, index: indices[at].into(), atoms: head.atoms.len() })
        }
    }
}
