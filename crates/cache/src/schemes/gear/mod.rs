//! GEAR: a quantised bulk, separate outliers, and a low-rank factor of the residual (Kang et al., 2024).
//!
//! A block of tokens is coded in three steps. First, the largest and the smallest entries of each key channel and of
//! each value token are stored separately, and are replaced by the mean of their vector. Second, the rest is quantised.
//! At 4 bits, each key channel is quantised over the whole block, and each value token over all heads ("KCVT"). At 2
//! bits, both are quantised in groups of 64, as in KIVI. Third, the residual of each head is approximated by a factor
//! of rank 4 for a prompt, and of rank 2 during decode.

mod block;
mod low_rank;
mod tensors;

use std::ops::Range;
use std::sync::Arc;

use kvcsr_codec::{Footprint, Kind};

use self::block::Coded;
use super::kivi::check_groups;
use crate::coded::{Block, Buffering, Codec, CodedScheme, CodedTokens, drop_front};
use crate::entry::{Entry, KeysCoded, Parameter, WINDOW};
use crate::family::{Family, Plan, Read};
use crate::name::SchemeName;
use crate::needs::Needs;
use crate::tensor::{Stores, Uploads};
use crate::{CacheError, Geometry};

/// `gear-4` and `gear-2`.
pub const FAMILY: Family = Family { entries: ENTRIES, read };

const SOURCE: &str = "Kang et al., GEAR: An Efficient KV Cache Compression Recipe for Near-Lossless Generative Inference of LLM, arXiv:2403.05527, 2024";

const ENTRIES: &[Entry] = &[
    Entry {
        pattern: "gear-4",
        examples: &["gear-4", "gear-4(outliers=0)", "gear-4+window(sinks=2,recent=9)"],
        summary: "4-bit keys per channel and values per token, outliers in f16, low-rank residual",
        citation: SOURCE,
        keys_coded: KeysCoded::AfterRope,
        parameters: &[
            OUTLIERS,
            PROMPT,
            DECODE,
            Parameter { name: "buffer", default: "20", meaning: "tokens coded together while decoding" },
            WINDOW[0],
            WINDOW[1],
            WINDOW[2],
        ],
        prefill_as_decoded: false,
    },
    Entry {
        pattern: "gear-2",
        examples: &["gear-2", "gear-2(prompt=0,decode=0)"],
        summary: "2-bit keys and values in groups of 64, outliers in f16, low-rank residual",
        citation: SOURCE,
        keys_coded: KeysCoded::AfterRope,
        parameters: &[
            OUTLIERS,
            PROMPT,
            DECODE,
            Parameter { name: "buffer", default: "64", meaning: "tokens coded together while decoding, whole groups" },
            WINDOW[0],
            WINDOW[1],
            WINDOW[2],
        ],
        prefill_as_decoded: false,
    },
];

const OUTLIERS: Parameter =
    Parameter { name: "outliers", default: "0.02", meaning: "share of entries stored apart, half of them at each end" };
const PROMPT: Parameter = Parameter { name: "prompt", default: "4", meaning: "rank of a prompt's residual" };
const DECODE: Parameter = Parameter { name: "decode", default: "2", meaning: "rank of a decoded block's residual" };

/// Tokens, or channels, of a group at 2 bits.
const GROUP: usize = 64;
/// The largest number of tokens of a block. Positions of outliers have 16 bits, and the largest of them means "no
/// outlier". It is a multiple of the group.
const MOST: usize = (1 << 16) - 1024;

fn read(name: &SchemeName<'_>) -> Read {
    let Some(level) = name.level("gear") else { return Ok(None) };
    let (bits, group, buffer) = match level {
        "4" => (4, None, 20),
        "2" => (2, Some(GROUP), 64),
        _ => return Err(format!("`{level}` is not 4 or 2")),
    };
    name.no_artefacts()?;
    name.only_parts(&[])?;
    name.arguments.only(&["outliers", "prompt", "decode", "buffer"])?;
    let buffer = name.arguments.tokens("buffer", buffer)?;
    if buffer == 0 || buffer > MOST || !buffer.is_multiple_of(group.unwrap_or(1)) {
        return Err(format!("buffer: {buffer} is not a number of whole groups up to {MOST} tokens"));
    }
    let outliers = name.arguments.fraction("outliers", 0.02)?;
    let (prompt_rank, decode_rank) = (name.arguments.tokens("prompt", 4)?, name.arguments.tokens("decode", 2)?);
    let window = name.window()?;
    Ok(Some(Plan::new(Needs::nothing(KeysCoded::AfterRope), move |bound| {
        let Geometry { kv_heads: heads, head_dim, .. } = bound.geometry();
        check_groups(&bound, group.unwrap_or(8))?;
        if heads * head_dim > MOST {
            return Err(bound.unsuitable(format!("keys and values of more than {MOST} channels")));
        }
        let setting = |kind: Kind| -> Arc<dyn Codec> {
            Arc::new(Setting { kind, bits, group, outliers, prompt_rank, decode_rank, buffer, heads, head_dim })
        };
        let codecs = (setting(Kind::Key), setting(Kind::Value));
        Ok(Box::new(CodedScheme::new(&bound, window, |_| Ok(codecs.clone()))?))
    })))
}

