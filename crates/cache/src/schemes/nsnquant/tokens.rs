//! Chunks of tokens, coded.

use std::cell::Cell;
use std::ops::Range;

use half::f16;
use kvcsr_codec::kernels::saturating_f16;
use kvcsr_codec::{EIGHT, Footprint, pack_small, unpack_small};

use super::Shape;
use super::codebook::{Codebook, PIECE};
use crate::coded::affine::{Affine, Scale, range};
use crate::coded::{HeadTokens, drop_front, hadamard, reserve};

/// Bits of a stored `s1`, and of a channel of a stored mean.
const STATISTIC: usize = 4;
/// The largest number of so many bits.
const LARGEST: u8 = (1 << STATISTIC) - 1;

/// One head's vectors, a whole number of chunks.
pub(super) struct Chunks {
    shape: Shape,
    book: &'static Codebook,
    /// `(tokens, D)` in codewords.
    codes: Vec<u8>,
    /// `s2` of each token.
    spreads: Vec<f16>,
    /// `s1` of each token, then the mean's channels, chunk by chunk.
    statistics: Vec<u8>,
    /// What these stand for: two for each chunk.
    scales: Vec<[Scale; 2]>,
}

impl Chunks {
    pub(super) fn new(shape: Shape) -> Self {
        Self {
            shape,
            book: Codebook::of(shape.bits),
            codes: Vec::new(),
            spreads: Vec::new(),
            statistics: Vec::new(),
            scales: Vec::new(),
        }
    }

    fn row_bytes(&self) -> usize {
        self.shape.head_dim / PIECE * self.book.piece_bytes()
    }

    fn statistic_bytes(&self) -> usize {
        (self.shape.chunk + self.shape.head_dim) * STATISTIC / EIGHT
    }

    /// Stores `numbers` in 4 bits each, which become what is restored of them, with steps over the range of those that `counts`.
    /// With `least`, a restored number is at least that share of the number, which is not negative.
    fn store(&mut self, numbers: &mut [f32], counts: impl Fn(f32) -> bool, least: Option<f32>) -> Scale {
        let affine = Affine::plain(STATISTIC);
        let (min, max) = range(&numbers.iter().copied().filter(|&x| counts(x)).collect::<Vec<_>>());
        let scale = if min <= max { affine.scale(min, max) } else { affine.scale(0.0, 0.0) };
        let mut codes = vec![0; numbers.len()];
        affine.code_row(scale, numbers, &mut codes);
        for (code, &x) in codes.iter_mut().zip(&*numbers) {
            if least.is_some_and(|least| value(scale, *code) < least * x) && *code < LARGEST {
                *code += 1;
            }
        }
        pack_small(&codes, STATISTIC, &mut self.statistics);
        numbers.iter_mut().zip(codes).for_each(|(x, code)| *x = value(scale, code));
        scale
    }

    fn code_chunk(&mut self, rows: &[f32]) {
        let d = self.shape.head_dim;
        let root = (d as f32).sqrt();
        let norm = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>().sqrt();
        // A vector of zeros has no length to set the steps by. Lengths may differ by any factor: a vector must not be divided by
        // much less than its own.
        let mut lengths: Vec<f32> = rows.chunks_exact(d).map(|row| norm(row) / root).collect();
        let lengths_scale = self.store(&mut lengths, |x| x > 0.0, Some(0.5));
        let mut rows = rows.to_vec();
        let mut mean = vec![0f32; d];
        for (row, &length) in rows.chunks_exact_mut(d).zip(&lengths) {
            let factor = if length > 0.0 { 1.0 / length } else { 0.0 };
            row.iter_mut().for_each(|x| *x *= factor);
            mean.iter_mut().zip(&*row).for_each(|(sum, x)| *sum += x / self.shape.chunk as f32);
        }
        let mean_scale = self.store(&mut mean, |_| true, None);
        self.scales.push([lengths_scale, mean_scale]);
        let mut scores = Vec::new();
        for row in rows.chunks_exact_mut(d) {
            row.iter_mut().zip(&mean).for_each(|(x, mean)| *x -= mean);
            let spread = norm(row) / root;
            let factor = if spread > 0.0 { 1.0 / spread } else { 0.0 };
            row.iter_mut().for_each(|x| *x *= factor);
            hadamard::transform(row, hadamard::size(d));
            let at = self.codes.len();
            for piece in row.as_chunks().0 {
                self.book.encode(piece, &mut scores, &mut self.codes);
            }
            // Codewords are shorter than what they stand for: the restored vector gets its length back.
            self.book.decode(&self.codes[at..], 1.0, row);
            let short = norm(row) / root;
            self.spreads.push(saturating_f16(if short > 0.0 { spread / short } else { 0.0 }));
        }
    }
}

fn value(scale: Scale, code: u8) -> f32 {
    scale.zero.to_f32() + scale.step.to_f32() * f32::from(code)
}

