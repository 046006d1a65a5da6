//! The keys of one sequence as quantised latents, or in f16 if there is no basis.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use half::f16;
use half::slice::HalfFloatSliceExt;
use kvcsr_codec::Footprint;
use kvcsr_codec::kernels::{Matrix, MatrixMut, multiply, multiply_add};
use rayon::prelude::*;

use super::{Basis, Settings};
use crate::coded::affine::{Affine, Scale, channel_ranges};
use crate::coded::{Block, CodedTokens, TILE, drop_front, reserve};

/// Latents are limited to this size, to stay in the range of f16.
const LARGEST: f32 = 60_000.0;

/// The number of tiles that a thread keeps unpacked. Heads use the same tiles in turn.
const TILES: usize = 2;

/// Latents of some tokens, `(tokens, r)`, and their key: the state of a store, and its tokens.
#[derive(Default)]
struct Unpacked {
    of: Option<(u64, Range<usize>)>,
    latents: Vec<f32>,
}

thread_local! {
    static UNPACKED: RefCell<[Unpacked; TILES]> = RefCell::default();
}

/// The next number for a state of a store. No two states have the same number.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// The keys of one sequence.
pub(super) struct KeyTokens {
    /// Identifies the store and its state.
    state: u64,
    settings: Arc<Settings>,
    calibrated: Option<Arc<Basis>>,
    own: Option<Box<Basis>>,
    tokens: usize,
    /// Used without a basis: `(tokens, Hkv, D)`.
    exact: Vec<f16>,
    /// Used with a basis: one row of codes per token, in whole bytes.
    codes: Vec<u8>,
    /// `(groups, r)`
    scales: Vec<Scale>,
    /// For each group, the index of the token after its last token.
    ends: Vec<u32>,
}

/// A quantised group of tokens.
struct Group {
    codes: Vec<u8>,
    scales: Vec<Scale>,
}

impl KeyTokens {
    pub(super) fn new(settings: Arc<Settings>, calibrated: Option<Arc<Basis>>) -> Self {
        Self {
            state: NEXT.fetch_add(1, Relaxed),
            settings,
            calibrated,
            own: None,
            tokens: 0,
            exact: Vec::new(),
            codes: Vec::new(),
            scales: Vec::new(),
            ends: Vec::new(),
        }
    }

    fn basis(&self) -> Option<&Basis> {
        self.calibrated.as_deref().or(self.own.as_deref())
    }

    /// Computes the latents of `tokens`, `(n, r)`.
    fn unpack(&self, basis: &Basis, tokens: Range<usize>, latents: &mut Vec<f32>) {
        let (kept, row_bytes) = (basis.bits.len(), basis.row_bytes());
        latents.resize(tokens.len() * kept, 0.0);
        let mut group = self.ends.partition_point(|&end| end as usize <= tokens.start);
        let (mut scales, mut loaded) = (vec![(0f32, 0f32); kept], usize::MAX);
        for (token, row) in tokens.zip(latents.chunks_exact_mut(kept)) {
            group += usize::from(self.ends[group] as usize <= token);
            if loaded != group {
                loaded = group;
                let stored = &self.scales[group * kept..(group + 1) * kept];
                scales.iter_mut().zip(stored).for_each(|(to, s)| *to = (s.step.to_f32(), s.zero.to_f32()));
            }
            let mut bytes = self.codes[token * row_bytes..(token + 1) * row_bytes].iter();
            let (mut word, mut held) = (0u32, 0);
            for ((x, (step, zero)), &bits) in row.iter_mut().zip(&scales).zip(&basis.bits) {
                let bits = u32::from(bits);
                while held < bits {
                    word |= u32::from(*bytes.next().expect("a row holds the bits of all channels")) << held;
                    held += 8;
                }
                let code = (word & ((1 << bits) - 1)) as f32;
                word >>= bits;
                held -= bits;
                *x = code * step + zero;
            }
        }
    }

