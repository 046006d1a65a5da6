//! The affine group quantiser of KIVI and of the methods based on it, and stores of groups along tokens or along
//! channels.
//!
//! A group `x` has the zero point `min x` and the scale `(max x - min x) / (2^b - 1)`, both in f16. A code is
//! `round((x - zero) / scale)`, with ties to even, in `0..2^b`. A constant group has scale 0 and codes 0.

use std::ops::Range;

use half::f16;
use kvcsr_codec::Footprint;
use kvcsr_codec::kernels::saturating_f16;
use kvcsr_codec::{EIGHT, pack_small, unpack_wide};

use super::{HeadTokens, drop_front, reserve};

/// Channels that are processed at a time.
const LANES: usize = 64;

/// Bits and calibration of an affine quantiser.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Affine {
    /// Bits of a code, 1 to 8.
    pub bits: usize,
    /// How far restored values are moved inwards from both ends of a group's range, as a fraction of that range
    /// (XQuant). With 0 this is the plain quantiser.
    pub pull: f32,
}

/// Zero point and scale of a group, as they are stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// The value of code 0.
    pub zero: f16,
    /// The difference between the values of two neighbouring codes.
    pub step: f16,
}

impl Affine {
    /// A quantiser without calibration.
    pub fn plain(bits: usize) -> Self {
        Self { bits, pull: 0.0 }
    }

    fn levels(self) -> f32 {
        ((1u32 << self.bits) - 1) as f32
    }

    /// Zero point and scale for coding a group, computed from its range.
    pub fn scale(self, min: f32, max: f32) -> Scale {
        let step = saturating_f16((max - min) / self.levels());
        Scale { zero: f16::from_f32(min), step }
    }

    /// The code of `x`.
    pub fn code(self, scale: Scale, x: f32) -> u8 {
        let (zero, divisor) = divisor(scale);
        code(x, zero, divisor, self.levels())
    }

    /// Codes `row` with one scale.
    pub fn code_row(self, scale: Scale, row: &[f32], codes: &mut [u8]) {
        let ((zero, divisor), levels) = (divisor(scale), self.levels());
        for (code_, &x) in codes.iter_mut().zip(row) {
            *code_ = code(x, zero, divisor, levels);
        }
    }

    /// The zero point and scale for restoring.
    pub fn stored(self, scale: Scale) -> Scale {
        if self.pull == 0.0 {
            return scale;
        }
        let (zero, step) = (scale.zero.to_f32(), scale.step.to_f32());
        Scale {
            zero: f16::from_f32(zero + self.pull * self.levels() * step),
            step: f16::from_f32(step * (1.0 - 2.0 * self.pull)),
        }
    }
}

/// The zero point and the divisor: the step, or infinity for a constant group.
fn divisor(scale: Scale) -> (f32, f32) {
    let step = scale.step.to_f32();
    (scale.zero.to_f32(), if step > 0.0 { step } else { f32::INFINITY })
}

fn code(x: f32, zero: f32, divisor: f32, levels: f32) -> u8 {
    // Adding and then subtracting 1.5 2^23 rounds to the nearest integer, with ties to even.
    const ROUND: f32 = 12_582_912.0;
    let position = ((x - zero) / divisor).clamp(0.0, levels);
    ((position + ROUND) - ROUND) as u8
}

/// The smallest and the largest element of `x`.
pub fn range(x: &[f32]) -> (f32, f32) {
    x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), &x| (min.min(x), max.max(x)))
}

/// The smallest and the largest element of each channel over the rows `(n, D)`.
pub fn channel_ranges(rows: &[f32], min: &mut [f32], max: &mut [f32]) {
    min.fill(f32::INFINITY);
    max.fill(f32::NEG_INFINITY);
    for row in rows.chunks_exact(min.len()) {
        for ((min, max), &x) in min.iter_mut().zip(max.iter_mut()).zip(row) {
            *min = min.min(x);
            *max = max.max(x);
        }
    }
}

/// One head, quantised per channel: a group is consecutive tokens of one channel, counted from the first coded token.
///
/// A block always consists of whole groups.
pub struct ChannelGroups {
    affine: Affine,
    group: usize,
    head_dim: usize,
    /// `(tokens, D)`, packed along channels.
    codes: Vec<u8>,
    /// `(tokens / group, D)`
    scales: Vec<Scale>,
}

impl ChannelGroups {
    /// A store without tokens, for groups of `group` tokens. A head has `head_dim` channels, a multiple of eight.
    pub fn new(affine: Affine, group: usize, head_dim: usize) -> Self {
        Self { affine, group, head_dim, codes: Vec::new(), scales: Vec::new() }
    }
}

