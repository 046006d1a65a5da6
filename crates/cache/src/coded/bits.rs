//! Small integers packed into bytes, and ternary digits five to a byte.

/// Codes packed and unpacked at a time: eight codes of `b` bits are `b` bytes.
pub const CODES: usize = 8;

/// Appends `codes`, a multiple of eight of them, `bits` (1 to 8) each, the first in the lowest bits.
pub fn pack(codes: &[u8], bits: usize, out: &mut Vec<u8>) {
    debug_assert!(codes.len().is_multiple_of(CODES) && (1..=8).contains(&bits));
    for eight in codes.chunks_exact(CODES) {
        let word = eight.iter().rev().fold(0u64, |word, &code| word << bits | u64::from(code));
        out.extend_from_slice(&word.to_le_bytes()[..bits]);
    }
}

/// Calls `each(at, code)` for all codes of `bytes`, which [`pack`] made.
#[inline]
pub fn unpack(bytes: &[u8], bits: usize, each: impl FnMut(usize, u8)) {
    match bits {
        1 => unpack_of::<1>(bytes, each),
        2 => unpack_of::<2>(bytes, each),
        3 => unpack_of::<3>(bytes, each),
        4 => unpack_of::<4>(bytes, each),
        8 => unpack_of::<8>(bytes, each),
        _ => unpack_any(bytes, bits, each),
    }
}

#[inline]
fn unpack_of<const BITS: usize>(bytes: &[u8], mut each: impl FnMut(usize, u8)) {
    for (at, eight) in bytes.chunks_exact(BITS).enumerate() {
        let mut word = [0u8; 8];
        word[..BITS].copy_from_slice(eight);
        let word = u64::from_le_bytes(word);
        for i in 0..CODES {
            each(at * CODES + i, (word >> (i * BITS)) as u8 & (0xff >> (8 - BITS)));
        }
    }
}

fn unpack_any(bytes: &[u8], bits: usize, mut each: impl FnMut(usize, u8)) {
    for (at, eight) in bytes.chunks_exact(bits).enumerate() {
        let mut word = [0u8; 8];
        word[..bits].copy_from_slice(eight);
        let word = u64::from_le_bytes(word);
        for i in 0..CODES {
            each(at * CODES + i, (word >> (i * bits)) as u8 & (0xff >> (8 - bits)));
        }
    }
}

/// Trits to a byte.
const TRITS: usize = 5;

/// Bytes that `n` ternary digits take.
pub fn trit_bytes(n: usize) -> usize {
    n.div_ceil(TRITS)
}

/// Appends ternary digits (0, 1 or 2), five to a byte; the last byte is filled up.
pub fn pack_trits(digits: &[u8], out: &mut Vec<u8>) {
    out.extend(digits.chunks(TRITS).map(|five| five.iter().rev().fold(0, |byte, &digit| byte * 3 + digit)));
}

/// Writes the digits of `bytes`, which [`pack_trits`] made, less one: -1, 0 or 1.
pub fn unpack_trits(bytes: &[u8], out: &mut [f32]) {
    /// The digits of every byte.
    const DIGITS: [[i8; TRITS]; 243] = {
        let mut all = [[0; TRITS]; 243];
        let mut byte = 0;
        while byte < 243 {
            let (mut rest, mut i) = (byte, 0);
            while i < TRITS {
                all[byte][i] = (rest % 3) as i8 - 1;
                rest /= 3;
                i += 1;
            }
            byte += 1;
        }
        all
    };
    for (&byte, out) in bytes.iter().zip(out.chunks_mut(TRITS)) {
        for (out, &digit) in out.iter_mut().zip(&DIGITS[usize::from(byte)]) {
            *out = f32::from(digit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_every_width_come_back() {
        for bits in 1..=8 {
            let codes: Vec<u8> = (0..64u32).map(|i| (i * 37 % 251) as u8 & (0xff >> (8 - bits))).collect();
            let mut bytes = Vec::new();
            pack(&codes, bits, &mut bytes);
            assert_eq!(bytes.len(), 64 * bits / 8);
            let mut back = vec![0; 64];
            unpack(&bytes, bits, |at, code| back[at] = code);
            assert_eq!(back, codes, "{bits}");
        }
        let mut bytes = Vec::new();
        pack(&[1, 2, 3, 0, 1, 1, 2, 3], 2, &mut bytes);
        assert_eq!(bytes, [0b0011_1001, 0b1110_0101]);
    }

    #[test]
    fn ternary_digits_come_back() {
        let digits: Vec<u8> = (0..64u8).map(|i| i * 7 % 3).collect();
        let mut bytes = Vec::new();
        pack_trits(&digits, &mut bytes);
        assert_eq!(bytes.len(), trit_bytes(64));
        let mut back = [0.0; 64];
        unpack_trits(&bytes, &mut back);
        assert!(back.iter().zip(&digits).all(|(&b, &d)| b == f32::from(d) - 1.0));
    }
}
