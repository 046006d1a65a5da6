//! Keys: two bits for the channels of large range, and a transform and one bit for the others.

use std::ops::Range;
use std::sync::Arc;

use kvcsr_codec::Footprint;

use super::easy::Signs;
use super::{BLOCK, GROUP};
use crate::coded::affine::{Affine, ChannelGroups, channel_ranges};
use crate::coded::{Block, Buffering, Codec, CodedTokens, HeadTokens, drop_front};

/// The codec of the keys of one layer.
pub(super) struct Keys {
    pub(super) heads: usize,
    pub(super) head_dim: usize,
    /// The number of channels of large range, a multiple of eight.
    pub(super) hard: usize,
    /// The transform across the other channels.
    pub(super) matrix: Arc<Vec<f32>>,
}

impl Keys {
    fn easy(&self) -> usize {
        self.head_dim - self.hard
    }
}

impl Codec for Keys {
    fn empty(&self) -> Box<dyn CodedTokens> {
        let Self { heads, head_dim, hard, .. } = *self;
        Box::new(Coded { heads, head_dim, hard, matrix: self.matrix.clone(), blocks: Vec::new() })
    }

    fn buffering(&self) -> Buffering {
        Buffering::Blocks { block: BLOCK, aligned: GROUP }
    }

    fn nominal_bits(&self) -> f64 {
        (2 * self.hard + self.easy()) as f64 / self.head_dim as f64
    }

    fn stored_bits(&self) -> f64 {
        let scales = (32 * self.hard + 16 * self.easy()) as f64 / (GROUP * self.head_dim) as f64;
        self.nominal_bits() + scales
    }
}

struct Coded {
    heads: usize,
    head_dim: usize,
    hard: usize,
    matrix: Arc<Vec<f32>>,
    blocks: Vec<Ranked>,
}

/// Tokens that are coded together, and the ranking of their channels.
struct Ranked {
    /// The first token, counted from the first coded token.
    start: usize,
    tokens: usize,
    /// The channels of large range, then the others, each in rising order. All heads share this ranking.
    channels: Vec<u16>,
    /// One per head.
    hard: Vec<ChannelGroups>,
    /// One per head and group of tokens.
    easy: Vec<Signs>,
}

impl Ranked {
    fn new(codec: &Coded, block: &Block<'_>, start: usize) -> Self {
        let Coded { heads, head_dim: d, hard, matrix, .. } = codec;
        let (heads, d, hard, tokens) = (*heads, *d, *hard, block.tokens);
        let (mut min, mut max) = (vec![f32::INFINITY; d], vec![f32::NEG_INFINITY; d]);
        channel_ranges(block.rows, &mut min, &mut max);
        let mut channels: Vec<u16> = (0..d as u16).collect();
        let spread = |c: u16| max[usize::from(c)] - min[usize::from(c)];
        channels.sort_by(|&a, &b| spread(b).total_cmp(&spread(a)));
        channels[..hard].sort_unstable();
        channels[hard..].sort_unstable();
        let (mut hard_heads, mut easy_groups) = (Vec::with_capacity(heads), Vec::with_capacity(heads * tokens / GROUP));
        for rows in block.rows.chunks_exact(tokens * d) {
            let pick = |channels: &[u16]| -> Vec<f32> {
                rows.chunks_exact(d).flat_map(|row| channels.iter().map(|&c| row[usize::from(c)])).collect()
            };
            let mut groups = ChannelGroups::new(Affine::plain(2), GROUP, hard);
            if hard > 0 {
                groups.append(&pick(&channels[..hard]), tokens, block.prompt);
            }
            hard_heads.push(groups);
            if hard < d {
                let easy = d - hard;
                let rows = pick(&channels[hard..]);
                easy_groups.extend(rows.chunks_exact(GROUP * easy).map(|rows| Signs::new(matrix, rows, easy)));
            }
        }
        Self { start, tokens, channels, hard: hard_heads, easy: easy_groups }
    }

