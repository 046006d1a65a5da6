//! The keys, or the values, of one sequence: exact sinks, coded middle, exact recent tokens.

use std::ops::Range;
use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;
use kvcsr_codec::Footprint;

use super::{Block, Buffering, Codec, CodedTokens};
use crate::Window;

/// Tokens by which the buffer of recent tokens grows, and by which it may exceed them.
const SLACK: usize = 4;

/// One sequence's keys or values in all heads.
///
/// A window around a buffered method works like a cache within a cache: the method sees only the tokens between the
/// sinks and the window, and buffers those as published.
pub(super) struct Stream {
    codec: Arc<dyn Codec>,
    window: Window,
    heads: usize,
    head_dim: usize,
    held: usize,
    /// Tokens coded; the first of them is at position `window.sinks`.
    count: usize,
    coded: Box<dyn CodedTokens>,
    /// `(n, Hkv, D)`
    sinks: Vec<f16>,
    /// Position of the first token in `recent`.
    first: usize,
    /// `(n, Hkv, D)`
    recent: Vec<f16>,
}

impl Stream {
    pub(super) fn new(codec: Arc<dyn Codec>, window: Window, heads: usize, head_dim: usize) -> Self {
        let coded = codec.empty();
        let first = window.sinks;
        Self { codec, window, heads, head_dim, held: 0, count: 0, coded, sinks: Vec::new(), first, recent: Vec::new() }
    }

    /// Tokens held.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Where coded tokens begin.
    pub(super) fn sinks(&self) -> usize {
        self.window.sinks
    }

    fn token(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Takes the tokens `from ..` of `rows` `(Hkv, T, D)` and codes those whose turn it is. The exact form of tokens
    /// coded here stays until [`Stream::trim`]. Returns, per new token, the position up to which tokens were coded for
    /// it to see.
    pub(super) fn take(&mut self, rows: &[f32], from: usize, prompt: bool) -> Vec<usize> {
        let tokens = rows.len() / self.token();
        let (before, new) = (self.held, tokens - from);
        self.keep(rows, from, tokens);
        let buffering = self.codec.buffering();
        let sinks = self.window.sinks;
        let around = sinks + self.window.recent;
        let (mut coded, mut blocks, mut seen) = (self.count, Vec::<Range<usize>>::new(), Vec::with_capacity(new));
        let joins = !self.coded.keeps_blocks();
        let mut code = |from: usize, to: usize| match blocks.last_mut() {
            _ if to == from => {}
            Some(last) if joins => last.end = to,
            _ => blocks.push(from..to),
        };
        if prompt {
            let whole = buffering.of_prompt(self.held.saturating_sub(around));
            code(coded, whole);
            coded = whole;
        }
        for held in if prompt { self.held..self.held + 1 } else { before + 1..self.held + 1 } {
            if !buffering.codes_the_newest() {
                seen.push(sinks + coded);
            }
            loop {
                let next = buffering.next(coded, held.saturating_sub(around));
                if next == coded {
                    break;
                }
                code(coded, next);
                coded = next;
            }
            if buffering.codes_the_newest() {
                seen.push(sinks + coded);
            }
        }
        for block in blocks {
            self.code(block, prompt);
        }
        seen
    }

    /// Stores new tokens exactly.
    fn keep(&mut self, rows: &[f32], from: usize, tokens: usize) {
        let (d, token) = (self.head_dim, self.token());
        let new_sinks = self.window.sinks.saturating_sub(self.held).min(tokens - from);
        self.sinks.reserve_exact(new_sinks * token);
        let to_recent = tokens - from - new_sinks;
        if self.recent.capacity() - self.recent.len() < to_recent * token {
            self.recent.reserve_exact(to_recent.max(self.slack()) * token);
        }
        for t in from..tokens {
            let target = if t - from < new_sinks { &mut self.sinks } else { &mut self.recent };
            for head in rows.chunks_exact(tokens * d) {
                let at = target.len();
                target.resize(at + d, f16::ZERO);
                let mut row = [0f32; 64];
                for (to, from) in target[at..].chunks_mut(64).zip(head[t * d..(t + 1) * d].chunks(64)) {
                    let row = &mut row[..from.len()];
                    for (to, &x) in row.iter_mut().zip(from) {
                        *to = x.clamp(-65504.0, 65504.0);
                    }
                    to.convert_from_f32_slice(row);
                }
            }
        }
        self.held += tokens - from;
    }

    /// Codes the tokens `block`, counted from the first coded one.
    fn code(&mut self, block: Range<usize>, prompt: bool) {
        debug_assert_eq!(block.start, self.count);
        let (d, n) = (self.head_dim, block.len());
        let mut rows = vec![0f32; self.heads * n * d];
        let at = self.window.sinks + block.start;
        for (head, rows) in rows.chunks_exact_mut(n * d).enumerate() {
            self.exact(head, at..at + n, rows);
        }
        self.coded.append(&Block { rows: &rows, tokens: n, prompt });
        self.count = block.end;
    }

    fn slack(&self) -> usize {
        if self.codec.buffering() == Buffering::None && self.window.recent == 0 { 1 } else { SLACK }
    }

    /// Forgets the exact form of coded tokens.
    pub(super) fn trim(&mut self) {
        let token = self.token();
        let keep_from = self.window.sinks + self.count;
        let leaving = keep_from - self.first;
        if leaving > 0 {
            self.recent.drain(..leaving * token);
            self.first = keep_from;
        }
        let most = self.recent.len() + self.slack() * token;
        if self.recent.capacity() > most {
            self.recent.shrink_to(most);
        }
    }

    /// The exact form of the tokens at `positions`, all of them sinks or none, as `(n, D)`.
    pub(super) fn exact(&self, head: usize, positions: Range<usize>, out: &mut [f32]) {
        let (held, origin) =
            if positions.start < self.window.sinks { (&self.sinks, 0) } else { (&self.recent, self.first) };
        let (d, token) = (self.head_dim, self.token());
        for (position, out) in positions.zip(out.chunks_exact_mut(d)) {
            let at = (position - origin) * token + head * d;
            held[at..at + d].convert_to_f32_slice(out);
        }
    }

    /// The coded tokens at `positions`, restored, as `(n, D)`.
    pub(super) fn restored(&self, head: usize, positions: Range<usize>, out: &mut [f32]) {
        let sinks = self.window.sinks;
        self.coded.restore(head, positions.start - sinks..positions.end - sinks, out);
    }

    /// See [`CodedTokens::prepare`]; for the coded tokens before position `until`.
    pub(super) fn prepare(&self, queries: &[f32], until: usize, table: &mut Vec<f32>) -> bool {
        let tokens = until.saturating_sub(self.window.sinks).min(self.count);
        tokens > 0 && self.coded.prepare(queries, tokens, table)
    }

    /// See [`CodedTokens::score`].
    pub(super) fn score(&self, head: usize, positions: Range<usize>, table: &[f32], out: &mut [f32]) {
        let sinks = self.window.sinks;
        self.coded.score(head, positions.start - sinks..positions.end - sinks, table, out);
    }

    pub(super) fn footprint(&self) -> Footprint {
        let window = (self.sinks.capacity() + self.recent.capacity()) * size_of::<f16>();
        self.coded.footprint() + Footprint { window, ..Footprint::default() }
    }
}