impl HeadTokens for ChannelGroups {
    fn append(&mut self, rows: &[f32], tokens: usize, _prompt: bool) {
        let (d, affine) = (self.head_dim, self.affine);
        assert!(tokens.is_multiple_of(self.group), "blocks of keys are whole groups");
        reserve(&mut self.codes, tokens, d * affine.bits / EIGHT);
        reserve(&mut self.scales, tokens / self.group, d);
        let (mut min, mut max, mut codes) = (vec![0.0; d], vec![0.0; d], vec![0; d]);
        for group in rows.chunks_exact(self.group * d) {
            channel_ranges(group, &mut min, &mut max);
            let at = self.scales.len();
            self.scales.extend(min.iter().zip(&max).map(|(&min, &max)| affine.scale(min, max)));
            for ((min, max), &scale) in min.iter_mut().zip(&mut max).zip(&self.scales[at..]) {
                (*min, *max) = divisor(scale);
            }
            for row in group.chunks_exact(d) {
                for (((out, &x), &zero), &divisor) in codes.iter_mut().zip(row).zip(&min).zip(&max) {
                    *out = code(x, zero, divisor, affine.levels());
                }
                pack_small(&codes, affine.bits, &mut self.codes);
            }
            for scale in &mut self.scales[at..] {
                *scale = affine.stored(*scale);
            }
        }
    }

    fn restore(&self, tokens: Range<usize>, out: &mut [f32]) {
        let (d, bits) = (self.head_dim, self.affine.bits);
        let row_bytes = d * bits / EIGHT;
        let (mut zeros, mut steps) = ([0f32; LANES], [0f32; LANES]);
        let mut at = tokens.start;
        while at < tokens.end {
            let group = at / self.group;
            let end = ((group + 1) * self.group).min(tokens.end);
            for channel in (0..d).step_by(LANES) {
                let n = LANES.min(d - channel);
                for (i, scale) in self.scales[group * d + channel..][..n].iter().enumerate() {
                    (zeros[i], steps[i]) = (scale.zero.to_f32(), scale.step.to_f32());
                }
                for token in at..end {
                    let bytes = &self.codes[token * row_bytes + channel * bits / EIGHT..][..n * bits / EIGHT];
                    let out = &mut out[(token - tokens.start) * d + channel..][..n];
                    unpack_wide(bytes, bits, out);
                    for ((x, zero), step) in out.iter_mut().zip(&zeros).zip(&steps) {
                        *x = *x * step + zero;
                    }
                }
            }
            at = end;
        }
    }

    fn footprint(&self) -> Footprint {
        Footprint {
            packed: self.codes.capacity(),
            scales: self.scales.capacity() * size_of::<Scale>(),
            ..Footprint::default()
        }
    }

    fn drop_step(&self) -> usize {
        self.group
    }

    fn drop_first(&mut self, tokens: usize) {
        drop_front(&mut self.codes, tokens * self.head_dim * self.affine.bits / EIGHT);
        drop_front(&mut self.scales, tokens / self.group * self.head_dim);
    }
}

/// One head, quantised per token: a group is consecutive channels of one token.
pub struct TokenGroups {
    affine: Affine,
    group: usize,
    head_dim: usize,
    /// `(tokens, D)`, packed along channels.
    codes: Vec<u8>,
    /// `(tokens, D / group)`
    scales: Vec<Scale>,
}

impl TokenGroups {
    /// A store without tokens, for groups of `group` channels. `group` is a multiple of eight that divides `head_dim`.
    pub fn new(affine: Affine, group: usize, head_dim: usize) -> Self {
        Self { affine, group, head_dim, codes: Vec::new(), scales: Vec::new() }
    }
}

impl HeadTokens for TokenGroups {
    fn append(&mut self, rows: &[f32], tokens: usize, _prompt: bool) {
        let (d, affine) = (self.head_dim, self.affine);
        reserve(&mut self.codes, tokens, d * affine.bits / EIGHT);
        reserve(&mut self.scales, tokens, d / self.group);
        let mut codes = vec![0; self.group];
        for group in rows.chunks_exact(self.group) {
            let (min, max) = range(group);
            let scale = affine.scale(min, max);
            affine.code_row(scale, group, &mut codes);
            pack_small(&codes, affine.bits, &mut self.codes);
            self.scales.push(affine.stored(scale));
        }
    }

    fn restore(&self, tokens: Range<usize>, out: &mut [f32]) {
        let (groups, group_bytes) = (self.head_dim / self.group, self.group * self.affine.bits / EIGHT);
        let from = tokens.start * groups;
        let stored = self.scales[from..].iter().zip(self.codes[from * group_bytes..].chunks_exact(group_bytes));
        for (out, (scale, bytes)) in out.chunks_exact_mut(self.group).take(tokens.len() * groups).zip(stored) {
            let (zero, step) = (scale.zero.to_f32(), scale.step.to_f32());
            unpack_wide(bytes, self.affine.bits, out);
            out.iter_mut().for_each(|x| *x = *x * step + zero);
        }
    }

    fn footprint(&self) -> Footprint {
        Footprint {
            packed: self.codes.capacity(),
            scales: self.scales.capacity() * size_of::<Scale>(),
            ..Footprint::default()
        }
    }

