//! A block of tokens that are coded together: outliers, quantised bulk, low-rank residual.

use std::ops::Range;

use half::f16;
use kvcsr_codec::{EIGHT, pack_small, unpack_wide};
use kvcsr_codec::{Footprint, Kind};
use rayon::prelude::*;

use super::Setting;
use super::low_rank::LowRank;
use crate::coded::affine::{Affine, Scale, range};
use crate::coded::drop_front;

/// One block of all heads.
pub(super) struct Coded {
    pub(super) tokens: usize,
    /// `(Hkv, tokens, D)`, packed along channels.
    codes: Vec<u8>,
    /// For keys `(groups of tokens, Hkv, D)`, for values `(tokens, groups of channels)`.
    scales: Vec<Scale>,
    outliers: Outliers,
    /// One per head.
    low_rank: Vec<LowRank>,
}

/// The largest and smallest entries of each vector. For keys, a vector is a channel over the block's tokens. For
/// values, it is a token over the channels of all heads.
struct Outliers {
    /// Entries per vector.
    each: usize,
    /// The index of each outlier in its vector, in rising order within each vector.
    at: Vec<u16>,
    values: Vec<f16>,
}

/// The positions of the elements `(head, token, channel)` of a block, and how the method joins heads.
#[derive(Clone, Copy)]
struct Layout {
    kind: Kind,
    heads: usize,
    tokens: usize,
    d: usize,
}

impl Layout {
    /// The number of vectors that outliers are taken from, and their length.
    fn vectors(self) -> (usize, usize) {
        match self.kind {
            Kind::Key => (self.heads * self.d, self.tokens),
            Kind::Value => (self.tokens, self.heads * self.d),
        }
    }

    /// The index of element `i` of vector `v` in `(Hkv, tokens, D)`.
    fn place(self, v: usize, i: usize) -> usize {
        let (channel, token) = match self.kind {
            Kind::Key => (v, i),
            Kind::Value => (i, v),
        };
        (channel / self.d * self.tokens + token) * self.d + channel % self.d
    }
}

impl Outliers {
    /// Takes the outliers out of `rows`, and replaces each by the mean of its vector.
    fn take(layout: Layout, share: f64, rows: &mut [f32]) -> Self {
        let (vectors, length) = layout.vectors();
        let side = if share == 0.0 { 0 } else { ((0.5 * share * length as f64).round() as usize).max(1) };
        let side = side.min(length / 2);
        let each = 2 * side;
        let mut outliers =
            Self { each, at: Vec::with_capacity(vectors * each), values: Vec::with_capacity(vectors * each) };
        if each == 0 {
            return outliers;
        }
        let mut order: Vec<u16> = Vec::with_capacity(length);
        for v in 0..vectors {
            let value = |i: u16| rows[layout.place(v, usize::from(i))];
            let mean = (0..length).map(|i| f64::from(rows[layout.place(v, i)])).sum::<f64>() / length as f64;
            order.clear();
            order.extend(0..=(length - 1) as u16);
            let rising = |&a: &u16, &b: &u16| value(a).total_cmp(&value(b)).then(a.cmp(&b));
            order.select_nth_unstable_by(side - 1, rising);
            order[side..].select_nth_unstable_by(length - each, rising);
            let picked = outliers.at.len();
            outliers.at.extend_from_slice(&order[..side]);
            outliers.at.extend_from_slice(&order[length - side..]);
            outliers.at[picked..].sort_unstable();
            outliers.values.extend(outliers.at[picked..].iter().map(|&i| f16::from_f32(value(i))));
            for &i in &outliers.at[picked..] {
                rows[layout.place(v, usize::from(i))] = mean as f32;
            }
        }
        outliers
    }

    /// Drops the outliers of the first `dropped` tokens.
    fn drop_first(&mut self, kind: Kind, dropped: usize) {
        if self.each == 0 {
            return;
        }
        if kind == Kind::Value {
            drop_front(&mut self.at, dropped * self.each);
            drop_front(&mut self.values, dropped * self.each);
            return;
        }
        // The channels now have different numbers of outliers. All of them get as much space as the largest number
        // needs. The rest is filled with an index that no token has.
        let left = |at: &[u16]| at.len() - at.partition_point(|&i| usize::from(i) < dropped);
        let each = self.at.chunks_exact(self.each).map(left).max().unwrap_or(0);
        let vectors = self.at.len() / self.each;
        let (mut at, mut values) = (Vec::with_capacity(vectors * each), Vec::with_capacity(vectors * each));
        for (old, x) in self.at.chunks_exact(self.each).zip(self.values.chunks_exact(self.each)) {
            let skipped = old.len() - left(old);
            let end = at.len() + each;
            at.extend(old[skipped..].iter().map(|&i| if i == u16::MAX { i } else { i - dropped as u16 }));
            values.extend_from_slice(&x[skipped..]);
            at.resize(end, u16::MAX);
            values.resize(end, f16::ZERO);
        }
        *self = Self { each, at, values };
    }

