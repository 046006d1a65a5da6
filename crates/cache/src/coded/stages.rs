//! Codecs composed of stages: subtract a mean, transform, code over atoms, quantise the residual.
//!
//! A stage removes its part from the vectors, keeps the code of this part, and passes the rest on to the next stage.
//! The last stage is an ordinary codec. Any codec can also be a stage that passes on its [`Residual`].
//!
//! Restoring runs backwards: the last codec restores its input, and each stage before it turns that into its own input.

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

use kvcsr_codec::Footprint;

use super::{Block, Buffering, Codec, CodedTokens, Prompt, TILE, common_step, hadamard};

/// A step of a [`Staged`] codec, the same for all sequences.
pub trait Stage: Send + Sync {
    /// The stage's state for one sequence, without tokens.
    fn empty(&self) -> Box<dyn StageTokens>;

    /// Bits per channel that the stage adds, as its paper counts them.
    fn nominal_bits(&self) -> f64 {
        0.0
    }

    /// Bits per channel that the stage adds to a coded token, with everything that the token takes.
    fn stored_bits(&self) -> f64 {
        self.nominal_bits()
    }
}

/// What a stage keeps for one sequence.
pub trait StageTokens: Send + Sync {
    /// See [`CodedTokens::see_prompt`]. The prompt is the original one, before any stage.
    fn see_prompt(&mut self, _prompt: &Prompt<'_>) {}

    /// Removes the stage's part from the `tokens` that follow those held so far. `rows` is `(Hkv, tokens, D)`;
    /// afterwards it holds what the next stage codes.
    fn forward(&mut self, rows: &mut [f32], tokens: usize, prompt: bool);

    /// Turns `rows` `(tokens, D)` of `head`, as restored by the later stages, into what [`StageTokens::forward`] got.
    fn back(&self, head: usize, tokens: Range<usize>, rows: &mut [f32]);

    /// Bytes allocated, by part. The stage's own struct is included, as `tables`.
    fn footprint(&self) -> Footprint;

    /// See [`CodedTokens::drop_step`].
    fn drop_step(&self) -> usize {
        1
    }

    /// See [`CodedTokens::drop_first`]. A stage that stores nothing per token has nothing to do here.
    fn drop_first(&mut self, _tokens: usize) {}
}

/// Stages in order, and the codec of their remainder. The last codec decides when tokens are coded.
pub struct Staged {
    stages: Vec<Arc<dyn Stage>>,
    last: Arc<dyn Codec>,
}

impl Staged {
    /// A codec of `stages`, followed by `last`.
    pub fn new(stages: Vec<Arc<dyn Stage>>, last: Arc<dyn Codec>) -> Self {
        Self { stages, last }
    }
}

impl Codec for Staged {
    fn empty(&self) -> Box<dyn CodedTokens> {
        let stages = self.stages.iter().map(|stage| stage.empty()).collect();
        Box::new(StagedTokens { stages, last: self.last.empty() })
    }

    fn buffering(&self) -> Buffering {
        self.last.buffering()
    }

    fn nominal_bits(&self) -> f64 {
        self.stages.iter().map(|stage| stage.nominal_bits()).sum::<f64>() + self.last.nominal_bits()
    }

    fn stored_bits(&self) -> f64 {
        self.stages.iter().map(|stage| stage.stored_bits()).sum::<f64>() + self.last.stored_bits()
    }
}

struct StagedTokens {
    stages: Vec<Box<dyn StageTokens>>,
    last: Box<dyn CodedTokens>,
}

impl CodedTokens for StagedTokens {
    fn see_prompt(&mut self, prompt: &Prompt<'_>) {
        self.stages.iter_mut().for_each(|stage| stage.see_prompt(prompt));
        self.last.see_prompt(prompt);
    }

    fn append(&mut self, block: &Block<'_>) {
        let mut rows = block.rows.to_vec();
        self.stages.iter_mut().for_each(|stage| stage.forward(&mut rows, block.tokens, block.prompt));
        self.last.append(&Block { rows: &rows, ..*block });
    }

    fn restore(&self, head: usize, tokens: Range<usize>, out: &mut [f32]) {
        self.last.restore(head, tokens.clone(), out);
        self.stages.iter().rev().for_each(|stage| stage.back(head, tokens.clone(), out));
    }

    fn footprint(&self) -> Footprint {
        let tables = size_of::<Self>() + self.stages.capacity() * size_of::<Box<dyn StageTokens>>();
        let stages: Footprint = self.stages.iter().map(|stage| stage.footprint()).sum();
        stages + self.last.footprint() + Footprint { tables, ..Footprint::default() }
    }

    fn keeps_blocks(&self) -> bool {
        self.last.keeps_blocks()
    }

    fn drop_step(&self) -> usize {
        self.stages.iter().map(|stage| stage.drop_step()).fold(self.last.drop_step(), common_step)
    }

