//! The keys or the values of one sequence as tensors: exact sinks, coded middle, graded and exact recent tokens.

use std::ops::Range;

use candle_core::{DType, Tensor};
use kvcsr_codec::Footprint;

use super::blocks::TensorBlocks;
use super::growing::Growing;
use super::{TensorTokens, round_to_half, saturated_half};
use crate::coded::common_step;
use crate::coded::schedule::{Form, Schedule, Until};
use crate::coded::{Buffering, SLACK, TILE};
use crate::{CacheError, Reach, Rotary, Window};

/// The keys or values of one sequence, over all heads. It works like `coded::stream`.
pub(super) struct TensorStream {
    pub(super) schedule: Schedule,
    full_precision: bool,
    coded: Box<dyn TensorTokens>,
    /// The number of coded tokens that no token sees any more and that are no longer in `coded`.
    dropped: usize,
    /// `(Hkv, n, D)` f16
    sinks: Growing,
    recent: Placed<Growing>,
    graded: Placed<TensorBlocks>,
    /// The centre that was subtracted from graded tokens, `(Hkv, 1, D)`.
    centre: Option<Tensor>,
}

/// A store of tokens that begins at a certain position.
struct Placed<T> {
    first: usize,
    rows: T,
}

impl TensorStream {
    pub(super) fn new(
        coded: Box<dyn TensorTokens>,
        buffering: Buffering,
        full_precision: bool,
        window: Window,
        graded: TensorBlocks,
    ) -> Self {
        Self {
            schedule: Schedule::new(buffering, window),
            full_precision,
            coded,
            dropped: 0,
            sinks: Growing::in_pages_of(1),
            recent: Placed { first: 0, rows: Growing::in_pages_of(SLACK) },
            graded: Placed { first: 0, rows: graded.in_pages_of(SLACK) },
            centre: None,
        }
    }

    /// The same stream, but `centre` `(Hkv, 1, D)` is subtracted from graded tokens.
    pub(super) fn centred(self, centre: Tensor) -> Self {
        Self { centre: Some(centre), ..self }
    }

    /// The store of coded tokens, for showing it a prompt.
    pub(super) fn coded_mut(&mut self) -> &mut dyn TensorTokens {
        self.coded.as_mut()
    }

    /// Takes new tokens `(Hkv, n, D)` f32, and codes the tokens that are due. Returns what each new token sees.
    pub(super) fn take(&mut self, rows: &Tensor, prompt: bool) -> Result<Vec<Until>, CacheError> {
        let tokens = rows.dim(1)?;
        let bare = self.schedule.window == Window::default() && self.schedule.codes_at_once();
        let rows = if bare && self.full_precision { rows.clone() } else { round_to_half(rows)? };
        let turn = self.schedule.take(tokens, prompt, !self.coded.keeps_blocks());
        let start = turn.start;
        for block in turn.blocks {
            self.code(block, &rows, start, turn.graded_from, prompt)?;
        }
        self.keep(&rows, start, turn.exact_from)?;
        Ok(turn.seen)
    }

    /// Codes the tokens `block`, counted from the first coded token. Tokens from position `graded_from` on are also
    /// graded.
    fn code(
        &mut self,
        block: Range<usize>,
        new: &Tensor,
        start: usize,
        graded_from: usize,
        prompt: bool,
    ) -> Result<(), CacheError> {
        let (at, n) = (self.schedule.window.sinks + block.start, block.len());
        let rows = self.gathered(at..at + n, new, start)?;
        self.coded.append(&rows, prompt)?;
        self.schedule.count = block.end;
        let from = graded_from.clamp(at, at + n);
        if from < at + n {
            if self.graded.rows.len() == 0 {
                self.graded.first = from;
            }
            let mut graded = rows.narrow(1, from - at, at + n - from)?.contiguous()?;
            if let Some(centre) = &self.centre {
                graded = graded.broadcast_sub(centre)?;
            }
            self.graded.rows.append(&graded, prompt)?;
        }
        Ok(())
    }

    /// The exact form of the tokens at `positions`. Some of them may be new; the first new token is at `start`. Tokens
    /// that no token sees any more may already be forgotten; they are zeros.
    fn gathered(&self, positions: Range<usize>, new: &Tensor, start: usize) -> Result<Tensor, CacheError> {
        let (heads, _, d) = new.dims3()?;
        let old = positions.start..start.clamp(positions.start, positions.end);
        let first_new = positions.start.max(start) - start;
        let fresh = || Ok::<_, CacheError>(new.narrow(1, first_new, positions.end - old.end)?.contiguous()?);
        if old.is_empty() {
            return fresh();
        }
        let held = if self.recent.rows.is_empty() { old.end } else { self.recent.first };
        let kept = held.clamp(old.start, old.end);
        let mut parts = Vec::with_capacity(3);
        if kept > old.start {
            parts.push(Tensor::zeros((heads, kept - old.start, d), DType::F32, new.device())?);
        }
        if kept < old.end {
            parts.push(self.exact(kept..old.end)?);
        }
        if old.end < positions.end {
            parts.push(fresh()?);
        }
        Ok(Tensor::cat(&parts, 1)?.contiguous()?)
    }

