//! The keys or the values of one sequence: exact sinks, coded middle, graded and exact recent tokens.

use std::ops::Range;
use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;
use kvcsr_codec::Footprint;

use super::blocks::{BLOCK, BlockFormat};
use super::rows::Rows;
pub(super) use super::schedule::{Form, Schedule, Until};
use super::{Block, Buffering, Codec, CodedTokens, Prompt, TILE, common_step};
use crate::{Reach, Window};

/// The buffer of recent tokens grows by this number of tokens, and may be larger than needed by it.
pub(crate) const SLACK: usize = 4;

/// How tokens of the graded window are stored.
const GRADED: BlockFormat = BlockFormat::Q4;

/// The keys or values of one sequence, over all heads.
pub(super) struct Stream {
    schedule: Schedule,
    full_precision: bool,
    heads: usize,
    head_dim: usize,
    coded: Box<dyn CodedTokens>,
    /// Number of coded tokens that no token sees any more and that are no longer in `coded`. A multiple of [`TILE`].
    dropped: usize,
    /// `(n, Hkv, D)`
    sinks: Vec<f16>,
    /// `(n, Hkv, D)`
    recent: Rows<f16>,
    /// `(n, Hkv)` heads, as blocks.
    graded: Rows<u8>,
    /// The centre that was subtracted from graded tokens, `(Hkv, D)`. Empty if there is none.
    centre: Arc<[f32]>,
}

/// New tokens of a sequence, `(Hkv, n, D)`, and the position of the first one.
#[derive(Clone, Copy)]
struct New<'a> {
    rows: &'a [f32],
    tokens: usize,
    start: usize,
}

impl Stream {
    /// A stream for the tokens that `codec` codes.
    pub(super) fn of(codec: &dyn Codec, window: Window, heads: usize, head_dim: usize) -> Self {
        let full_precision = codec.full_precision();
        Self { full_precision, ..Self::new(codec.empty(), codec.buffering(), window, heads, head_dim) }
    }

    /// A stream that stores its coded tokens in `coded`.
    pub(super) fn new(
        coded: Box<dyn CodedTokens>,
        buffering: Buffering,
        window: Window,
        heads: usize,
        head_dim: usize,
    ) -> Self {
        let graded = Rows::new(heads * head_dim / BLOCK * GRADED.block_bytes());
        let recent = Rows::new(heads * head_dim);
        Self {
            schedule: Schedule::new(buffering, window),
            full_precision: false,
            heads,
            head_dim,
            coded,
            dropped: 0,
            sinks: Vec::new(),
            recent,
            graded,
            centre: Arc::default(),
        }
    }

    /// The same stream, but `centre` `(Hkv, D)` is subtracted from graded tokens, unless it is empty.
    pub(super) fn centred(self, centre: Arc<[f32]>) -> Self {
        debug_assert!(centre.is_empty() || centre.len() == self.token());
        Self { centre, ..self }
    }

    /// Tokens held.
    pub(super) fn held(&self) -> usize {
        self.schedule.held
    }

    /// The position where coded tokens begin.
    pub(super) fn sinks(&self) -> usize {
        self.schedule.window.sinks
    }

    /// The position of the first token in the store of coded tokens, if there is one.
    pub(super) fn coded_from(&self) -> usize {
        self.schedule.window.sinks + self.dropped
    }

    /// The store of coded tokens. Its token 0 is at position [`Stream::coded_from`].
    pub(super) fn coded(&self) -> &dyn CodedTokens {
        self.coded.as_ref()
    }