    fn drop_first(&mut self, tokens: usize) {
        self.stages.iter_mut().for_each(|stage| stage.drop_first(tokens));
        self.last.drop_first(tokens);
    }
}

/// Subtracts a mean vector per head.
#[derive(Debug, Clone)]
pub struct Mean {
    mean: Arc<Vec<f32>>,
    head_dim: usize,
}

impl Mean {
    /// The stage for the mean `(Hkv, D)` of heads with `head_dim` channels.
    pub fn new(mean: Vec<f32>, head_dim: usize) -> Self {
        Self { mean: Arc::new(mean), head_dim }
    }
}

/// Subtracts the mean of each head, `(Hkv, D)`, from its `tokens` rows, `(Hkv, tokens, D)`.
pub(super) fn take_off(rows: &mut [f32], tokens: usize, mean: &[f32], d: usize) {
    for (rows, mean) in rows.chunks_exact_mut(tokens * d).zip(mean.chunks_exact(d)) {
        rows.chunks_exact_mut(d).for_each(|row| row.iter_mut().zip(mean).for_each(|(x, mean)| *x -= mean));
    }
}

impl Stage for Mean {
    fn empty(&self) -> Box<dyn StageTokens> {
        Box::new(self.clone())
    }
}

impl StageTokens for Mean {
    fn forward(&mut self, rows: &mut [f32], tokens: usize, _prompt: bool) {
        let d = self.head_dim;
        take_off(rows, tokens, &self.mean, d);
    }

    fn back(&self, head: usize, _tokens: Range<usize>, rows: &mut [f32]) {
        let d = self.head_dim;
        let mean = &self.mean[head * d..(head + 1) * d];
        rows.chunks_exact_mut(d).for_each(|row| row.iter_mut().zip(mean).for_each(|(x, mean)| *x += mean));
    }

    fn footprint(&self) -> Footprint {
        Footprint { tables: size_of::<Self>(), ..Footprint::default() }
    }
}

/// Transforms each piece of `size` channels by a [Hadamard matrix](hadamard). `size` is a power of two that divides a
/// head.
#[derive(Debug, Clone, Copy)]
pub struct Hadamard {
    /// Channels of a piece.
    pub size: usize,
}

impl Stage for Hadamard {
    fn empty(&self) -> Box<dyn StageTokens> {
        Box::new(*self)
    }
}

impl StageTokens for Hadamard {
    fn forward(&mut self, rows: &mut [f32], _tokens: usize, _prompt: bool) {
        hadamard::transform(rows, self.size);
    }

    fn back(&self, _head: usize, _tokens: Range<usize>, rows: &mut [f32]) {
        hadamard::transform(rows, self.size);
    }

    fn footprint(&self) -> Footprint {
        Footprint { tables: size_of::<Self>(), ..Footprint::default() }
    }
}

/// Any codec as a stage: its residual is passed on to the next stage. The codec must code tokens when they arrive.
pub struct Residual {
    codec: Arc<dyn Codec>,
    head_dim: usize,
}

impl Residual {
    /// The stage for `codec`, with heads of `head_dim` channels.
    pub fn new(codec: Arc<dyn Codec>, head_dim: usize) -> Self {
        Self { codec, head_dim }
    }
}

impl Stage for Residual {
    fn empty(&self) -> Box<dyn StageTokens> {
        Box::new(ResidualTokens { coded: self.codec.empty(), head_dim: self.head_dim, tokens: 0 })
    }

    fn nominal_bits(&self) -> f64 {
        self.codec.nominal_bits()
    }

    fn stored_bits(&self) -> f64 {
        self.codec.stored_bits()
    }
}

struct ResidualTokens {
    coded: Box<dyn CodedTokens>,
    head_dim: usize,
    tokens: usize,
}

thread_local! {
    static RESTORED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

impl ResidualTokens {
    /// Calls `each` with each element of `rows` `(tokens, D)` and its restored value.
    fn with_restored(&self, head: usize, tokens: Range<usize>, rows: &mut [f32], each: impl Fn(&mut f32, f32)) {
        let mut restored = RESTORED.take();
        restored.resize(rows.len(), 0.0);
        self.coded.restore(head, tokens, &mut restored);
        rows.iter_mut().zip(&restored).for_each(|(x, restored)| each(x, *restored));
        RESTORED.set(restored);
    }
}

impl StageTokens for ResidualTokens {
    fn see_prompt(&mut self, prompt: &Prompt<'_>) {
        self.coded.see_prompt(prompt);
    }

    fn forward(&mut self, rows: &mut [f32], tokens: usize, prompt: bool) {
        self.coded.append(&Block { rows, tokens, prompt });
        let (d, first) = (self.head_dim, self.tokens);
        self.tokens += tokens;
        for (head, rows) in rows.chunks_exact_mut(tokens * d).enumerate() {
            // The ranges end at tile boundaries, because a range must begin at one.
            let mut at = first;
            while at < self.tokens {
                let end = (at / TILE * TILE + TILE).min(self.tokens);
                let rows = &mut rows[(at - first) * d..(end - first) * d];
                self.with_restored(head, at..end, rows, |x, restored| *x -= restored);
                at = end;
            }
        }
    }

    fn back(&self, head: usize, tokens: Range<usize>, rows: &mut [f32]) {
        let rows = &mut rows[..tokens.len() * self.head_dim];
        self.with_restored(head, tokens, rows, |x, restored| *x += restored);
    }

    fn footprint(&self) -> Footprint {
        self.coded.footprint() + Footprint { tables: size_of::<Self>(), ..Footprint::default() }
    }

    fn drop_step(&self) -> usize {
        self.coded.drop_step()
    }

    fn drop_first(&mut self, tokens: usize) {
        self.coded.drop_first(tokens);
        self.tokens -= tokens;
    }
}
