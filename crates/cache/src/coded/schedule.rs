//! When the tokens of a stream are coded, and which form of them each query sees.

use std::ops::Range;

use super::Buffering;
use crate::Window;

/// The positions up to which a query sees each form: first coded, then graded, then exact tokens. Sinks are always
/// exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Until {
    pub(crate) coded: usize,
    pub(crate) graded: usize,
}

/// A form in which a token is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Coded,
    Graded,
    Exact,
}

impl Form {
    pub(crate) const ALL: [Self; 3] = [Self::Coded, Self::Graded, Self::Exact];
}

/// What must be done with the new tokens of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Turn {
    /// Position of the first new token.
    pub(crate) start: usize,
    /// Blocks of tokens to code now. The indices count from the first coded token.
    pub(crate) blocks: Vec<Range<usize>>,
    /// What each new token sees. For a prompt there is one entry: what its last token sees.
    pub(crate) seen: Vec<Until>,
    /// New tokens from this position on are stored exactly.
    pub(crate) exact_from: usize,
    /// Of the tokens that are coded now, those from this position on are also graded.
    pub(crate) graded_from: usize,
}

/// The counts of one stream.
///
/// A window around a method with a buffer works like a cache inside a cache. The method sees only the tokens between
/// the sinks and the window, and buffers them as published.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    pub(crate) buffering: Buffering,
    pub(crate) window: Window,
    /// Tokens held.
    pub(crate) held: usize,
    /// Tokens coded. The first of them is at position `window.sinks`.
    pub(crate) count: usize,
}

impl Schedule {
    /// A schedule without tokens.
    pub(crate) fn new(buffering: Buffering, window: Window) -> Self {
        Self { buffering, window, held: 0, count: 0 }
    }

    /// Whether every token except a sink is coded before it attends.
    pub(crate) fn codes_at_once(&self) -> bool {
        self.window.recent == 0 && self.buffering == Buffering::None
    }

    /// Adds `tokens` new tokens to the count. `joins` says whether consecutive blocks may be coded as one. The blocks
    /// are added to [`Schedule::count`] only after they are coded.
    pub(crate) fn take(&mut self, tokens: usize, prompt: bool, joins: bool) -> Turn {
        let start = self.held;
        self.held += tokens;
        let (blocks, seen) = self.blocks(start, prompt, joins);
        let coded = blocks.last().map_or(self.count, |block| block.end) + self.window.sinks;
        let (mut exact_from, mut graded_from) = (coded, self.graded_from(self.held));
        if let (false, Some(first)) = (prompt, seen.first()) {
            exact_from = if self.codes_at_once() { coded } else { first.graded };
            if self.window.graded > 0 {
                graded_from = first.coded;
            }
        }
        Turn { start, blocks, seen, exact_from, graded_from }
    }

    fn blocks(&self, before: usize, prompt: bool, joins: bool) -> (Vec<Range<usize>>, Vec<Until>) {
        let buffering = self.buffering;
        let around = self.window.sinks + self.window.recent;
        let (mut coded, mut blocks, mut seen) = (self.count, Vec::<Range<usize>>::new(), Vec::new());
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
                seen.push(self.until(coded, held));
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
                seen.push(self.until(coded, held));
            }
        }
        (blocks, seen)
    }

    /// What a token sees of `held` tokens of which `coded` are coded.
    fn until(&self, coded: usize, held: usize) -> Until {
        let graded = self.window.sinks + coded;
        Until { coded: graded.min(self.graded_from(held)), graded }
    }

    /// What there is to see of the tokens held now.
    pub(crate) fn now(&self) -> Until {
        self.until(self.count, self.held)
    }

    /// The position where the graded window begins once `held` tokens are held. Without a graded window, the largest
    /// `usize`.
    pub(crate) fn graded_from(&self, held: usize) -> usize {
        let Window { sinks, recent, graded } = self.window;
        if graded == 0 { usize::MAX } else { held.saturating_sub(recent + graded).max(sinks) }
    }

    /// The range of `tile` that query tokens which see `until` need in `form`. All tokens of a tile are sinks, or none
    /// is.
    pub(crate) fn needed(&self, form: Form, until: &[Until], tile: &Range<usize>) -> Range<usize> {
        let (Some(first), Some(last)) = (until.first(), until.last()) else { return tile.start..tile.start };
        let clamp = |at: usize| at.clamp(tile.start, tile.end);
        match form {
            Form::Exact if tile.start < self.window.sinks => tile.clone(),
            _ if tile.start < self.window.sinks => tile.start..tile.start,
            Form::Coded => tile.start..clamp(last.coded),
            Form::Graded if self.window.graded == 0 => tile.end..tile.end,
            Form::Graded => clamp(first.coded)..clamp(last.graded),
            Form::Exact if self.codes_at_once() => tile.end..tile.end,
            Form::Exact => clamp(first.graded)..tile.end,
        }
    }
}
