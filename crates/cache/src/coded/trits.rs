//! Ternary digits packed five to a byte.

/// Ternary digits per byte.
const TRITS: usize = 5;

/// Bytes that `n` ternary digits take.
pub fn trit_bytes(n: usize) -> usize {
    n.div_ceil(TRITS)
}

/// Appends ternary digits (0, 1 or 2), five to a byte. The last byte is filled with zeros.
pub fn pack_trits(digits: &[u8], out: &mut Vec<u8>) {
    out.extend(digits.chunks(TRITS).map(|five| five.iter().rev().fold(0, |byte, &digit| byte * 3 + digit)));
}

/// Writes the digits that [`pack_trits`] packed into `bytes`, minus one: -1, 0 or 1.
pub fn unpack_trits(bytes: &[u8], out: &mut [f32]) {
    /// The digits of every byte.
    static DIGITS: [[f32; TRITS]; 243] = {
        let mut all = [[0.0; TRITS]; 243];
        let mut byte = 0;
        while byte < 243 {
            let (mut rest, mut i) = (byte, 0);
            while i < TRITS {
                all[byte][i] = (rest % 3) as f32 - 1.0;
                rest /= 3;
                i += 1;
            }
            byte += 1;
        }
        all
    };
    let (whole, rest) = out.as_chunks_mut::<TRITS>();
    for (out, &byte) in whole.iter_mut().zip(bytes) {
        *out = DIGITS[usize::from(byte)];
    }
    if let Some(&byte) = bytes.get(whole.len()) {
        rest.copy_from_slice(&DIGITS[usize::from(byte)][..rest.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