    /// Restores `tokens`, counted from the first token of the block.
    fn restore(&self, codec: &Coded, head: usize, tokens: Range<usize>, out: &mut [f32]) {
        let Coded { head_dim: d, hard, matrix, .. } = codec;
        let (d, hard) = (*d, *hard);
        let easy = d - hard;
        let (channels, n) = (&self.channels, tokens.len());
        let mut place = |channels: &[u16], restored: &[f32], first: usize| {
            for (out, row) in out[first * d..].chunks_exact_mut(d).zip(restored.chunks_exact(channels.len())) {
                for (&channel, &x) in channels.iter().zip(row) {
                    out[usize::from(channel)] = x;
                }
            }
        };
        if hard > 0 {
            let mut restored = vec![0f32; n * hard];
            self.hard[head].restore(tokens.clone(), &mut restored);
            place(&channels[..hard], &restored, 0);
        }
        if easy > 0 {
            let mut restored = vec![0f32; GROUP * easy];
            let groups = self.tokens / GROUP;
            let mut at = tokens.start;
            while at < tokens.end {
                let group = at / GROUP;
                let end = ((group + 1) * GROUP).min(tokens.end);
                let restored = &mut restored[..(end - at) * easy];
                let within = at - group * GROUP..end - group * GROUP;
                self.easy[head * groups + group].restore(matrix, within, easy, restored);
                place(&channels[hard..], restored, at - tokens.start);
                at = end;
            }
        }
    }

    /// Drops the first `tokens` tokens, which are whole groups.
    fn drop_first(&mut self, tokens: usize) {
        let groups = self.tokens / GROUP;
        self.hard.iter_mut().for_each(|groups| groups.drop_first(tokens));
        let mut at = 0..;
        self.easy.retain(|_| at.next().is_some_and(|at| at % groups >= tokens / GROUP));
        self.easy.shrink_to_fit();
        self.tokens -= tokens;
    }

    fn footprint(&self) -> Footprint {
        let signs = self.easy.iter().map(Signs::bytes).map(|(packed, scales)| Footprint {
            packed,
            scales,
            ..Footprint::default()
        });
        let tables = self.hard.capacity() * size_of::<ChannelGroups>() + self.easy.capacity() * size_of::<Signs>();
        let indices = self.channels.capacity() * size_of::<u16>();
        self.hard.iter().map(ChannelGroups::footprint).sum::<Footprint>()
            + signs.sum()
            + Footprint { indices, tables, ..Footprint::default() }
    }
}

impl CodedTokens for Coded {
    fn append(&mut self, block: &Block<'_>) {
        let start = self.blocks.last().map_or(0, |last| last.start + last.tokens);
        let ranked = Ranked::new(self, block, start);
        self.blocks.push(ranked);
    }

    fn restore(&self, head: usize, tokens: Range<usize>, out: &mut [f32]) {
        let mut at = tokens.start;
        let mut index = self.blocks.partition_point(|block| block.start <= at) - 1;
        while at < tokens.end {
            let block = &self.blocks[index];
            let end = (block.start + block.tokens).min(tokens.end);
            let out = &mut out[(at - tokens.start) * self.head_dim..(end - tokens.start) * self.head_dim];
            block.restore(self, head, at - block.start..end - block.start, out);
            (at, index) = (end, index + 1);
        }
    }

    fn footprint(&self) -> Footprint {
        let tables = size_of::<Self>() + self.blocks.capacity() * size_of::<Ranked>();
        self.blocks.iter().map(Ranked::footprint).sum::<Footprint>() + Footprint { tables, ..Footprint::default() }
    }

    fn keeps_blocks(&self) -> bool {
        true
    }

    fn drop_step(&self) -> usize {
        GROUP
    }

    fn drop_first(&mut self, tokens: usize) {
        let whole = self.blocks.partition_point(|block| block.start + block.tokens <= tokens);
        drop_front(&mut self.blocks, whole);
        for block in &mut self.blocks {
            let cut = tokens.saturating_sub(block.start);
            block.start = block.start.saturating_sub(tokens);
            if cut > 0 {
                block.drop_first(cut);
            }
        }
    }
}