    /// The outliers of vector `v` whose index is in `within`.
    fn of(&self, v: usize, within: Range<usize>) -> impl Iterator<Item = (usize, f32)> {
        let at = &self.at[v * self.each..(v + 1) * self.each];
        let from = at.partition_point(|&i| usize::from(i) < within.start);
        let to = at.partition_point(|&i| usize::from(i) < within.end);
        at[from..to].iter().zip(&self.values[v * self.each + from..]).map(|(&i, x)| (usize::from(i), x.to_f32()))
    }
}

impl Coded {
    /// Codes `rows` `(Hkv, tokens, D)`.
    pub(super) fn new(setting: &Setting, rows: &[f32], tokens: usize, rank: usize) -> Self {
        let Setting { kind, heads, head_dim: d, .. } = *setting;
        let layout = Layout { kind, heads, tokens, d };
        let mut bulk = rows.to_vec();
        let outliers = Outliers::take(layout, setting.outliers, &mut bulk);
        let affine = Affine::plain(setting.bits);
        let mut coded =
            Self { tokens, codes: Vec::new(), scales: Vec::new(), outliers, low_rank: Vec::with_capacity(heads) };
        coded.quantise(setting, affine, &bulk);
        let factors: Vec<LowRank> = (0..heads)
            .into_par_iter()
            .map(|head| {
                let mut residual = vec![0f32; tokens * d];
                coded.bulk(setting, head, 0..tokens, &mut residual);
                for (x, exact) in residual.iter_mut().zip(&rows[head * tokens * d..]) {
                    *x = exact - *x;
                }
                LowRank::of(&residual, d, rank, head as u64)
            })
            .collect();
        coded.low_rank.extend(factors);
        coded
    }

    fn quantise(&mut self, setting: &Setting, affine: Affine, bulk: &[f32]) {
        let Setting { kind, heads, head_dim: d, .. } = *setting;
        let (n, group) = (self.tokens, setting.group(self.tokens));
        let mut codes = vec![0u8; bulk.len()];
        match kind {
            Kind::Key => {
                self.scales.reserve_exact(n / group * heads * d);
                for first in (0..n).step_by(group) {
                    for head in 0..heads {
                        let rows = (head * n + first) * d..(head * n + first + group) * d;
                        let (mut min, mut max) = (vec![0.0; d], vec![0.0; d]);
                        crate::coded::affine::channel_ranges(&bulk[rows.clone()], &mut min, &mut max);
                        let at = self.scales.len();
                        self.scales.extend(min.iter().zip(&max).map(|(&min, &max)| affine.scale(min, max)));
                        let rows = bulk[rows.clone()].chunks_exact(d).zip(codes[rows].chunks_exact_mut(d));
                        for (row, codes) in rows {
                            for ((code, &x), &scale) in codes.iter_mut().zip(row).zip(&self.scales[at..]) {
                                *code = affine.code(scale, x);
                            }
                        }
                    }
                }
            }
            Kind::Value => {
                let groups = heads * d / group;
                self.scales.reserve_exact(n * groups);
                for token in 0..n {
                    for first in (0..heads * d).step_by(group) {
                        let (mut min, mut max) = (f32::INFINITY, f32::NEG_INFINITY);
                        let pieces = pieces(first..first + group, d).map(|(head, channels)| {
                            (head * n + token) * d + channels.start..(head * n + token) * d + channels.end
                        });
                        for piece in pieces.clone() {
                            let (low, high) = range(&bulk[piece]);
                            (min, max) = (min.min(low), max.max(high));
                        }
                        let scale = affine.scale(min, max);
                        for piece in pieces {
                            affine.code_row(scale, &bulk[piece.clone()], &mut codes[piece]);
                        }
                        self.scales.push(scale);
                    }
                }
            }
        }
        self.codes.reserve_exact(codes.len() * affine.bits / EIGHT);
        pack_small(&codes, affine.bits, &mut self.codes);
    }

