//! Adaptive range coding of binary decisions. A decision that the previous ones make likely takes few bits.
//!
//! The arithmetic is that of LZMA: the range has 32 bits, and carries are resolved by a count of pending bytes. The
//! probability is the mean of two estimates. One follows the decisions fast, the other slowly.

/// The probability of a decision. It is learned during coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Odds {
    /// Two estimates of the probability of "no", in units of 1/65536.
    fast: u16,
    slow: u16,
}

/// The right shifts that set how fast the two estimates follow.
const RATES: [u32; 2] = [4, 7];
/// The range is refilled when it is below this value.
const LEAST: u32 = 1 << 24;

impl Default for Odds {
    fn default() -> Self {
        Self { fast: 1 << 15, slow: 1 << 15 }
    }
}

impl Odds {
    /// The probability of "no", in units of 1/65536. It is never 0 or 65536.
    #[inline]
    fn no(self) -> u32 {
        u32::from(self.fast).midpoint(self.slow.into())
    }

    #[inline]
    fn learn(&mut self, bit: bool) {
        let follow = |p: u16, rate: u32| {
            let p = u32::from(p);
            // Both estimates stay inside u16 and above 0.
            (if bit { p - (p >> rate) } else { p + (((1 << 16) - p) >> rate) }) as u16
        };
        (self.fast, self.slow) = (follow(self.fast, RATES[0]), follow(self.slow, RATES[1]));
    }
}

/// One side of the range code. The encoder writes the given value and returns it. The decoder ignores the given value and
/// returns the value that it reads. A model written once over this trait is therefore the same on both sides.
pub trait Coder {
    /// Codes a decision with the probability `odds`, and updates `odds`.
    fn bit(&mut self, bit: bool, odds: &mut Odds) -> bool;

    /// Codes the lowest `bits` bits of `value`, at most 16, without a model.
    fn plain(&mut self, value: u32, bits: u32) -> u32;
}

/// Writes a range code.
#[derive(Debug)]
pub struct RangeEncoder<'a> {
    out: &'a mut Vec<u8>,
    low: u64,
    range: u32,
    held: u8,
    /// Number of bytes that a carry may still change: the held byte and the bytes of 255 after it.
    pending: usize,
}

impl<'a> RangeEncoder<'a> {
    /// Starts at the end of `out`. As in LZMA, the first byte of a code is 0, so that a carry always has a byte to go to.
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, low: 0, range: u32::MAX, held: 0, pending: 1 }
    }

    #[inline]
    fn shift(&mut self) {
        let carry = (self.low >> 32) as u8;
        if carry != 0 || self.low < 0xff00_0000 {
            self.out.push(self.held.wrapping_add(carry));
            self.out.extend(std::iter::repeat_n(0xffu8.wrapping_add(carry), self.pending - 1));
            self.pending = 0;
            self.held = (self.low >> 24) as u8;
        }
        self.pending += 1;
        self.low = (self.low & 0x00ff_ffff) << 8;
    }

    #[inline]
    fn refill(&mut self) {
        while self.range < LEAST {
            self.range <<= 8;
            self.shift();
        }
    }

    /// Writes the pending bytes.
    pub fn finish(mut self) {
        for _ in 0..5 {
            self.shift();
        }
    }
}

impl Coder for RangeEncoder<'_> {
    #[inline]
    fn bit(&mut self, bit: bool, odds: &mut Odds) -> bool {
        let bound = (self.range >> 16) * odds.no();
        if bit {
            self.low += u64::from(bound);
            self.range -= bound;
        } else {
            self.range = bound;
        }
        odds.learn(bit);
        self.refill();
        bit
    }

    #[inline]
    fn plain(&mut self, value: u32, bits: u32) -> u32 {
        for at in (0..bits).rev() {
            self.range >>= 1;
            if value >> at & 1 == 1 {
                self.low += u64::from(self.range);
            }
            self.refill();
        }
        value
    }
}

/// Reads what [`RangeEncoder`] wrote. Missing bytes are read as 0. A truncated code therefore decodes to other values, but
/// never panics.
#[derive(Debug)]
pub struct RangeDecoder<'a> {
    bytes: std::slice::Iter<'a, u8>,
    code: u32,
    range: u32,
}