    fn token(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Shows a whole prompt to the store, before the store gets its tokens.
    pub(super) fn see_prompt(&mut self, prompt: &Prompt<'_>) {
        self.coded.see_prompt(prompt);
    }

    /// Takes new tokens, `(Hkv, T, D)`, and codes the tokens that are due. Other forms that the tokens of this call
    /// still see stay until [`Stream::trim`]. Returns what each new token sees.
    pub(super) fn take(&mut self, rows: &mut [f32], prompt: bool) -> Vec<Until> {
        let tokens = rows.len() / self.token();
        let bare = self.schedule.window == Window::default() && self.schedule.codes_at_once();
        if !(bare && self.full_precision) {
            round(rows);
        }
        let turn = self.schedule.take(tokens, prompt, !self.coded.keeps_blocks());
        let new = New { rows, tokens, start: turn.start };
        for block in turn.blocks {
            self.code(block, new, turn.graded_from, prompt);
        }
        self.keep(new, turn.exact_from);
        turn.seen
    }

    /// Codes the tokens `block`, counted from the first coded token. Tokens from position `graded_from` on are also
    /// graded.
    fn code(&mut self, block: Range<usize>, new: New<'_>, graded_from: usize, prompt: bool) {
        debug_assert_eq!(block.start, self.schedule.count);
        let (d, n) = (self.head_dim, block.len());
        let at = self.schedule.window.sinks + block.start;
        let gathered;
        let rows = if at == new.start && n == new.tokens {
            new.rows
        } else {
            gathered = self.gathered(at..at + n, new);
            &gathered[..]
        };
        self.coded.append(&Block { rows, tokens: n, prompt });
        self.schedule.count = block.end;
        let graded = graded_from.clamp(at, at + n)..at + n;
        self.graded.reserve(graded.len(), SLACK);
        for position in graded {
            let out = self.graded.begin(position);
            for (head, rows) in rows.chunks_exact(n * d).enumerate() {
                for (i, own) in rows[(position - at) * d..][..d].chunks_exact(BLOCK).enumerate() {
                    let mut block = [0.0; BLOCK];
                    block.copy_from_slice(own);
                    if let Some(centre) = self.centre.get(head * d + i * BLOCK..) {
                        block.iter_mut().zip(centre).for_each(|(x, centre)| *x -= centre);
                    }
                    GRADED.encode(&block, out);
                }
            }
        }
    }

    /// The exact form of the tokens at `positions`, `(Hkv, n, D)`. Some of them may be new. Tokens that no token sees
    /// any more may already be forgotten; they are zeros.
    fn gathered(&self, positions: Range<usize>, new: New<'_>) -> Vec<f32> {
        let (d, n) = (self.head_dim, positions.len());
        let held = new.start.clamp(positions.start, positions.end) - positions.start;
        let first = positions.start.max(new.start) - new.start;
        let old = positions.start..positions.start + held;
        let kept = self.recent.first().unwrap_or(old.end).clamp(old.start, old.end);
        let mut rows = vec![0f32; self.heads * n * d];
        let heads = rows.chunks_exact_mut(n * d).zip(new.rows.chunks_exact(new.tokens * d)).enumerate();
        for (head, (rows, new)) in heads {
            let (exact, fresh) = rows.split_at_mut(held * d);
            self.exact(head, kept..old.end, &mut exact[(kept - old.start) * d..]);
            fresh.copy_from_slice(&new[first * d..][..fresh.len()]);
        }
        rows
    }

    /// Stores the new sinks exactly, and also the new tokens from position `from` on.
    fn keep(&mut self, new: New<'_>, from: usize) {
        let (d, end) = (self.head_dim, new.start + new.tokens);
        let sinks = new.start..self.schedule.window.sinks.clamp(new.start, end);
        let recent = from.max(sinks.end).min(end)..end;
        self.sinks.reserve_exact(sinks.len() * self.heads * d);
        self.recent.reserve(recent.len(), SLACK);
        for position in sinks.clone().chain(recent) {
            let out = if sinks.contains(&position) { &mut self.sinks } else { self.recent.begin(position) };
            for head in new.rows.chunks_exact(new.tokens * d) {
                let at = out.len();
                out.resize(at + d, f16::ZERO);
                out[at..].convert_from_f32_slice(&head[(position - new.start) * d..][..d]);
            }
        }
    }

    /// Forgets what no later token sees: the exact form of coded tokens, and graded tokens that are not among the
    /// newest. If tokens only see back as far as `reach`, it also forgets older tokens in every form. Forgotten tokens
    /// that wait to be coded are later coded as zeros. So coding happens at the same times as without a sliding window.
    pub(super) fn trim(&mut self, reach: Reach) {
        let sinks = self.schedule.window.sinks;
        let seen_from = reach.first_seen(self.schedule.held);
        if seen_from >= sinks {
            self.sinks = Vec::new();
        }
        let step = common_step(TILE, self.coded.drop_step());
        let unseen = seen_from.saturating_sub(sinks) / step * step;
        let waiting = if self.coded.learns() { 0 } else { unseen };
        self.recent.trim(sinks + self.schedule.count.max(waiting), SLACK);
        self.graded.trim(self.schedule.graded_from(self.schedule.held).max(sinks + unseen), SLACK);
        let dropping = unseen.min(self.schedule.count / step * step) - self.dropped;
        if dropping > 0 {
            self.coded.drop_first(dropping);
            self.dropped += dropping;
        }
    }

    /// Copies the tokens at `positions` to `out`, `(n, D)`. They must exist in the form `form`.
    pub(super) fn fetch(&self, form: Form, head: usize, positions: Range<usize>, out: &mut [f32]) {
        match form {
            Form::Coded => {
                let first = self.coded_from();
                self.coded.restore(head, positions.start - first..positions.end - first, out);
            }
            Form::Graded => {
                let each = self.head_dim / BLOCK * GRADED.block_bytes();
                for (position, out) in positions.zip(out.chunks_exact_mut(self.head_dim)) {
                    let blocks = self.graded.at(position)[head * each..][..each].chunks_exact(GRADED.block_bytes());
                    blocks.zip(out.chunks_exact_mut(BLOCK)).for_each(|(bytes, out)| GRADED.decode(bytes, out));
                    if let Some(centre) = self.centre.get(head * self.head_dim..) {
                        out.iter_mut().zip(centre).for_each(|(x, centre)| *x += centre);
                    }
                }
            }
            Form::Exact => self.exact(head, positions, out),
        }
    }

    /// Whether all tokens held can still be fetched as [`Schedule::now`] says: none was dropped or forgotten.
    pub(super) fn is_whole(&self) -> bool {
        let (until, held) = (self.schedule.now(), self.held());
        let from = |first: Option<usize>, needed: Range<usize>| {
            needed.is_empty() || first.is_some_and(|first| first <= needed.start)
        };
        self.dropped == 0
            && !self.coded.forgets()
            && self.sinks.len() == self.sinks().min(held) * self.token()
            && from(self.graded.first(), until.coded..until.graded.min(held))
            && from(self.recent.first(), until.graded..held)
    }

    /// All tokens of a head as they are held now, `(held, D)`. The stream must be [whole](Stream::is_whole).
    pub(super) fn fetch_all(&self, head: usize, out: &mut [f32]) {
        let (until, d, sinks, held) = ([self.schedule.now()], self.head_dim, self.sinks(), self.held());
        let mut at = 0;
        while at < held {
            let limit = if at < sinks { sinks.min(held) } else { held };
            let tile = at..(at + TILE).min(limit);
            at = tile.end;
            for form in Form::ALL {
                let own = self.needed(form, &until, &tile);
                if !own.is_empty() {
                    self.fetch(form, head, own.clone(), &mut out[own.start * d..own.end * d]);
                }
            }
        }
    }

    /// The exact form of the tokens at `positions`. All of them are sinks, or none is.
    fn exact(&self, head: usize, positions: Range<usize>, out: &mut [f32]) {
        let (d, token) = (self.head_dim, self.token());
        let sink = positions.start < self.schedule.window.sinks;
        for (position, out) in positions.zip(out.chunks_exact_mut(d)) {
            let row = if sink { &self.sinks[position * token..] } else { self.recent.at(position) };
            row[head * d..(head + 1) * d].convert_to_f32_slice(out);
        }
    }

    /// See [`Schedule::needed`].
    pub(super) fn needed(&self, form: Form, until: &[Until], tile: &Range<usize>) -> Range<usize> {
        self.schedule.needed(form, until, tile)
    }

    pub(super) fn footprint(&self) -> Footprint {
        let window = self.sinks.capacity() * size_of::<f16>() + self.recent.bytes() + self.graded.bytes();
        self.coded.footprint() + Footprint { window, ..Footprint::default() }
    }
}

/// Rounds to the nearest f16. Larger numbers become the largest f16.
fn round(rows: &mut [f32]) {
    let (most, mut halves) = (f16::MAX.to_f32(), [f16::ZERO; 64]);
    for rows in rows.chunks_mut(64) {
        rows.iter_mut().for_each(|x| *x = x.clamp(-most, most));
        let halves = &mut halves[..rows.len()];
        halves.convert_from_f32_slice(rows);
        halves.convert_to_f32_slice(rows);
    }
}

/// The number of coded tokens that one stream has dropped after a prefill of `tokens` tokens in a layer with `reach`.
/// It applies to a method without its own buffer whose drop step is one token.
pub(crate) fn dropped_tokens(window: Window, tokens: usize, reach: Reach) -> usize {
    let coded = tokens.saturating_sub(window.sinks + window.recent);
    let unseen = reach.first_seen(tokens).saturating_sub(window.sinks);
    unseen.min(coded) / TILE * TILE
}

/// The bytes that the windows of one stream take after a prefill of `tokens` tokens in a layer with `reach`, for a
/// method as in [`dropped_tokens`]. A token has `channels` channels over all heads.
pub(crate) fn window_bytes(window: Window, tokens: usize, channels: usize, reach: Reach) -> usize {
    let seen_from = reach.first_seen(tokens);
    let forgotten = seen_from.saturating_sub(window.sinks) / TILE * TILE;
    let sinks = window.sinks.min(tokens);
    let recent = window.recent.min(tokens - sinks);
    let graded = window.graded.min(tokens - sinks - recent);
    // Capacity in tokens for `held` tokens, with `after` tokens after them. It is smaller if some of them are already
    // forgotten.
    let room = |held: usize, after: usize| match held {
        0 => 0,
        _ => held.max(SLACK).min((tokens - after - sinks).saturating_sub(forgotten).min(held) + SLACK),
    };
    let exact = if seen_from >= window.sinks { 0 } else { sinks };
    (exact + room(recent, 0)) * channels * size_of::<f16>()
        + room(graded, recent) * channels / BLOCK * GRADED.block_bytes()
}
