//! The model of a layer's numbers: the expected size of each number, and the probability of each size.
//!
//! The expected size of a coordinate is its mean size in the tokens before, times a ratio. The ratio compares the last
//! coordinates of the same token with their own means. Decisions with a similar expected size share their odds.
//! Everything is integer arithmetic, so a file gives the same numbers on every machine.

use kvcsr_codec::{Coder, Odds};

/// Fractional bits of expected sizes.
const POINT: u32 = 16;
/// All expected sizes below `2^-LOW` share one class. From there on, there are four classes for each doubling.
const LOW: u32 = 10;
const CLASSES: usize = 64;
/// Sizes up to this are coded in unary. The part above it follows as plain bits.
const UNARY: usize = 14;
/// The shift of the running mean of a coordinate's size.
const SLOW: u32 = 5;
/// The shift of the decaying sums over a token's last coordinates.
const RECENT: u32 = 4;
/// Low bits that are removed from both sums before the division, so that no product overflows.
const COARSE: u32 = 8;
/// Added to both sums. So a token with few or small coordinates is expected to be about as large as the others.
const PRIOR: u64 = 2 << POINT;
/// Largest size of a number.
pub(super) const LARGEST: i32 = 1 << 15;

/// The model of one layer.
pub(super) struct Symbols {
    /// Expected size of each coordinate.
    means: Vec<u32>,
    nonzero: [Odds; CLASSES],
    more: [[Odds; UNARY]; CLASSES],
    /// A binary tree over the indices of the atoms.
    atoms: Vec<Odds>,
    index_bits: u32,
}

impl Symbols {
    /// A model for coordinates with these deviations, in steps.
    pub(super) fn new(deviations: &[f32], index_bits: usize) -> Self {
        Self {
            means: deviations.iter().map(|&deviation| expected(deviation)).collect(),
            nonzero: [Odds::default(); CLASSES],
            more: [[Odds::default(); UNARY]; CLASSES],
            atoms: vec![Odds::default(); 1 << index_bits],
            index_bits: index_bits as u32,
        }
    }

    /// Changes to steps that are `times` finer. The first `coded` coordinates had numbers before. For the others,
    /// `deviations` are their deviations in the new steps.
    pub(super) fn refine(&mut self, times: u32, coded: usize, deviations: &[f32]) {
        for (at, (mean, &deviation)) in self.means.iter_mut().zip(deviations).enumerate() {
            *mean = if at < coded { mean.saturating_mul(times) } else { expected(deviation) };
        }
    }

    /// Codes one token: its atom and its first numbers. An encoder reads `atom` and `numbers`, and a decoder fills them
    /// in.
    pub(super) fn token(&mut self, coder: &mut impl Coder, atom: &mut usize, numbers: &mut [i32]) {
        let mut node = 1;
        for at in (0..self.index_bits).rev() {
            let bit = coder.bit(*atom >> at & 1 == 1, &mut self.atoms[node]);
            node = node << 1 | usize::from(bit);
        }
        *atom = node - (1 << self.index_bits);
        let (mut found, mut usual) = (0, 0);
        for (number, mean) in numbers.iter_mut().zip(&mut self.means) {
            let expected = u64::from(*mean) * ((found + PRIOR) >> COARSE) / ((usual + PRIOR) >> COARSE);
            *number = size(coder, *number, expected, &mut self.nonzero, &mut self.more);
            let size = number.unsigned_abs() << POINT;
            found = found - (found >> RECENT) + u64::from(size);
            usual = usual - (usual >> RECENT) + u64::from(*mean);
            *mean = if size > *mean { *mean + ((size - *mean) >> SLOW) } else { *mean - ((*mean - size) >> SLOW) };
        }
    }
}

/// A rough estimate of the size of a number with a deviation of `steps`. It is corrected by the numbers that follow.
fn expected(steps: f32) -> u32 {
    let square = steps * steps;
    (0.8 * steps * square / (square + 0.25 * steps + 0.1) * (1 << POINT) as f32) as u32
}

