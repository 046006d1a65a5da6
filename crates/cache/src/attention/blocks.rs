//! Attention on the CPU, for f32 queries over keys and values in f32, f16 or bf16. It works on tiles of queries and
//! blocks of keys.
//!
//! For each tile, the blocks of keys are processed one after the other: the scores are computed, turned into weights,
//! and used to sum values. The softmax is updated with each block (Milakov and Gimelshein 2018). So the memory does not
//! depend on the number of keys, and a tile stays in a level-2 cache. Keys and values of 16 bits are widened block by
//! block.
//!
//! With few queries, as in decode, the time goes into reading keys and values once. Then the blocks themselves are
//! divided among the threads, and their results are joined in order. Tiles and blocks do not depend on the number of
//! threads, so the results do not depend on it either.

use std::cell::RefCell;
use std::ops::Range;

use candle_core::{CpuStorage, DType, Layout, Storage, Tensor, bail};
use half::{bf16, f16};
use kvcsr_codec::kernels::{Isa, Matrix, MatrixMut, Softmax, multiply, multiply_add};
use rayon::prelude::*;

use crate::{Bias, CacheError, Pattern};

/// Query rows of a tile, over all heads of a group.
const TILE_ROWS: usize = 256;
/// Keys of a block. With the rows of a tile this is 256 KiB of scores.
const BLOCK: usize = 256;
/// Up to this number of query rows in a group, keys are scored by dot products while they are read.
const FEW_ROWS: usize = 8;
/// Keys of a block when there are few rows.
const FEW_BLOCK: usize = 256;
/// If the keys have fewer elements than this, starting threads costs more time than it saves.
const PARALLEL_FROM: usize = 1 << 14;

/// [`super::causal`] after its checks, for tensors that [`fits`] accepts: contiguous f32 queries, and `k` and `v` whose
/// rows have no gaps.
pub(super) fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
    pattern: &Pattern<'_>,
) -> Result<Tensor, CacheError> {
    let (b, h, t, d) = q.dims4()?;
    let (heads, s, _) = k.dims3()?;
    let ((q_storage, q_layout), (k_storage, k_layout), (v_storage, v_layout)) =
        (q.storage_and_layout(), k.storage_and_layout(), v.storage_and_layout());
    let call = Call {
        queries: match &*q_storage {
            Storage::Cpu(CpuStorage::F32(all)) => &all[q_layout.start_offset()..],
            _ => bail_device()?,
        },
        keys: Heads::new(&k_storage, k_layout)?,
        values: Heads::new(&v_storage, v_layout)?,
        query_heads: h,
        group: b * h / heads,
        tokens: t,
        seen: s,
        head_dim: d,
        scale: scale as f32,
        pattern,
        isa: Isa::detect(),
    };
    let mut out = vec![0f32; b * h * t * d];
    if call.group * t <= FEW_ROWS {
        call.few(&mut out);
    } else {
        call.tiled(&mut out);
    }
    Ok(Tensor::from_vec(out, (b, h, t, d), q.device())?)
}

thread_local! {
    /// Buffer of this thread for a block that is widened to f32.
    static WIDE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Whether [`attend`] can take these tensors.
pub(super) fn fits(q: &Tensor, k: &Tensor, v: &Tensor) -> bool {
    let stored = |x: &Tensor| matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16);
    let whole_rows = |x: &Tensor| matches!(x.stride(), &[_, row, 1] if row == x.dims()[2]);
    let on_cpu = [q, k, v].into_iter().all(|x| x.device().is_cpu());
    on_cpu && q.dtype() == DType::F32 && [k, v].into_iter().all(|x| stored(x) && whole_rows(x))
}

fn bail_device<T>() -> candle_core::Result<T> {
    bail!("attention in blocks takes tensors of f32, f16 or bf16 on the CPU")
}

/// Rows `(tokens, D)` of each key-value head.
struct Heads<'a> {
    all: Numbers<'a>,
    stride: usize,
}

enum Numbers<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

impl<'a> Heads<'a> {
    fn new(storage: &'a Storage, layout: &Layout) -> candle_core::Result<Self> {
        let start = layout.start_offset();
        let all = match storage {
            Storage::Cpu(CpuStorage::F32(all)) => Numbers::F32(&all[start..]),
            Storage::Cpu(CpuStorage::F16(all)) => Numbers::F16(&all[start..]),
            Storage::Cpu(CpuStorage::BF16(all)) => Numbers::Bf16(&all[start..]),
            _ => bail_device()?,
        };
        Ok(Self { all, stride: layout.stride()[0] })
    }

