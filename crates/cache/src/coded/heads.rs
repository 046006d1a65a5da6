//! Stores whose heads are independent of each other.

use std::ops::Range;

use kvcsr_codec::Footprint;
use rayon::prelude::*;

use super::{Block, CodedTokens, common_step};

/// A block with at least this number of elements is coded in parallel over its heads.
const PARALLEL: usize = 8192;

/// Coded keys or values of one head of one sequence.
pub trait HeadTokens: Send + Sync {
    /// Codes `rows` `(tokens, D)`, which follow the tokens held so far.
    fn append(&mut self, rows: &[f32], tokens: usize, prompt: bool);

    /// Restores `tokens` into `out`, `(tokens, D)`. See [`CodedTokens::restore`].
    fn restore(&self, tokens: Range<usize>, out: &mut [f32]);

    /// Bytes on the heap, by part.
    fn footprint(&self) -> Footprint;

    /// See [`CodedTokens::keeps_blocks`].
    fn keeps_blocks(&self) -> bool {
        false
    }

    /// See [`CodedTokens::drop_step`].
    fn drop_step(&self) -> usize {
        1
    }

    /// See [`CodedTokens::drop_first`].
    fn drop_first(&mut self, tokens: usize);
}

/// One store per head.
pub struct PerHead<H>(Vec<H>);

impl<H: HeadTokens> PerHead<H> {
    /// Stores for `heads` heads. `head` makes the store of one head.
    pub fn new(heads: usize, head: impl FnMut(usize) -> H) -> Self {
        Self((0..heads).map(head).collect())
    }

    /// The store of one head.
    pub fn head(&self, head: usize) -> &H {
        &self.0[head]
    }
}

impl<H: HeadTokens> CodedTokens for PerHead<H> {
    fn append(&mut self, block: &Block<'_>) {
        let each = block.rows.len() / self.0.len();
        let code = |(head, rows): (&mut H, &[f32])| head.append(rows, block.tokens, block.prompt);
        if block.rows.len() < PARALLEL {
            self.0.iter_mut().zip(block.rows.chunks_exact(each)).for_each(code);
        } else {
            self.0.par_iter_mut().zip(block.rows.par_chunks_exact(each)).for_each(code);
        }
    }

    fn restore(&self, head: usize, tokens: Range<usize>, out: &mut [f32]) {
        self.0[head].restore(tokens, out);
    }

    fn footprint(&self) -> Footprint {
        let tables = size_of::<Self>() + self.0.capacity() * size_of::<H>();
        self.0.iter().map(H::footprint).sum::<Footprint>() + Footprint { tables, ..Footprint::default() }
    }

    fn keeps_blocks(&self) -> bool {
        self.0.iter().any(H::keeps_blocks)
    }

    fn drop_step(&self) -> usize {
        self.0.iter().map(H::drop_step).fold(1, common_step)
    }

    fn drop_first(&mut self, tokens: usize) {
        self.0.iter_mut().for_each(|head| head.drop_first(tokens));
    }
}
