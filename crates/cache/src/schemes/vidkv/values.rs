//! Values: one of three levels per entry, and one scale per channel and group of tokens.

use std::ops::Range;

use half::f16;
use kvcsr_codec::Footprint;

use super::{BLOCK, GROUP};
use crate::coded::trits::{pack_trits, trit_bytes, unpack_trits};
use crate::coded::{Buffering, Codec, CodedTokens, HeadTokens, PerHead, drop_front, reserve};

/// An entry is zero if it is below this fraction of the mean magnitude.
const THRESHOLD: f32 = 0.5;

/// The codec of the values of one layer.
pub(super) struct Values {
    pub(super) heads: usize,
    pub(super) head_dim: usize,
}

impl Codec for Values {
    fn empty(&self) -> Box<dyn CodedTokens> {
        let head = |_| Ternary { head_dim: self.head_dim, codes: Vec::new(), scales: Vec::new() };
        Box::new(PerHead::new(self.heads, head))
    }

    fn buffering(&self) -> Buffering {
        Buffering::Blocks { block: BLOCK, aligned: GROUP }
    }

    fn nominal_bits(&self) -> f64 {
        1.58
    }

    fn stored_bits(&self) -> f64 {
        8.0 * trit_bytes(self.head_dim) as f64 / self.head_dim as f64 + 16.0 / GROUP as f64
    }
}

/// The values of one head.
pub(super) struct Ternary {
    head_dim: usize,
    /// `(tokens, D)`, with five digits per byte along channels.
    codes: Vec<u8>,
    /// `(tokens / 32, D)`: the mean magnitudes.
    scales: Vec<f16>,
}

impl HeadTokens for Ternary {
    fn append(&mut self, rows: &[f32], tokens: usize, _prompt: bool) {
        let d = self.head_dim;
        reserve(&mut self.codes, tokens, trit_bytes(d));
        reserve(&mut self.scales, tokens / GROUP, d);
        let (mut means, mut digits) = (vec![0f32; d], vec![0u8; d]);
        for group in rows.chunks_exact(GROUP * d) {
            means.fill(0.0);
            for row in group.chunks_exact(d) {
                means.iter_mut().zip(row).for_each(|(mean, x)| *mean += x.abs());
            }
            means.iter_mut().for_each(|mean| *mean /= GROUP as f32);
            self.scales.extend(means.iter().map(|&mean| f16::from_f32(mean)));
            for row in group.chunks_exact(d) {
                for ((digit, &x), mean) in digits.iter_mut().zip(row).zip(&means) {
                    let threshold = THRESHOLD * mean;
                    *digit = 1 + u8::from(x > threshold) - u8::from(x < -threshold);
                }
                pack_trits(&digits, &mut self.codes);
            }
        }
    }

    fn restore(&self, tokens: Range<usize>, out: &mut [f32]) {
        let (d, row_bytes) = (self.head_dim, trit_bytes(self.head_dim));
        let mut scales = vec![0f32; d];
        let mut loaded = usize::MAX;
        let bytes = self.codes[tokens.start * row_bytes..].chunks_exact(row_bytes);
        for ((token, row), bytes) in tokens.zip(out.chunks_exact_mut(d)).zip(bytes) {
            if loaded != token / GROUP {
                loaded = token / GROUP;
                scales.iter_mut().zip(&self.scales[loaded * d..]).for_each(|(to, from)| *to = from.to_f32());
            }
            unpack_trits(bytes, row);
            row.iter_mut().zip(&scales).for_each(|(x, scale)| *x *= scale);
        }
    }

    fn footprint(&self) -> Footprint {
        Footprint {
            packed: self.codes.capacity(),
            scales: self.scales.capacity() * size_of::<f16>(),
            ..Footprint::default()
        }
    }

    fn drop_step(&self) -> usize {
        GROUP
    }

    fn drop_first(&mut self, tokens: usize) {
        drop_front(&mut self.codes, tokens * trit_bytes(self.head_dim));
        drop_front(&mut self.scales, tokens / GROUP * self.head_dim);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coded::testing::{relative_error, variates};

    #[test]
    fn errors_on_normal_variates_are_the_known_ones() {
        let (tokens, d) = (2048, 64);
        let rows = variates(5, tokens * d);
        let mut values = Ternary { head_dim: d, codes: Vec::new(), scales: Vec::new() };
        values.append(&rows, tokens, true);
        let mut out = vec![0.0; tokens * d];
        values.restore(0..tokens, &mut out);
        let error = relative_error(&rows, &out);
        assert!((error / 0.254 - 1.0).abs() < 0.02, "{error}");
        let mut part = vec![0.0; 40 * d];
        values.restore(50..90, &mut part);
        assert_eq!(part, out[50 * d..90 * d]);
    }
}