/// Codes a number whose expected size is `expected`.
#[inline]
fn size(
    coder: &mut impl Coder,
    number: i32,
    expected: u64,
    nonzero: &mut [Odds; CLASSES],
    more: &mut [[Odds; UNARY]; CLASSES],
) -> i32 {
    let expected = expected.max(1 << 4);
    let log = expected.ilog2();
    let quarters = (log << 2 | (expected >> (log - 2)) as u32 & 3).saturating_sub((POINT - LOW) << 2);
    let class = (quarters as usize).min(CLASSES - 1);
    // The lowest bits of large numbers are nearly random.
    let plain = log.saturating_sub(POINT + 2).min(12);
    let given = number.unsigned_abs();
    let high = given >> plain;
    if !coder.bit(high != 0, &mut nonzero[class]) {
        let low = coder.plain(given & ((1 << plain) - 1), plain);
        return signed(coder, number, low);
    }
    let mut count = 1;
    for odds in &mut more[class] {
        if !coder.bit(high > count, odds) {
            break;
        }
        count += 1;
    }
    if count as usize > UNARY {
        // First the number of bits, then the bits.
        let beyond = (high.max(count) - count + 1).min(1 << 15);
        let bits = coder.plain(beyond.ilog2(), 4);
        let top = 1 << bits;
        count += (top | coder.plain(beyond & (top - 1), bits)) - 1;
    }
    let low = coder.plain(given & ((1 << plain) - 1), plain);
    signed(coder, number, (count << plain | low).min(LARGEST as u32))
}

#[inline]
fn signed(coder: &mut impl Coder, number: i32, size: u32) -> i32 {
    match size {
        0 => 0,
        size if coder.plain(u32::from(number < 0), 1) == 1 => -(size as i32),
        size => size as i32,
    }
}

#[cfg(test)]
mod tests {
    use kvcsr_codec::{RangeDecoder, RangeEncoder};
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Tokens of 40 coordinates, whose deviations fall from 60 to 0.1 steps. A few numbers are very large.
    fn tokens(count: usize) -> (Vec<f32>, Vec<(usize, Vec<i32>)>) {
        let deviations: Vec<f32> = (0..40).map(|at| 60.0 * 0.85f32.powi(at)).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut normal = || (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0;
        let tokens = (0..count).map(|token| {
            let numbers = deviations.iter().enumerate().map(|(at, deviation)| {
                let giant = if token == 7 && at % 9 == 0 { 900.0 } else { 1.0 };
                ((normal() * deviation * giant).round() as i32).clamp(-LARGEST, LARGEST)
            });
            (token * 7 % 11, numbers.collect())
        });
        let tokens = tokens.collect();
        (deviations, tokens)
    }

    #[test]
    fn numbers_come_back_and_cost_about_their_entropy() {
        let (deviations, tokens) = tokens(3000);
        let mut bytes = Vec::new();
        let mut encoder = RangeEncoder::new(&mut bytes);
        let mut symbols = Symbols::new(&deviations, 4);
        for (atom, numbers) in &tokens {
            symbols.token(&mut encoder, &mut atom.clone(), &mut numbers.clone());
        }
        encoder.finish();
        let mut decoder = RangeDecoder::new(&bytes);
        let mut symbols = Symbols::new(&deviations, 4);
        for (token, (atom, numbers)) in tokens.iter().enumerate() {
            let (mut found, mut read) = (0, vec![0; numbers.len()]);
            symbols.token(&mut decoder, &mut found, &mut read);
            assert_eq!((found, &read), (*atom, numbers), "{token}");
        }
        // If the deviation is well above one step, the entropy of a normal variate in steps is log2(deviation) + 2.05
        // bits.
        let entropy: f32 = deviations.iter().map(|d| if *d > 1.0 { d.log2() + 2.05 } else { 1.8 * d.min(1.0) }).sum();
        let taken = 8.0 * bytes.len() as f32 / tokens.len() as f32 - 4.0;
        assert!(taken < 1.08 * entropy, "{taken} bits, {entropy} at best");
    }

    #[test]
    fn any_bytes_are_numbers() {
        let deviations = [3000.0, 5.0, 0.2];
        for seed in 0..200u64 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let bytes: Vec<u8> = (0..seed).map(|_| rng.random()).collect();
            let (mut decoder, mut symbols) = (RangeDecoder::new(&bytes), Symbols::new(&deviations, 2));
            for _ in 0..100 {
                let (mut atom, mut numbers) = (0, [0; 3]);
                symbols.token(&mut decoder, &mut atom, &mut numbers);
                assert!(atom < 4 && numbers.iter().all(|n| n.abs() <= LARGEST));
            }
        }
    }
}
