//! Attention of one layer's cache: on the codes, or on what they restore.

use std::cell::RefCell;
use std::ops::Range;

use candle_core::Tensor;
use half::f16;
use half::slice::HalfFloatSliceExt;
use kvcsr_codec::CodecError;
use kvcsr_codec::attend::{AttentionScratch, HeadAttention, RotaryTables};
use rayon::prelude::*;

use super::cache::{CsrCache, QUERY_ROWS};
use super::exact::Pair;
use super::streams::Streams;
use crate::{AttendCx, CacheError, attention};

/// Buffers of one thread, shared by all layers: a decoded token allocates nothing here.
#[derive(Default)]
struct Scratch {
    /// Queries `(G, n, D)` of a block of tokens, and what they come to.
    rows: Vec<f32>,
    attended: Vec<f32>,
    /// What each of them sees of sinks, coded and recent tokens.
    seen: [Vec<Range<usize>>; 3],
    attention: AttentionScratch,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// What one head's queries are attended with.
struct Head<'a> {
    /// `(G, T, D)`, rotated and scaled.
    queries: &'a [f32],
    tokens: usize,
    /// Position of the first query.
    start: usize,
    tables: Option<RotaryTables<'a>>,
}

impl CsrCache {
    /// Attention of rotated queries, `(B, H, T, D)`, on the codes.
    pub(super) fn attend_codes(&self, q: &Tensor, group: usize, cx: &AttendCx<'_>) -> Result<Tensor, CacheError> {
        let (_, _, tokens, d) = q.dims4()?;
        let queries = (q * cx.scale)?.flatten_all()?.to_vec1::<f32>()?;
        let mut out = vec![0.0; queries.len()];
        let per_head = group * tokens * d;
        let mut attend = |tables: Option<RotaryTables<'_>>| {
            let heads = queries.par_chunks_exact(per_head).zip(out.par_chunks_exact_mut(per_head)).enumerate();
            heads.try_for_each(|(stream, (queries, out))| {
                let head = Head { queries, tokens, start: cx.start, tables };
                SCRATCH.with_borrow_mut(|scratch| self.attend_head(stream, &head, out, scratch))
            })
        };
        if self.rope || !cx.rotary.rotates() {
            attend(None)?;
        } else {
            cx.rotary.with_tables(|cos, sin| attend(Some(RotaryTables { cos, sin })))??;
        }
        Ok(Tensor::from_vec(out, q.dims(), q.device())?)
    }

    /// Attention of the queries that share the key-value head `stream`, a block of tokens at a time.
    fn attend_head(
        &self,
        stream: usize,
        head: &Head<'_>,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), CacheError> {
        let (d, tokens) = (self.head_dim(), head.tokens);
        let (sequence, in_sequence) = (stream / self.heads(), stream % self.heads());
        // Positions within the sequence's own text are this much smaller.
        let padding = self.padding[sequence];
        let exact = self.exact.get(sequence);
        let group = head.queries.len() / (tokens * d);
        let block = (QUERY_ROWS / group).clamp(1, tokens);
        let sinks = self.seen(sequence, self.len - 1)[0].end;
        let error = |e: CodecError| self.keys.error(e);
        let keys = self.keys.head(stream).map_err(error)?;
        let values = self.values.head(stream).map_err(|e| self.values.error(e))?;
        let origins = [0, sinks, exact.map_or(0, |exact| exact.first())];
        for first in (0..tokens).step_by(block) {
            let n = block.min(tokens - first);
            scratch.rows.clear();
            for queries in head.queries.chunks_exact(tokens * d) {
                scratch.rows.extend_from_slice(&queries[first * d..(first + n) * d]);
            }
            scratch.seen.iter_mut().for_each(Vec::clear);
            for row in 0..group * n {
                let seen = self.seen(sequence, head.start + first + row % n);
                for ((to, range), origin) in scratch.seen.iter_mut().zip(seen).zip(origins) {
                    to.push(range.start.saturating_sub(origin)..range.end.saturating_sub(origin));
                }
            }
            let mut attention = HeadAttention::new(&scratch.rows, d, head.tables, &mut scratch.attention);
            if let Some(pair) = exact.and_then(|exact| exact.sinks.get(in_sequence)) {
                attention.exact(&pair.keys, &pair.values, padding, &scratch.seen[0]).map_err(error)?;
            }
            attention.coded(keys, values, padding + sinks, &scratch.seen[1]).map_err(error)?;
            if let Some(pair) = exact.and_then(|exact| exact.recent.get(in_sequence)) {
                attention.exact(&pair.keys, &pair.values, padding + origins[2], &scratch.seen[2]).map_err(error)?;
            }
            scratch.attended.resize(group * n * d, 0.0);
            attention.finish(&mut scratch.attended);
            for (out, attended) in out.chunks_exact_mut(tokens * d).zip(scratch.attended.chunks_exact(n * d)) {
                out[first * d..(first + n) * d].copy_from_slice(attended);
            }
        }
        Ok(())
    }

    /// What a query at `position` sees of its sequence, counted from the sequence's own first token:
    /// sinks, coded, recent. Padding sees nothing.
    fn seen(&self, sequence: usize, position: usize) -> [Range<usize>; 3] {
        match (position.checked_sub(self.padding[sequence]), self.exact.get(sequence)) {
            (None, _) => [0..0, 0..0, 0..0],
            (Some(own), Some(exact)) => exact.seen_from(own),
            (Some(own), None) => [0..0, 0..own + 1, 0..0],
        }
    }

    /// Attention of rotated queries after restoring what they see; with exact tokens, one query
    /// token at a time, as each sees other tokens restored.
    pub(super) fn attend_restored(&self, q: &Tensor, cx: &AttendCx<'_>) -> Result<Tensor, CacheError> {
        let tokens = q.dim(2)?;
        let step = if self.windowed() { 1 } else { tokens };
        let mut parts = Vec::with_capacity(tokens.div_ceil(step));
        for first in (0..tokens).step_by(step) {
            let n = step.min(tokens - first);
            let end = cx.start + first + n;
            let mut keys = self.restored(&self.keys, end, |pair: &Pair| &pair.keys, q)?;
            let values = self.restored(&self.values, end, |pair: &Pair| &pair.values, q)?;
            if !self.rope {
                keys = cx.rotary.apply(&keys, 0)?;
            }
            let q = q.narrow(2, first, n)?;
            parts.push(attention::causal(&q, &keys.flatten(0, 1)?, &values.flatten(0, 1)?, cx.scale, &cx.pattern)?);
        }
        Ok(if parts.len() == 1 { parts.swap_remove(0) } else { Tensor::cat(&parts, 2)? })
    }

    /// Keys or values of the first `end` positions as the token before `end` sees them,
    /// `(B, Hkv, end, D)`: sinks, restored, recent; zeros in place of padding.
    fn restored(
        &self,
        streams: &Streams,
        end: usize,
        part: fn(&Pair) -> &[f16],
        like: &Tensor,
    ) -> Result<Tensor, CacheError> {
        let (d, heads) = (self.head_dim(), self.heads());
        let mut all = vec![0f32; streams.count() * end * d];
        for (stream, out) in all.chunks_exact_mut(end * d).enumerate() {
            let sequence = stream / heads;
            let own = &mut out[self.padding[sequence].min(end) * d..];
            let [sinks, coded, recent] = self.seen(sequence, end - 1);
            streams.restore(stream, &mut own[coded.start * d..coded.end * d])?;
            let Some(exact) = self.exact.get(sequence) else { continue };
            let kept = [(&exact.sinks, sinks, 0), (&exact.recent, recent, exact.first())];
            for (pairs, at, origin) in kept.into_iter().filter(|(_, at, _)| !at.is_empty()) {
                let from = &part(&pairs[stream % heads])[(at.start - origin) * d..(at.end - origin) * d];
                from.convert_to_f32_slice(&mut own[at.start * d..at.end * d]);
            }
        }
        let shape = (self.padding.len(), heads, end, d);
        Ok(Tensor::from_vec(all, shape, like.device())?.to_dtype(like.dtype())?)
    }
}
