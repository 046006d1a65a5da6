//! Tokens kept exactly around the coded ones: sinks at the front, a window of recent ones.

use std::ops::Range;

use half::f16;
use kvcsr_codec::Footprint;

use crate::Window;

/// Tokens by which the buffer of recent tokens may exceed the window before it is given back.
const SLACK: usize = 64;

/// Keys, as they are coded, and values of one sequence's head, `(n, D)` each.
#[derive(Default)]
pub(super) struct Pair {
    pub(super) keys: Vec<f16>,
    pub(super) values: Vec<f16>,
}

/// The exact tokens of one sequence in one layer, counted from its own first token: positions
/// `0..sinks`, and `first..len` of which all but the last `recent` are coded as well while a call is
/// under way.
pub(super) struct ExactTokens {
    window: Window,
    head_dim: usize,
    /// Position of the first recent token held.
    first: usize,
    pub(super) sinks: Vec<Pair>,
    pub(super) recent: Vec<Pair>,
}

impl ExactTokens {
    pub(super) fn new(window: Window, head_dim: usize) -> Self {
        Self { window, head_dim, first: window.sinks, sinks: Vec::new(), recent: Vec::new() }
    }

    /// Position of the first recent token held.
    pub(super) fn first(&self) -> usize {
        self.first
    }

    /// Tokens that a query at `position` sees, by position: sinks, coded, recent.
    pub(super) fn seen_from(&self, position: usize) -> [Range<usize>; 3] {
        let sinks = self.window.sinks.min(position + 1);
        let recent = (position + 1).saturating_sub(self.window.recent).max(sinks);
        [0..sinks, sinks..recent, recent..position + 1]
    }

    /// How many tokens leave the window when `len` tokens become `len + new`.
    pub(super) fn leaving(&self, len: usize, new: usize) -> usize {
        (len + new).saturating_sub(self.window.recent).saturating_sub(self.first)
    }

    /// The vectors that leave the window when the `new` `(streams, T, D)` arrive, as f32
    /// `(streams, leaving, D)`; `part` picks keys or values.
    pub(super) fn leaving_rows(&self, len: usize, new: &[f16], streams: usize, part: fn(&Pair) -> &[f16]) -> Vec<f32> {
        let d = self.head_dim;
        let each = new.len() / streams;
        let leaving = self.leaving(len, each / d) * d;
        let sinks = self.new_sinks(len, each / d) * d;
        let mut rows = Vec::with_capacity(streams * leaving);
        if each == 0 {
            return rows;
        }
        for (stream, new) in new.chunks_exact(each).enumerate() {
            let held = self.recent.get(stream).map_or(&[][..], part);
            let stay = held.len().min(leaving);
            rows.extend(held[..stay].iter().chain(&new[sinks..][..leaving - stay]).map(|x| x.to_f32()));
        }
        rows
    }

    /// Of the `new` tokens after `len`, how many are sinks.
    fn new_sinks(&self, len: usize, new: usize) -> usize {
        self.window.sinks.saturating_sub(len).min(new)
    }

    /// Keeps `(streams, T, D)` new vectors; the call ends with [`ExactTokens::trim`].
    pub(super) fn keep(&mut self, len: usize, keys: &[f16], values: &[f16], streams: usize) {
        let each = keys.len() / streams;
        let sinks = self.new_sinks(len, each / self.head_dim) * self.head_dim;
        self.sinks.resize_with(streams, Pair::default);
        self.recent.resize_with(streams, Pair::default);
        for (stream, (sink, recent)) in self.sinks.iter_mut().zip(&mut self.recent).enumerate() {
            for (sink, recent, new) in
                [(&mut sink.keys, &mut recent.keys, keys), (&mut sink.values, &mut recent.values, values)]
            {
                let (to_sinks, to_recent) = new[stream * each..(stream + 1) * each].split_at(sinks);
                sink.reserve_exact(to_sinks.len());
                sink.extend_from_slice(to_sinks);
                if recent.capacity() - recent.len() < to_recent.len() {
                    recent.reserve_exact(to_recent.len().max(SLACK * self.head_dim));
                }
                recent.extend_from_slice(to_recent);
            }
        }
    }

    /// Drops the recent tokens that are coded, `len` tokens being held in all.
    pub(super) fn trim(&mut self, len: usize) {
        let leaving = self.leaving(len, 0);
        self.first += leaving;
        let most = (self.window.recent + SLACK) * self.head_dim;
        for recent in &mut self.recent {
            for buffer in [&mut recent.keys, &mut recent.values] {
                buffer.drain(..leaving * self.head_dim);
                if buffer.capacity() > most {
                    buffer.shrink_to(most);
                }
            }
        }
    }

    /// Recent tokens that there is room for after a prefill of `tokens` tokens.
    pub(super) fn capacity(window: Window, tokens: usize) -> usize {
        match tokens.saturating_sub(window.sinks) {
            0 => 0,
            new => new.max(SLACK).min(window.recent + SLACK),
        }
    }

    pub(super) fn footprint(&self) -> Footprint {
        let pairs = || self.sinks.iter().chain(&self.recent);
        Footprint {
            window: pairs().map(|p| p.keys.capacity() + p.values.capacity()).sum::<usize>() * size_of::<f16>(),
            tables: (self.sinks.capacity() + self.recent.capacity()) * size_of::<Pair>(),
            ..Footprint::default()
        }
    }
}