    fn append_exact(&mut self, block: &Block<'_>) {
        let d = self.settings.head_dim;
        reserve(&mut self.exact, block.tokens, self.settings.channels());
        for token in 0..block.tokens {
            for head in block.rows.chunks_exact(block.tokens * d) {
                let at = self.exact.len();
                self.exact.resize(at + d, f16::ZERO);
                self.exact[at..].convert_from_f32_slice(&head[token * d..(token + 1) * d]);
            }
        }
    }

    /// Quantises the tokens `range` of a block.
    fn quantise(&self, basis: &Basis, block: &Block<'_>, range: Range<usize>) -> Group {
        let Settings { head_dim: d, signed, .. } = *self.settings;
        let (channels, kept, n) = (self.settings.channels(), basis.bits.len(), range.len());
        let mut rows = vec![0f32; n * channels];
        for (row, token) in rows.chunks_exact_mut(channels).zip(range) {
            for (head, row) in row.chunks_exact_mut(d).enumerate() {
                row.copy_from_slice(&block.rows[(head * block.tokens + token) * d..][..d]);
            }
            row.iter_mut().zip(&basis.mean).for_each(|(x, mean)| *x -= mean.to_f32());
        }
        let vectors = basis.vectors.to_f32_vec();
        let mut latents = vec![0f32; n * kept];
        let vectors = Matrix::new(&vectors, kept, channels).transposed();
        multiply(MatrixMut::new(&mut latents, n, kept), Matrix::new(&rows, n, channels), vectors);
        latents.iter_mut().for_each(|x| *x = x.clamp(-LARGEST, LARGEST));
        let (mut min, mut max) = (vec![0.0; kept], vec![0.0; kept]);
        channel_ranges(&latents, &mut min, &mut max);
        if signed {
            centred(&latents, &basis.bits, &mut min, &mut max);
        }
        let affine = |bits: u8| Affine::plain(bits.into());
        let ends = min.iter().zip(&max);
        let scales: Vec<Scale> = ends.zip(&basis.bits).map(|((&a, &b), &bits)| affine(bits).scale(a, b)).collect();
        let mut codes = Vec::with_capacity(n * basis.row_bytes());
        for row in latents.chunks_exact(kept) {
            let (mut word, mut held) = (0u32, 0);
            for ((&x, &scale), &bits) in row.iter().zip(&scales).zip(&basis.bits) {
                word |= u32::from(affine(bits).code(scale, x)) << held;
                held += u32::from(bits);
                while held >= 8 {
                    codes.push(word as u8);
                    word >>= 8;
                    held -= 8;
                }
            }
            if held > 0 {
                codes.push(word as u8);
            }
        }
        Group { codes, scales }
    }
}

/// For channels of 1 bit, replaces the two ends by mean ± mean deviation.
fn centred(latents: &[f32], bits: &[u8], min: &mut [f32], max: &mut [f32]) {
    let (kept, n) = (bits.len(), latents.len() / bits.len());
    for channel in (0..kept).filter(|&c| bits[c] == 1) {
        let values = || latents.iter().skip(channel).step_by(kept);
        let mean = values().sum::<f32>() / n as f32;
        let deviation = values().map(|x| (x - mean).abs()).sum::<f32>() / n as f32;
        (min[channel], max[channel]) = (mean - deviation, mean + deviation);
    }
}