/// How keys or values are coded.
#[derive(Debug, Clone, Copy)]
struct Setting {
    kind: Kind,
    bits: usize,
    /// Tokens of a key group, or channels of a value group. `None` if a group is the whole block or the whole token.
    group: Option<usize>,
    /// The fraction of entries that are outliers.
    outliers: f64,
    prompt_rank: usize,
    decode_rank: usize,
    buffer: usize,
    heads: usize,
    head_dim: usize,
}

impl Setting {
    /// The number of entries that share a scale in a block of `tokens` tokens.
    fn group(&self, tokens: usize) -> usize {
        self.group.unwrap_or(match self.kind {
            Kind::Key => tokens,
            Kind::Value => self.heads * self.head_dim,
        })
    }
}

impl Codec for Setting {
    fn empty(&self) -> Box<dyn CodedTokens> {
        Box::new(Blocks { setting: *self, starts: Vec::new(), blocks: Vec::new(), tokens: 0 })
    }

    fn tensors(&self, uploads: &mut Uploads) -> Result<Option<Stores>, CacheError> {
        tensors::stores(*self, uploads)
    }

    fn buffering(&self) -> Buffering {
        Buffering::Blocks { block: self.buffer, aligned: self.group.unwrap_or(1) }
    }

    fn nominal_bits(&self) -> f64 {
        self.bits as f64
    }

    /// For a long prompt, where data that is stored once per prompt takes almost no bits per token.
    fn stored_bits(&self) -> f64 {
        let scales = match (self.group, self.kind) {
            (Some(group), _) => 32.0 / group as f64,
            (None, Kind::Key) => 0.0,
            (None, Kind::Value) => 32.0 / (self.heads * self.head_dim) as f64,
        };
        self.bits as f64 + scales + self.outliers * 32.0 + self.prompt_rank as f64 * 16.0 / self.head_dim as f64
    }
}

/// The coded tokens of one sequence, block by block.
struct Blocks {
    setting: Setting,
    /// The first token of each block.
    starts: Vec<usize>,
    blocks: Vec<Coded>,
    tokens: usize,
}

impl CodedTokens for Blocks {
    fn append(&mut self, block: &Block<'_>) {
        let Setting { heads, head_dim: d, .. } = self.setting;
        let rank = if block.prompt { self.setting.prompt_rank } else { self.setting.decode_rank };
        let mut first = 0;
        while first < block.tokens {
            let n = (block.tokens - first).min(MOST);
            let rows: Vec<f32> = (0..heads)
                .flat_map(|head| &block.rows[(head * block.tokens + first) * d..(head * block.tokens + first + n) * d])
                .copied()
                .collect();
            self.starts.push(self.tokens);
            self.blocks.push(Coded::new(&self.setting, &rows, n, rank));
            self.tokens += n;
            first += n;
        }
    }

    fn restore(&self, head: usize, tokens: Range<usize>, out: &mut [f32]) {
        let d = self.setting.head_dim;
        let mut at = tokens.start;
        let mut index = self.starts.partition_point(|&start| start <= at) - 1;
        while at < tokens.end {
            let (start, block) = (self.starts[index], &self.blocks[index]);
            let end = (start + block.tokens).min(tokens.end);
            let out = &mut out[(at - tokens.start) * d..(end - tokens.start) * d];
            block.restore(&self.setting, head, at - start..end - start, out);
            (at, index) = (end, index + 1);
        }
    }

    fn footprint(&self) -> Footprint {
        let tables = size_of::<Self>()
            + self.starts.capacity() * size_of::<usize>()
            + self.blocks.capacity() * size_of::<Coded>();
        self.blocks.iter().map(Coded::footprint).sum::<Footprint>() + Footprint { tables, ..Footprint::default() }
    }

    fn keeps_blocks(&self) -> bool {
        true
    }

    fn drop_step(&self) -> usize {
        self.setting.group.unwrap_or(1)
    }

    fn drop_first(&mut self, tokens: usize) {
        let ends = self.starts.iter().zip(&self.blocks).map(|(start, block)| start + block.tokens);
        let whole = ends.take_while(|&end| end <= tokens).count();
        drop_front(&mut self.starts, whole);
        drop_front(&mut self.blocks, whole);
        if let (Some(&start), Some(block)) = (self.starts.first(), self.blocks.first_mut())
            && start < tokens
        {
            block.drop_first(&self.setting, tokens - start);
        }
        self.starts.iter_mut().for_each(|start| *start = start.saturating_sub(tokens));
        self.tokens -= tokens;
    }
}