    /// The rows as f32: either the stored rows themselves, or a copy widened into `wide`.
    fn rows<'w>(&self, head: usize, tokens: Range<usize>, d: usize, wide: &'w mut Vec<f32>) -> &'w [f32]
    where
        'a: 'w,
    {
        let at = head * self.stride + tokens.start * d..head * self.stride + tokens.end * d;
        let isa = Isa::detect();
        let room = |wide: &'w mut Vec<f32>| {
            wide.resize(at.len(), 0.0);
            &mut wide[..]
        };
        match self.all {
            Numbers::F32(all) => &all[at],
            Numbers::F16(all) => {
                let wide = room(wide);
                isa.widen(&all[at], wide);
                wide
            }
            Numbers::Bf16(all) => {
                let wide = room(wide);
                isa.widen(&all[at], wide);
                wide
            }
        }
    }
}

struct Call<'a> {
    /// `(B, H, T, D)`
    queries: &'a [f32],
    keys: Heads<'a>,
    values: Heads<'a>,
    query_heads: usize,
    /// Query heads that share a key-value head.
    group: usize,
    tokens: usize,
    seen: usize,
    head_dim: usize,
    scale: f32,
    pattern: &'a Pattern<'a>,
    isa: Isa,
}

impl Call<'_> {
    /// The case of many queries: their tiles are divided among the threads.
    fn tiled(&self, out: &mut [f32]) {
        let (t, d) = (self.tokens, self.head_dim);
        let rows = (TILE_ROWS / self.group).clamp(1, t);
        let tiles = t.div_ceil(rows);
        // The rows of a tile are not contiguous in the output: each head of the group has its own slice.
        let mut stretches: Vec<Vec<&mut [f32]>> = Vec::new();
        for (head, out) in out.chunks_exact_mut(t * d).enumerate() {
            for (tile, stretch) in out.chunks_mut(rows * d).enumerate() {
                if head % self.group == 0 {
                    stretches.push(Vec::with_capacity(self.group));
                }
                stretches[head / self.group * tiles + tile].push(stretch);
            }
        }
        // The last tiles see the most keys, so they start first.
        stretches.into_par_iter().enumerate().rev().for_each_init(Scratch::default, |scratch, (at, mut out)| {
            let first = at % tiles * rows;
            self.tile(at / tiles, first..(first + rows).min(t), scratch, &mut out);
        });
    }

    /// Attention of the queries `tokens` of one key-value head. `out` is `(G, rows, D)`, with one slice per head of the
    /// group.
    fn tile(&self, head: usize, tokens: Range<usize>, scratch: &mut Scratch, out: &mut [&mut [f32]]) {
        let (d, rows) = (self.head_dim, tokens.len());
        let count = self.group * rows;
        let start = self.seen - self.tokens;
        scratch.queries.clear();
        for member in 0..self.group {
            let from = ((head * self.group + member) * self.tokens + tokens.start) * d;
            scratch.queries.extend(self.queries[from..from + rows * d].iter().map(|x| x * self.scale));
        }
        scratch.scores.resize(count * BLOCK, 0.0);
        scratch.sums.clear();
        scratch.sums.resize(count, Softmax::default());
        scratch.out.clear();
        scratch.out.resize(count * d, 0.0);
        let last = start + tokens.end;
        let first = (0..rows).map(|i| self.visible(head, start + tokens.start + i).0.start).min().unwrap_or(0);
        for from in (first..last).step_by(BLOCK) {
            let block = from..(from + BLOCK).min(last);
            let n = block.len();
            let scores = &mut scratch.scores[..count * n];
            let keys = self.keys.rows(head, block.clone(), d, &mut scratch.wide);
            let queries = Matrix::new(&scratch.queries, count, d);
            multiply(MatrixMut::new(scores, count, n), queries, Matrix::new(keys, n, d).transposed());
            for (row, scores) in scores.chunks_exact_mut(n).enumerate() {
                let query = start + tokens.start + row % rows;
                let sum = &mut scratch.sums[row];
                let factor = self.weigh(head, row / rows, query, &block, scores, sum);
                if factor != 1.0 {
                    scratch.out[row * d..(row + 1) * d].iter_mut().for_each(|x| *x *= factor);
                }
            }
            let values = self.values.rows(head, block, d, &mut scratch.wide);
            let out = MatrixMut::new(&mut scratch.out, count, d);
            multiply_add(out, Matrix::new(scores, count, n), Matrix::new(values, n, d));
        }
        for (member, out) in out.iter_mut().enumerate() {
            for (i, out) in out.chunks_exact_mut(d).enumerate() {
                let row = member * rows + i;
                out.copy_from_slice(&scratch.out[row * d..(row + 1) * d]);
                scratch.sums[row].normalise(out);
            }
        }
    }

    /// The case of few queries: the blocks of keys are divided among the threads.
    fn few(&self, out: &mut [f32]) {
        let d = self.head_dim;
        let rows = self.group * self.tokens;
        let heads = out.len() / (rows * d);
        let blocks = self.seen.div_ceil(FEW_BLOCK);
        let block = |at: usize| {
            let (head, from) = (at / blocks, at % blocks * FEW_BLOCK);
            self.few_in(head, from..(from + FEW_BLOCK).min(self.seen))
        };
        let all = 0..heads * blocks;
        let parts: Vec<(Vec<Softmax>, Vec<f32>)> = if self.seen * d * heads >= PARALLEL_FROM {
            all.into_par_iter().map(block).collect()
        } else {
            all.map(block).collect()
        };
        for (parts, out) in parts.chunks_exact(blocks).zip(out.chunks_exact_mut(rows * d)) {
            for (row, out) in out.chunks_exact_mut(d).enumerate() {
                let all = Softmax::joined(parts.iter().map(|(sums, _)| &sums[row]));
                for (sums, weighted) in parts.iter().filter(|(sums, _)| !sums[row].is_empty()) {
                    self.isa.axpy(out, sums[row].share(&all), &weighted[row * d..(row + 1) * d]);
                }
                all.normalise(out);
            }
        }
    }

    /// All queries of one head over one block. Returns the softmax sum of each row, and the weighted values
    /// `(rows, D)`.
    fn few_in(&self, head: usize, block: Range<usize>) -> (Vec<Softmax>, Vec<f32>) {
        let d = self.head_dim;
        let rows = self.group * self.tokens;
        let n = block.len();
        let mut wide = WIDE.take();
        let keys = self.keys.rows(head, block.clone(), d, &mut wide);
        let queries = &self.queries[head * rows * d..(head + 1) * rows * d];
        let mut scores = vec![0f32; rows * n];
        for (j, key) in keys.chunks_exact(d).enumerate() {
            for (row, query) in queries.chunks_exact(d).enumerate() {
                scores[row * n + j] = self.isa.dot(query, key) * self.scale;
            }
        }
        let values = self.values.rows(head, block.clone(), d, &mut wide);
        let (mut sums, mut out) = (vec![Softmax::default(); rows], vec![0f32; rows * d]);
        for (row, scores) in scores.chunks_exact_mut(n).enumerate() {
            let query = self.seen - self.tokens + row % self.tokens;
            self.weigh(head, row / self.tokens, query, &block, scores, &mut sums[row]);
            self.isa.add_weighted(scores, values, &mut out[row * d..(row + 1) * d]);
        }
        WIDE.set(wide);
        (sums, out)
    }

    /// Adds the bias to the scores of one query and one block of keys, and turns the scores into weights. A weight is
    /// zero where the query does not see the key. Returns the factor by which earlier sums must be multiplied.
    fn weigh(
        &self,
        head: usize,
        member: usize,
        query: usize,
        block: &Range<usize>,
        scores: &mut [f32],
        sum: &mut Softmax,
    ) -> f32 {
        let (visible, row) = self.visible(head, query);
        let from = visible.start.clamp(block.start, block.end) - block.start;
        let to = visible.end.clamp(block.start + from, block.end) - block.start;
        scores[..from].fill(0.0);
        scores[to..].fill(0.0);
        let scores = &mut scores[from..to];
        if scores.is_empty() {
            return 1.0;
        }
        if let Bias::Alibi(alibi) = self.pattern.bias {
            let slope = alibi.slopes()[(head * self.group + member) - row * self.query_heads];
            for (key, score) in (block.start + from..).zip(scores.iter_mut()) {
                *score -= slope * (query - key) as f32;
            }
        }
        sum.weigh(self.isa, scores)
    }

    /// The keys that a query sees, and its row in the batch. Every token sees itself, also a padding token.
    fn visible(&self, head: usize, query: usize) -> (Range<usize>, usize) {
        let row = head * self.group / self.query_heads;
        let first = self.pattern.reach.first_seen(query);
        (self.pattern.padding.of(row).max(first).min(query)..query + 1, row)
    }
}

#[derive(Default)]
struct Scratch {
    /// `(G rows, D)`, already scaled.
    queries: Vec<f32>,
    /// `(G rows, BLOCK)`
    scores: Vec<f32>,
    /// One softmax sum per row.
    sums: Vec<Softmax>,
    /// `(G rows, D)`
    out: Vec<f32>,
    /// A block of keys or values, `(BLOCK, D)`, widened from 16 bits.
    wide: Vec<f32>,
}