    /// Restores `tokens` of `head` into `out`, `(n, D)`.
    pub(super) fn restore(&self, setting: &Setting, head: usize, tokens: Range<usize>, out: &mut [f32]) {
        self.bulk(setting, head, tokens.clone(), out);
        self.low_rank[head].add(tokens, setting.head_dim, out);
    }

    /// Restores the quantised bulk and the outliers.
    fn bulk(&self, setting: &Setting, head: usize, tokens: Range<usize>, out: &mut [f32]) {
        let Setting { kind, heads, head_dim: d, bits, .. } = *setting;
        let group = setting.group(self.tokens);
        let row_bytes = d * bits / EIGHT;
        let from = head * self.tokens + tokens.start;
        let bytes = self.codes[from * row_bytes..].chunks_exact(row_bytes);
        let (mut zeros, mut steps) = (vec![0f32; d], vec![0f32; d]);
        let mut loaded = usize::MAX;
        for ((token, row), bytes) in tokens.clone().zip(out.chunks_exact_mut(d)).zip(bytes) {
            match kind {
                Kind::Key if loaded == token / group => {}
                Kind::Key => {
                    loaded = token / group;
                    let scales = &self.scales[(loaded * heads + head) * d..][..d];
                    for ((zero, step), scale) in zeros.iter_mut().zip(&mut steps).zip(scales) {
                        (*zero, *step) = (scale.zero.to_f32(), scale.step.to_f32());
                    }
                }
                Kind::Value => {
                    let groups = heads * d / group;
                    let mut channel = 0;
                    while channel < d {
                        let joined = (head * d + channel) / group;
                        let end = ((joined + 1) * group - head * d).min(d);
                        let scale = self.scales[token * groups + joined];
                        zeros[channel..end].fill(scale.zero.to_f32());
                        steps[channel..end].fill(scale.step.to_f32());
                        channel = end;
                    }
                }
            }
            unpack_wide(bytes, bits, row);
            for ((x, zero), step) in row.iter_mut().zip(&zeros).zip(&steps) {
                *x = *x * step + zero;
            }
        }
        match kind {
            Kind::Key => {
                for channel in 0..d {
                    for (token, x) in self.outliers.of(head * d + channel, tokens.clone()) {
                        out[(token - tokens.start) * d + channel] = x;
                    }
                }
            }
            Kind::Value => {
                for (token, row) in tokens.zip(out.chunks_exact_mut(d)) {
                    for (joined, x) in self.outliers.of(token, head * d..(head + 1) * d) {
                        row[joined - head * d] = x;
                    }
                }
            }
        }
    }

    /// Drops the first `dropped` tokens. They are whole groups, and fewer than all tokens.
    pub(super) fn drop_first(&mut self, setting: &Setting, dropped: usize) {
        let Setting { kind, heads, head_dim: d, bits, .. } = *setting;
        let (n, row_bytes) = (self.tokens, d * bits / EIGHT);
        let kept = self.codes.chunks_exact(n * row_bytes).flat_map(|head| &head[dropped * row_bytes..]);
        let mut codes = Vec::with_capacity(heads * (n - dropped) * row_bytes);
        codes.extend(kept);
        self.codes = codes;
        let scales = match (kind, setting.group) {
            (Kind::Key, None) => 0,
            (Kind::Key, Some(group)) => dropped / group * heads * d,
            (Kind::Value, _) => dropped * (heads * d / setting.group(n)),
        };
        drop_front(&mut self.scales, scales);
        self.outliers.drop_first(kind, dropped);
        self.low_rank.iter_mut().for_each(|factor| factor.drop_first(dropped));
        self.tokens -= dropped;
    }

    /// Bytes on the heap.
    pub(super) fn footprint(&self) -> Footprint {
        let Outliers { at, values, .. } = &self.outliers;
        Footprint {
            packed: self.codes.capacity(),
            scales: self.scales.capacity() * size_of::<Scale>(),
            outliers: at.capacity() * size_of::<u16>() + values.capacity() * size_of::<f16>(),
            low_rank: self.low_rank.iter().map(LowRank::bytes).sum(),
            tables: self.low_rank.capacity() * size_of::<LowRank>(),
            ..Footprint::default()
        }
    }
}

