//! Codes of up to 16 bits, rows of them packed into whole bytes; and vectors stored as they are.

use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;
use kvcsr_codec::Footprint;

use crate::coded::{Codec, CodedTokens, HeadTokens, PerHead, reserve};

/// Bytes of a row of `codes` codes of `bits` bits.
pub(super) fn row_bytes(codes: usize, bits: usize) -> usize {
    (codes * bits).div_ceil(8)
}

/// Appends a row of codes, each below `2^bits`, `bits` up to 16, the first in the lowest bits.
pub(super) fn push_row(codes: &[u16], bits: usize, out: &mut Vec<u8>) {
    let (mut word, mut held) = (0u32, 0);
    for &code in codes {
        word |= u32::from(code) << held;
        held += bits;
        while held >= 8 {
            out.push(word as u8);
            word >>= 8;
            held -= 8;
        }
    }
    if held > 0 {
        out.push(word as u8);
    }
}

/// Reads a row that [`push_row`] made.
pub(super) fn read_row(bytes: &[u8], bits: usize, codes: &mut [u16]) {
    let (mut word, mut held, mut at) = (0u32, 0, 0);
    let mask = (1u32 << bits) - 1;
    for code in codes {
        while held < bits {
            word |= u32::from(bytes[at]) << held;
            held += 8;
            at += 1;
        }
        *code = (word & mask) as u16;
        word >>= bits;
        held -= bits;
    }
}

/// Keys or values kept in f16, for the half of a method that codes only the other.
pub(super) struct Halves {
    pub(super) heads: usize,
    pub(super) head_dim: usize,
}

impl Codec for Halves {
    fn empty(&self) -> Box<dyn CodedTokens> {
        Box::new(PerHead::new(self.heads, |_| HalfTokens { head_dim: self.head_dim, rows: Vec::new() }))
    }

    fn nominal_bits(&self) -> f64 {
        16.0
    }
}

struct HalfTokens {
    head_dim: usize,
    /// `(tokens, D)`
    rows: Vec<f16>,
}

impl HeadTokens for HalfTokens {
    fn append(&mut self, rows: &[f32], tokens: usize, _prompt: bool) {
        reserve(&mut self.rows, tokens, self.head_dim);
        let at = self.rows.len();
        self.rows.resize(at + rows.len(), f16::ZERO);
        self.rows[at..].convert_from_f32_slice(rows);
    }

    fn restore(&self, tokens: Range<usize>, out: &mut [f32]) {
        let d = self.head_dim;
        self.rows[tokens.start * d..tokens.end * d].convert_to_f32_slice(&mut out[..tokens.len() * d]);
    }

    fn footprint(&self) -> Footprint {
        Footprint { dense: self.rows.capacity() * size_of::<f16>(), ..Footprint::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_any_width_come_back() {
        for bits in 1..=16 {
            let rows: Vec<Vec<u16>> = (0..3u32)
                .map(|r| (0..11u32).map(|i| ((i * 40_503 + r * 977) & ((1 << bits) - 1)) as u16).collect())
                .collect();
            let mut bytes = Vec::new();
            rows.iter().for_each(|row| push_row(row, bits, &mut bytes));
            let each = row_bytes(11, bits);
            assert_eq!(bytes.len(), 3 * each);
            for (row, bytes) in rows.iter().zip(bytes.chunks_exact(each)) {
                let mut back = vec![0; 11];
                read_row(bytes, bits, &mut back);
                assert_eq!(&back, row, "{bits}");
            }
        }
    }
}
