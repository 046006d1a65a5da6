//! 2.5 and 3.5 bits: the largest quarter of the channels gets one bit more.

use std::ops::Range;
use std::sync::Arc;

use kvcsr_codec::Footprint;

use super::{Coded, Part};
use crate::Geometry;
use crate::coded::{Codec, CodedTokens, HeadTokens, PerHead};

/// Two quantisers: one for the outlier channels, one for the others.
pub(super) struct Split {
    pub(super) parts: Arc<[Part; 2]>,
    pub(super) geometry: Geometry,
    /// Bits as the paper counts them.
    pub(super) bits: f64,
}

impl Codec for Split {
    fn empty(&self) -> Box<dyn CodedTokens> {
        let head = |_| Head { parts: self.parts.clone(), channels: Vec::new(), coded: Default::default() };
        Box::new(PerHead::new(self.geometry.kv_heads, head))
    }

    /// At 128 channels, codes and two norms together take exactly the bits that the paper states.
    fn nominal_bits(&self) -> f64 {
        self.bits
    }

    fn stored_bits(&self) -> f64 {
        let bits: usize = self.parts.iter().map(|part| part.size * part.bits + 16).sum();
        bits as f64 / self.geometry.head_dim as f64
    }
}

struct Head {
    parts: Arc<[Part; 2]>,
    /// All channels, with the outliers first. The first block determines them. An index takes two bytes.
    channels: Vec<u16>,
    coded: [Coded; 2],
}

impl Head {
    /// The order of the channels: first the `outliers` channels with the largest mean magnitude, then the others. Each
    /// part is in rising order.
    fn choose(rows: &[f32], d: usize, outliers: usize) -> Vec<u16> {
        let mut sums = vec![0f64; d];
        for row in rows.chunks_exact(d) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(x.abs()));
        }
        let mut channels: Vec<u16> = (0..d as u16).collect();
        channels.sort_by(|&a, &b| sums[usize::from(b)].total_cmp(&sums[usize::from(a)]));
        channels[..outliers].sort_unstable();
        channels[outliers..].sort_unstable();
        channels
    }
}

impl HeadTokens for Head {
    fn append(&mut self, rows: &[f32], tokens: usize, _prompt: bool) {
        let [outliers, others] = &*self.parts;
        let d = outliers.size + others.size;
        if self.channels.is_empty() {
            self.channels = Self::choose(rows, d, outliers.size);
        }
        let mut picked = Vec::with_capacity(tokens * others.size);
        let mut from = 0;
        for (part, coded) in self.parts.iter().zip(&mut self.coded) {
            let channels = &self.channels[from..from + part.size];
            picked.clear();
            for row in rows.chunks_exact(d) {
                picked.extend(channels.iter().map(|&channel| row[usize::from(channel)]));
            }
            part.encode(&picked, coded);
            from += part.size;
        }
    }

    fn restore(&self, tokens: Range<usize>, out: &mut [f32]) {
        let d = self.channels.len();
        let mut restored = vec![0f32; tokens.len() * d];
        let mut from = 0;
        for (part, coded) in self.parts.iter().zip(&self.coded) {
            part.decode(coded, tokens.clone(), &mut restored);
            let channels = &self.channels[from..from + part.size];
            for (out, row) in out.chunks_exact_mut(d).zip(restored.chunks_exact(part.size)).take(tokens.len()) {
                for (&channel, &x) in channels.iter().zip(row) {
                    out[usize::from(channel)] = x;
                }
            }
            from += part.size;
        }
    }

    fn footprint(&self) -> Footprint {
        let indices = self.channels.capacity() * size_of::<u16>();
        self.coded.iter().map(Coded::footprint).sum::<Footprint>() + Footprint { indices, ..Footprint::default() }
    }

    /// True, because the first block chooses the channels.
    fn keeps_blocks(&self) -> bool {
        self.channels.is_empty()
    }

    fn drop_first(&mut self, tokens: usize) {
        self.parts.iter().zip(&mut self.coded).for_each(|(part, coded)| part.drop_first(coded, tokens));
    }
}