/// Splits a range of joined channels into one piece per head.
fn pieces(joined: Range<usize>, d: usize) -> impl Iterator<Item = (usize, Range<usize>)> + Clone {
    (joined.start / d..joined.end.div_ceil(d)).map(move |head| {
        let start = joined.start.max(head * d) - head * d;
        (head, start..joined.end.min((head + 1) * d) - head * d)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::coded::testing::{published, ramp, relative_error};

    const TOKENS: usize = 64;

    fn setting(kind: Kind, bits: usize) -> Setting {
        let group = (bits == 2).then_some(32);
        let (prompt_rank, decode_rank) = (4, 2);
        Setting { kind, bits, group, outliers: 0.05, prompt_rank, decode_rank, buffer: 64, heads: 2, head_dim: 32 }
    }

    #[test]
    fn bulk_and_outliers_are_those_of_the_published_formulas() {
        let rows = ramp(2, 2 * TOKENS * 32);
        for (kind, name) in [(Kind::Key, "keys"), (Kind::Value, "values")] {
            for bits in [2, 4] {
                let setting = setting(kind, bits);
                let expected = &published()["gear"][format!("{name}-{bits}")];
                let coded = Coded::new(&setting, &rows, TOKENS, 4);
                let mut bulk = vec![0.0; TOKENS * 32];
                coded.bulk(&setting, 1, 0..TOKENS, &mut bulk);
                let every_ninth = bulk.chunks_exact(32).step_by(9).flatten();
                for (at, (x, y)) in every_ninth.zip(expected["restored"].as_array().unwrap()).enumerate() {
                    assert!((f64::from(*x) - y.as_f64().unwrap()).abs() < 2e-3, "{name}, {bits} bits, {at}: {x} {y}");
                }
                let (mut error, mut left) = (0.0, 0.0);
                for head in 0..2 {
                    let exact = &rows[head * TOKENS * 32..][..TOKENS * 32];
                    let mut restored = vec![0.0; TOKENS * 32];
                    coded.bulk(&setting, head, 0..TOKENS, &mut restored);
                    let scale = exact.iter().map(|x| f64::from(x * x)).sum::<f64>();
                    error += scale * relative_error(exact, &restored);
                    coded.restore(&setting, head, 0..TOKENS, &mut restored);
                    left += scale * relative_error(exact, &restored);
                }
                let bounds: Vec<f64> =
                    expected["left"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
                let left = left / error;
                assert!(left > 0.98 * bounds[0] && left < 1.02 * bounds[1], "{name}, {bits} bits: {left}, {bounds:?}");
            }
        }
    }

    #[test]
    fn what_is_left_after_the_first_tokens_restores_as_before() {
        let rows = ramp(2, 2 * TOKENS * 32);
        for (kind, bits) in [(Kind::Key, 2), (Kind::Key, 4), (Kind::Value, 2), (Kind::Value, 4)] {
            let setting = setting(kind, bits);
            let mut coded = Coded::new(&setting, &rows, TOKENS, 4);
            let mut whole = vec![0.0; TOKENS * 32];
            for head in 0..2 {
                let mut coded = Coded::new(&setting, &rows, TOKENS, 4);
                coded.restore(&setting, head, 0..TOKENS, &mut whole);
                let before = coded.footprint().total();
                coded.drop_first(&setting, 32);
                let mut part = vec![0.0; (TOKENS - 32) * 32];
                coded.restore(&setting, head, 0..TOKENS - 32, &mut part);
                assert_eq!(whole[32 * 32..], part, "{kind:?}, {bits} bits");
                assert!(coded.footprint().total() < before);
            }
            coded.drop_first(&setting, 32);
            assert_eq!(coded.tokens, TOKENS - 32);
        }
    }

    #[test]
    fn tiles_are_parts_of_the_whole() {
        let rows = ramp(2, 2 * TOKENS * 32);
        for kind in Kind::ALL {
            let setting = setting(kind, 4);
            let coded = Coded::new(&setting, &rows, TOKENS, 4);
            let (mut whole, mut part) = (vec![0.0; TOKENS * 32], vec![0.0; 23 * 32]);
            coded.restore(&setting, 1, 0..TOKENS, &mut whole);
            coded.restore(&setting, 1, 20..43, &mut part);
            assert_eq!(whole[20 * 32..43 * 32], part);
        }
    }
}