impl<'a> RangeDecoder<'a> {
    /// Starts at the first byte.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        let mut this = Self { bytes: bytes.iter(), code: 0, range: u32::MAX };
        // The first byte carries no information.
        for _ in 0..5 {
            this.code = this.code << 8 | this.next();
        }
        this
    }

    #[inline]
    fn next(&mut self) -> u32 {
        self.bytes.next().copied().unwrap_or(0).into()
    }

    #[inline]
    fn refill(&mut self) {
        while self.range < LEAST {
            self.range <<= 8;
            self.code = self.code << 8 | self.next();
        }
    }
}

impl Coder for RangeDecoder<'_> {
    #[inline]
    fn bit(&mut self, _: bool, odds: &mut Odds) -> bool {
        let bound = (self.range >> 16) * odds.no();
        let bit = self.code >= bound;
        if bit {
            self.code -= bound;
            self.range -= bound;
        } else {
            self.range = bound;
        }
        odds.learn(bit);
        self.refill();
        bit
    }

    #[inline]
    fn plain(&mut self, _: u32, bits: u32) -> u32 {
        let mut value = 0;
        for _ in 0..bits {
            self.range >>= 1;
            let bit = self.code >= self.range;
            if bit {
                self.code -= self.range;
            }
            value = value << 1 | u32::from(bit);
            self.refill();
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Codes decisions of three models, with plain bits between them.
    fn pass(coder: &mut impl Coder, symbols: &[(bool, u8, u16)]) -> Vec<(bool, u8, u16)> {
        let mut odds = [Odds::default(); 3];
        let code = |&(bit, model, value): &(bool, u8, u16)| {
            let bit = coder.bit(bit, &mut odds[usize::from(model % 3)]);
            let bits = u32::from(model % 17);
            (bit, model, coder.plain(u32::from(value) & ((1 << bits) - 1), bits) as u16)
        };
        symbols.iter().map(code).collect()
    }

    proptest! {
        #[test]
        fn what_was_coded_comes_back(mut symbols in vec((any::<bool>(), any::<u8>(), any::<u16>()), 0..2000), likely: bool) {
            for symbol in &mut symbols {
                symbol.0 |= likely;
                symbol.2 &= ((1u32 << (symbol.1 % 17)) - 1) as u16;
            }
            let mut bytes = vec![7];
            let mut encoder = RangeEncoder::new(&mut bytes);
            pass(&mut encoder, &symbols);
            encoder.finish();
            prop_assert_eq!(pass(&mut RangeDecoder::new(&bytes[1..]), &symbols), symbols);
        }

        #[test]
        fn any_bytes_decode_to_something(bytes in vec(any::<u8>(), 0..64), length in 0usize..500) {
            pass(&mut RangeDecoder::new(&bytes), &vec![(false, 5, 0); length]);
        }
    }

    #[test]
    fn codes_that_begin_with_the_largest_bytes_come_back() {
        for ones in [8, 16, 24, 32, 40] {
            let symbols: Vec<(bool, u8, u16)> =
                (0..ones).map(|_| (false, 1, 1)).chain([(true, 7, 3), (false, 16, 65_535)]).collect();
            for bits in [&symbols[..], &symbols[ones..]] {
                let mut bytes = Vec::new();
                let mut encoder = RangeEncoder::new(&mut bytes);
                (0..ones).for_each(|_| assert_eq!(encoder.plain(1, 1), 1));
                pass(&mut encoder, bits);
                encoder.finish();
                let mut decoder = RangeDecoder::new(&bytes);
                (0..ones).for_each(|at| assert_eq!(decoder.plain(0, 1), 1, "bit {at} of {ones}"));
                assert_eq!(pass(&mut decoder, bits), bits);
            }
        }
    }

    #[test]
    fn a_likely_decision_takes_a_small_part_of_a_bit() {
        let mut bytes = Vec::new();
        let mut encoder = RangeEncoder::new(&mut bytes);
        let mut odds = Odds::default();
        // Every 50th decision is yes: the entropy is 0.141 bits per decision.
        for at in 0..100_000 {
            encoder.bit(at % 50 == 0, &mut odds);
        }
        encoder.finish();
        let bits = 8.0 * bytes.len() as f64 / 1e5;
        assert!((0.135..0.17).contains(&bits), "{bits}");
    }
}