    fn drop_first(&mut self, tokens: usize) {
        drop_front(&mut self.codes, tokens * self.head_dim * self.affine.bits / EIGHT);
        drop_front(&mut self.scales, tokens * self.head_dim / self.group);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::coded::testing::{published, ramp, relative_error, variates};

    /// Codes of the reference implementation, one hexadecimal digit each.
    fn codes(digits: &serde_json::Value) -> impl Iterator<Item = f32> {
        digits.as_str().unwrap().chars().map(|c| c.to_digit(16).unwrap() as f32)
    }

    fn numbers(list: &serde_json::Value) -> Vec<f32> {
        list.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
    }

    #[test]
    fn keys_and_values_of_kivi_are_those_of_the_published_formulas() {
        let (tokens, d, group) = (64, 32, 32);
        let rows = ramp(1, tokens * d);
        for bits in [2, 4] {
            let expected = &published()["kivi"][bits.to_string()];
            let mut out = vec![0.0; tokens * d];
            let mut keys = ChannelGroups::new(Affine::plain(bits), group, d);
            keys.append(&rows, tokens, true);
            keys.restore(0..tokens, &mut out);
            let (zeros, steps) = (numbers(&expected["keys"]["zeros"]), numbers(&expected["keys"]["steps"]));
            for (at, (code, &x)) in codes(&expected["keys"]["codes"]).zip(&out).enumerate() {
                let scale = at / d / group * d + at % d;
                assert_eq!(code * steps[scale] + zeros[scale], x, "{bits} bits, key element {at}");
            }
            let mut values = TokenGroups::new(Affine::plain(bits), group, d);
            values.append(&rows, tokens, true);
            values.restore(0..tokens, &mut out);
            let (zeros, steps) = (numbers(&expected["values"]["zeros"]), numbers(&expected["values"]["steps"]));
            for (at, (code, &x)) in codes(&expected["values"]["codes"]).zip(&out).enumerate() {
                assert_eq!(code * steps[at / group] + zeros[at / group], x, "{bits} bits, value element {at}");
            }
        }
    }

    /// Relative squared error on normal variates, for groups along tokens and along channels.
    fn errors(affine: Affine, group: usize) -> [f64; 2] {
        let (tokens, d) = (4096, 128);
        let rows = variates(3, tokens * d);
        let mut out = vec![0.0; tokens * d];
        let mut keys = ChannelGroups::new(affine, group, d);
        keys.append(&rows, tokens, true);
        keys.restore(0..tokens, &mut out);
        let along_tokens = relative_error(&rows, &out);
        if group > d {
            return [along_tokens; 2];
        }
        let mut values = TokenGroups::new(affine, group, d);
        values.append(&rows, tokens, true);
        values.restore(0..tokens, &mut out);
        [along_tokens, relative_error(&rows, &out)]
    }

    #[test]
    fn errors_on_normal_variates_are_the_known_ones() {
        for (bits, group, expected, tolerance) in [
            (1, 32, 1.96, 0.02),
            (1, 64, 2.73, 0.02),
            (1, 128, 3.57, 0.02),
            (1, 4096, 8.35, 0.03),
            (2, 32, 0.154, 0.02),
            (2, 64, 0.202, 0.02),
            (2, 128, 0.251, 0.02),
            (2, 4096, 0.509, 0.03),
            (4, 32, 0.0061, 0.02),
            (4, 64, 0.0080, 0.02),
            (4, 128, 0.0100, 0.02),
            (4, 4096, 0.0196, 0.03),
        ] {
            for error in errors(Affine::plain(bits), group) {
                assert!((error / expected - 1.0).abs() < tolerance, "{bits} bits, groups of {group}: {error}");
            }
        }
        for (bits, pull, expected) in
            [(1, 1.0 / 6.0, 0.683), (1, 1.0 / 3.0, 0.383), (1, 0.30, 0.364), (2, 0.05, 0.133), (2, 0.07, 0.131)]
        {
            for error in errors(Affine { bits, pull }, 32) {
                assert!((error / expected - 1.0).abs() < 0.02, "{bits} bits, pulled by {pull}: {error}");
            }
        }
    }

    #[test]
    fn a_group_by_hand() {
        let affine = Affine::plain(2);
        let scale = affine.scale(-1.0, 2.0);
        assert_eq!(scale, Scale { zero: f16::from_f32(-1.0), step: f16::ONE });
        let codes: Vec<u8> = [-1.0, -0.6, -0.5, 0.5, 1.6, 9.0].map(|x| affine.code(scale, x)).into();
        assert_eq!(codes, [0, 0, 0, 2, 3, 3], "ties go to even");
        let constant = affine.scale(3.0, 3.0);
        assert_eq!((affine.code(constant, 3.0), constant.step), (0, f16::ZERO));
        let pulled = Affine { bits: 1, pull: 0.25 };
        let scale = pulled.stored(pulled.scale(-1.0, 1.0));
        assert_eq!((scale.zero.to_f32(), scale.step.to_f32()), (-0.5, 1.0));
    }
}