    /// Stores the new sinks exactly, and also the new tokens from position `from` on.
    fn keep(&mut self, new: &Tensor, start: usize, from: usize) -> Result<(), CacheError> {
        let end = start + new.dim(1)?;
        let sinks = start..self.schedule.window.sinks.clamp(start, end);
        let recent = from.max(sinks.end).min(end)..end;
        let rows = |range: &Range<usize>| saturated_half(&new.narrow(1, range.start - start, range.len())?);
        if !sinks.is_empty() {
            self.sinks.push(&rows(&sinks)?)?;
        }
        if !recent.is_empty() {
            if self.recent.rows.is_empty() {
                self.recent.first = recent.start;
            }
            self.recent.rows.push(&rows(&recent)?)?;
        }
        Ok(())
    }

    /// Forgets what no later token sees. See `coded::stream::Stream::trim`.
    pub(super) fn trim(&mut self, reach: Reach) -> Result<(), CacheError> {
        let Schedule { held, count, window, .. } = self.schedule;
        let sinks = window.sinks;
        let seen_from = reach.first_seen(held);
        if seen_from >= sinks && !self.sinks.is_empty() {
            self.sinks.drop_first(sinks)?;
        }
        let step = common_step(TILE, self.coded.drop_step());
        let unseen = seen_from.saturating_sub(sinks) / step * step;
        let waiting = if self.coded.learns() { 0 } else { unseen };
        let leaving = |first: usize, held: usize, before: usize| {
            let stale = before.saturating_sub(first).min(held);
            if stale == held || stale >= SLACK { stale } else { 0 }
        };
        let stale = leaving(self.recent.first, self.recent.rows.len(), sinks + count.max(waiting));
        if stale > 0 {
            self.recent.rows.drop_first(stale)?;
            self.recent.first += stale;
        }
        let graded_from = self.schedule.graded_from(held).max(sinks + unseen);
        let stale = leaving(self.graded.first, self.graded.rows.len(), graded_from);
        if stale > 0 {
            self.graded.rows.drop_first(stale)?;
            self.graded.first += stale;
        }
        let dropping = unseen.min(count / step * step) - self.dropped;
        if dropping > 0 {
            self.coded.drop_first(dropping)?;
            self.dropped += dropping;
        }
        Ok(())
    }

    /// The tokens at `positions`, `(Hkv, n, D)` f32. They must exist in the form `form`.
    pub(super) fn fetch(&self, form: Form, positions: Range<usize>) -> Result<Tensor, CacheError> {
        match form {
            Form::Coded => self.coded.restore(self.coded_at(positions)),
            Form::Graded => {
                let first = self.graded.first;
                let rows = self.graded.rows.restore(positions.start - first..positions.end - first)?;
                Ok(match &self.centre {
                    Some(centre) => rows.broadcast_add(centre)?,
                    None => rows,
                })
            }
            Form::Exact => self.exact(positions),
        }
    }

    /// Products of queries with the coded keys at `positions`. `None` if the method has no special way to compute them.
    pub(super) fn scores(
        &self,
        queries: &Tensor,
        positions: Range<usize>,
        rotary: Option<&Rotary>,
    ) -> Result<Option<Tensor>, CacheError> {
        let first = positions.start;
        self.coded.scores(queries, self.coded_at(positions), rotary.map(|rotary| (rotary, first)))
    }

    /// Sums the values at `positions` with `weights` `(Hkv, rows, n)`. The tokens must exist in the form `form`.
    pub(super) fn sum(&self, form: Form, positions: Range<usize>, weights: &Tensor) -> Result<Tensor, CacheError> {
        match form {
            Form::Coded => self.coded.sum(weights, self.coded_at(positions)),
            _ => Ok(weights.contiguous()?.matmul(&self.fetch(form, positions)?)?),
        }
    }

    fn coded_at(&self, positions: Range<usize>) -> Range<usize> {
        let first = self.schedule.window.sinks + self.dropped;
        positions.start - first..positions.end - first
    }

    /// The exact form of the tokens at `positions`. All of them are sinks, or none is.
    fn exact(&self, positions: Range<usize>) -> Result<Tensor, CacheError> {
        let rows = if positions.start < self.schedule.window.sinks {
            self.sinks.rows(positions)?
        } else {
            let first = self.recent.first;
            self.recent.rows.rows(positions.start - first..positions.end - first)?
        };
        Ok(rows.contiguous()?.to_dtype(DType::F32)?)
    }

    pub(super) fn footprint(&self) -> Footprint {
        let graded = self.graded.rows.footprint();
        let window = self.sinks.bytes() + self.recent.rows.bytes() + graded.packed + graded.scales;
        self.coded.footprint() + Footprint { window, ..Footprint::default() }
    }
}