impl CodedTokens for KeyTokens {
    fn append(&mut self, block: &Block<'_>) {
        self.state = NEXT.fetch_add(1, Relaxed);
        // A basis is fitted only to a prompt with at least twice as many tokens as channels. Otherwise none is fitted,
        // now or later.
        let long = block.prompt && block.tokens >= 2 * self.settings.channels();
        if self.tokens == 0 && self.calibrated.is_none() && long {
            self.own = Basis::of(block, &self.settings).map(Box::new);
        }
        let Some(basis) = self.basis() else {
            self.append_exact(block);
            self.tokens += block.tokens;
            return;
        };
        let size = if self.settings.group == 0 { block.tokens } else { self.settings.group };
        let starts: Vec<usize> = (0..block.tokens).step_by(size).collect();
        let kept = basis.bits.len();
        let quantise = |&first: &usize| {
            if kept == 0 {
                return Group { codes: Vec::new(), scales: Vec::new() };
            }
            self.quantise(basis, block, first..(first + size).min(block.tokens))
        };
        let groups: Vec<Group> = starts.par_iter().map(quantise).collect();
        let row_bytes = basis.row_bytes();
        reserve(&mut self.codes, block.tokens, row_bytes);
        reserve(&mut self.scales, groups.len(), kept);
        reserve(&mut self.ends, groups.len(), 1);
        for (group, first) in groups.into_iter().zip(starts) {
            self.codes.extend_from_slice(&group.codes);
            self.scales.extend_from_slice(&group.scales);
            self.ends.push((self.tokens + (first + size).min(block.tokens)) as u32);
        }
        self.tokens += block.tokens;
    }

    fn restore(&self, head: usize, tokens: Range<usize>, out: &mut [f32]) {
        let (d, channels) = (self.settings.head_dim, self.settings.channels());
        let n = tokens.len();
        let Some(basis) = self.basis() else {
            for (token, out) in tokens.zip(out.chunks_exact_mut(d)) {
                self.exact[token * channels + head * d..][..d].convert_to_f32_slice(out);
            }
            return;
        };
        for row in out[..n * d].chunks_exact_mut(d) {
            basis.mean[head * d..(head + 1) * d].convert_to_f32_slice(row);
        }
        let kept = basis.bits.len();
        if kept == 0 {
            return;
        }
        // This head's part of every vector, (r, D).
        let mut vectors = vec![0f32; kept * d];
        for (to, from) in vectors.chunks_exact_mut(d).zip(basis.vectors.chunks_exact(channels)) {
            from[head * d..(head + 1) * d].convert_to_f32_slice(to);
        }
        let vectors = Matrix::new(&vectors, kept, d);
        UNPACKED.with_borrow_mut(|tiles| {
            let Unpacked { of, latents } = &mut tiles[tokens.start / TILE % TILES];
            if !of.as_ref().is_some_and(|(state, held)| *state == self.state && *held == tokens) {
                *of = None;
                self.unpack(basis, tokens.clone(), latents);
                *of = Some((self.state, tokens));
            }
            multiply_add(MatrixMut::new(out, n, d), Matrix::new(latents, n, kept), vectors);
        });
    }

    fn footprint(&self) -> Footprint {
        let own = self.own.as_ref();
        Footprint {
            dense: self.exact.capacity() * size_of::<f16>(),
            packed: self.codes.capacity(),
            scales: self.scales.capacity() * size_of::<Scale>(),
            row_lengths: self.ends.capacity() * size_of::<u32>(),
            low_rank: own.map_or(0, |basis| basis.bytes()),
            tables: size_of::<Self>() + own.map_or(0, |_| size_of::<Basis>()),
            ..Footprint::default()
        }
    }

    fn keeps_blocks(&self) -> bool {
        true
    }

    fn drop_first(&mut self, tokens: usize) {
        self.state = NEXT.fetch_add(1, Relaxed);
        match self.basis().map(|basis| (basis.row_bytes(), basis.bits.len())) {
            None => drop_front(&mut self.exact, tokens * self.settings.channels()),
            Some((row_bytes, kept)) => {
                drop_front(&mut self.codes, tokens * row_bytes);
                let groups = self.ends.partition_point(|&end| end as usize <= tokens);
                drop_front(&mut self.scales, groups * kept);
                drop_front(&mut self.ends, groups);
                self.ends.iter_mut().for_each(|end| *end -= tokens as u32);
            }
        }
        self.tokens -= tokens;
    }
}