impl HeadTokens for Chunks {
    fn append(&mut self, rows: &[f32], tokens: usize, _prompt: bool) {
        let Shape { chunk, head_dim, .. } = self.shape;
        assert!(tokens.is_multiple_of(chunk), "blocks are whole chunks");
        let (row_bytes, statistic_bytes) = (self.row_bytes(), self.statistic_bytes());
        reserve(&mut self.codes, tokens, row_bytes);
        reserve(&mut self.spreads, tokens, 1);
        reserve(&mut self.statistics, tokens / chunk, statistic_bytes);
        reserve(&mut self.scales, tokens / chunk, 1);
        rows.chunks_exact(chunk * head_dim).for_each(|rows| self.code_chunk(rows));
    }

    fn restore(&self, tokens: Range<usize>, out: &mut [f32]) {
        let Shape { chunk, head_dim: d, .. } = self.shape;
        let (row_bytes, statistic_bytes) = (self.row_bytes(), self.statistic_bytes());
        let mut statistics = STATISTICS.take();
        statistics.resize(chunk + d, 0.0);
        let mut at = tokens.start;
        while at < tokens.end {
            let (number, end) = (at / chunk, ((at / chunk + 1) * chunk).min(tokens.end));
            let [lengths, mean] = self.scales[number];
            let bytes = &self.statistics[number * statistic_bytes..][..statistic_bytes];
            unpack_small(bytes, STATISTIC, |i, code| {
                statistics[i] = value(if i < chunk { lengths } else { mean }, code);
            });
            let mean = &statistics[chunk..];
            for token in at..end {
                let (row, length) = (&mut out[(token - tokens.start) * d..][..d], statistics[token % chunk]);
                let codes = &self.codes[token * row_bytes..][..row_bytes];
                self.book.decode(codes, self.spreads[token].to_f32(), row);
                hadamard::transform(row, hadamard::size(d));
                row.iter_mut().zip(mean).for_each(|(x, mean)| *x = (*x + mean) * length);
            }
            at = end;
        }
        STATISTICS.set(statistics);
    }

    fn footprint(&self) -> Footprint {
        let scales = self.spreads.capacity() * size_of::<f16>()
            + self.statistics.capacity()
            + self.scales.capacity() * size_of::<[Scale; 2]>();
        Footprint { packed: self.codes.capacity(), scales, ..Footprint::default() }
    }

    fn drop_step(&self) -> usize {
        self.shape.chunk
    }

    fn drop_first(&mut self, tokens: usize) {
        let (row_bytes, statistic_bytes) = (self.row_bytes(), self.statistic_bytes());
        drop_front(&mut self.codes, tokens * row_bytes);
        drop_front(&mut self.spreads, tokens);
        drop_front(&mut self.statistics, tokens / self.shape.chunk * statistic_bytes);
        drop_front(&mut self.scales, tokens / self.shape.chunk);
    }
}

thread_local! {
    /// Statistics of a chunk, unpacked.
    static STATISTICS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coded::testing::{relative_error, variates};

    const D: usize = 64;
    const TOKENS: usize = 256;

    fn restored(bits: usize, rows: &[f32]) -> Vec<f32> {
        let mut chunks = Chunks::new(Shape { bits, chunk: 64, head_dim: D });
        chunks.append(rows, TOKENS, true);
        let mut out = vec![0.0; rows.len()];
        chunks.restore(0..TOKENS, &mut out);
        out
    }

    fn error(bits: usize, rows: &[f32]) -> f64 {
        relative_error(rows, &restored(bits, rows))
    }

    #[test]
    fn what_all_tokens_share_and_their_lengths_cost_nothing() {
        let normal = variates(3, TOKENS * D);
        let (one, two) = (error(1, &normal), error(2, &normal));
        assert!(one < 0.40 && two < 0.13, "{one}, {two}");
        // Channels with a bias of up to ten times the spread, tokens of lengths from 1 to 4.
        let shaped: Vec<f32> = normal
            .iter()
            .enumerate()
            .map(|(i, x)| (x + if i % D < 4 { 10.0 } else { 0.0 }) * (1 + i / D % 4) as f32)
            .collect();
        // Relative to vectors whose energy is 7 times that of what varies.
        let (one, two) = (error(1, &shaped), error(2, &shaped));
        assert!(one < 0.40 / 5.0 && two < 0.13 / 5.0, "{one}, {two}");
    }

    #[test]
    fn lengths_that_differ_by_any_factor_stay_finite() {
        let mut rows = variates(6, TOKENS * D);
        for (at, row) in rows.chunks_exact_mut(D).enumerate() {
            let factor = [1e-7, 1.0, 6e4][at % 3];
            row.iter_mut().for_each(|x| *x = (*x * factor).clamp(-65504.0, 65504.0));
        }
        for bits in [1, 2] {
            let out = restored(bits, &rows);
            assert!(out.iter().all(|x| x.is_finite()));
            assert!(relative_error(&rows, &out) < 0.5);
        }
    }

    #[test]
    fn a_vector_of_zeros_comes_back_small_and_others_as_before() {
        let mut rows = variates(5, TOKENS * D);
        rows[D * 10..D * 11].fill(0.0);
        let out = restored(2, &rows);
        let norm = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>().sqrt();
        assert!(norm(&out[D * 10..D * 11]) < 0.5 * norm(&rows[..D]));
        assert!(relative_error(&rows, &out) < 0.13);
        let zeros = vec![0.0; TOKENS * D];
        assert_eq!(restored(2, &zeros), zeros);
    }
}
