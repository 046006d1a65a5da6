//! Packs numbers of a few bits each. The lowest bits come first, and there are no gaps between numbers.

/// Appends numbers of up to 32 bits to bytes.
#[derive(Debug)]
pub struct BitWriter<'a> {
    bytes: &'a mut Vec<u8>,
    held: u64,
    count: usize,
}

impl<'a> BitWriter<'a> {
    /// Starts at the next whole byte of `bytes`.
    pub fn new(bytes: &'a mut Vec<u8>) -> Self {
        Self { bytes, held: 0, count: 0 }
    }

    /// Appends the lowest `bits` bits of `value`, at most 32. The other bits of `value` must be 0.
    pub fn write(&mut self, value: u32, bits: usize) {
        debug_assert!(bits == 32 || value >> bits == 0);
        self.held |= u64::from(value) << self.count;
        self.count += bits;
        while self.count >= 8 {
            self.bytes.push(self.held as u8);
            self.held >>= 8;
            self.count -= 8;
        }
    }

    /// Fills the last byte with zero bits.
    pub fn finish(self) {
        if self.count > 0 {
            self.bytes.push(self.held as u8);
        }
    }
}

/// Reads what [`BitWriter`] wrote.
#[derive(Clone, Debug)]
pub struct BitReader<'a> {
    bytes: &'a [u8],
    held: u64,
    count: usize,
}

impl<'a> BitReader<'a> {
    /// Starts at the first byte.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, held: 0, count: 0 }
    }

    /// Returns the next `bits` bits, at most 32.
    ///
    /// # Panics
    /// If fewer than `bits` bits are left.
    #[inline]
    pub fn read(&mut self, bits: usize) -> u32 {
        while self.count < bits {
            let (&first, rest) = self.bytes.split_first().expect("a row holds all its bits");
            self.held |= u64::from(first) << self.count;
            self.bytes = rest;
            self.count += 8;
        }
        let value = self.held & ((1 << bits) - 1);
        self.held >>= bits;
        self.count -= bits;
        value as u32
    }
}

/// Bytes that a row of `count` numbers of `bits` bits each takes.
#[must_use]
pub fn packed_bytes(count: usize, bits: usize) -> usize {
    (count * bits).div_ceil(8)
}

/// Appends a row of numbers below `2^bits`, padded to a whole byte.
pub fn pack_bits(numbers: &[u16], bits: usize, bytes: &mut Vec<u8>) {
    let mut writer = BitWriter::new(bytes);
    for &number in numbers {
        writer.write(number.into(), bits);
    }
    writer.finish();
}

/// Reads a row that [`pack_bits`] wrote. It reads as many numbers as the slice holds.
///
/// # Panics
/// If the bytes hold fewer numbers.
pub fn unpack_bits(bytes: &[u8], bits: usize, numbers: &mut [u16]) {
    if bits == 8 {
        assert!(bytes.len() >= numbers.len());
        return numbers.iter_mut().zip(bytes).for_each(|(to, &byte)| *to = byte.into());
    }
    let mut reader = BitReader::new(bytes);
    for number in numbers {
        *number = reader.read(bits) as u16;
    }
}

/// How many numbers [`pack_small`] and [`unpack_small`] process at a time. Eight numbers of `b` bits take `b` bytes.
pub const EIGHT: usize = 8;

/// Does the same as [`pack_bits`] for numbers of 1 to 8 bits. Their count must be a multiple of eight, so neither a row
/// nor a sequence of rows has padding.
pub fn pack_small(numbers: &[u8], bits: usize, bytes: &mut Vec<u8>) {
    debug_assert!(numbers.len().is_multiple_of(EIGHT) && (1..=8).contains(&bits));
    for eight in numbers.chunks_exact(EIGHT) {
        let word = eight.iter().rev().fold(0u64, |word, &number| word << bits | u64::from(number));
        bytes.extend_from_slice(&word.to_le_bytes()[..bits]);
    }
}

/// Calls `each(at, number)` for all numbers in `bytes`, which [`pack_small`] wrote.
#[inline]
pub fn unpack_small(bytes: &[u8], bits: usize, each: impl FnMut(usize, u8)) {
    // The usual widths are compiled separately: with a constant shift they run several times as fast.
    match bits {
        1 => unpack_eights(bytes, 1, each),
        2 => unpack_eights(bytes, 2, each),
        3 => unpack_eights(bytes, 3, each),
        4 => unpack_eights(bytes, 4, each),
        8 => unpack_eights(bytes, 8, each),
        _ => unpack_eights(bytes, bits, each),
    }
}

#[inline(always)]
fn unpack_eights(bytes: &[u8], bits: usize, mut each: impl FnMut(usize, u8)) {
    for (at, eight) in bytes.chunks_exact(bits).enumerate() {
        let mut word = [0u8; 8];
        word[..bits].copy_from_slice(eight);
        let word = u64::from_le_bytes(word);
        for i in 0..EIGHT {
            each(at * EIGHT + i, (word >> (i * bits)) as u8 & (0xff >> (8 - bits)));
        }
    }
}

/// Does the same as [`unpack_small`] for all numbers of `out`, as f32. It uses a table if no number crosses a byte.
pub fn unpack_wide(bytes: &[u8], bits: usize, out: &mut [f32]) {
    match bits {
        1 => look_up(&ONES, bytes, out),
        2 => look_up(&TWOS, bytes, out),
        4 => look_up(&FOURS, bytes, out),
        _ => unpack_small(bytes, bits, |at, number| out[at] = number.into()),
    }
}

static ONES: [[f32; 8]; 256] = fields();
static TWOS: [[f32; 4]; 256] = fields();
static FOURS: [[f32; 2]; 256] = fields();

/// The `N` equal fields of every byte, lowest bits first.
const fn fields<const N: usize>() -> [[f32; N]; 256] {
    let (bits, mut all, mut byte) = (8 / N, [[0.0; N]; 256], 0);
    while byte < 256 {
        let mut at = 0;
        while at < N {
            all[byte][at] = ((byte >> (at * bits)) & ((1 << bits) - 1)) as f32;
            at += 1;
        }
        byte += 1;
    }
    all
}

fn look_up<const N: usize>(table: &[[f32; N]; 256], bytes: &[u8], out: &mut [f32]) {
    for (out, &byte) in out.as_chunks_mut::<N>().0.iter_mut().zip(bytes) {
        *out = table[usize::from(byte)];
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
            rows.iter().for_each(|row| pack_bits(row, bits, &mut bytes));
            let each = packed_bytes(11, bits);
            assert_eq!(bytes.len(), 3 * each);
            for (row, bytes) in rows.iter().zip(bytes.chunks_exact(each)) {
                let mut back = vec![0; 11];
                unpack_bits(bytes, bits, &mut back);
                assert_eq!(&back, row, "{bits}");
            }
        }
    }

    #[test]
    fn eights_are_packed_as_rows_are() {
        for bits in 1..=8 {
            let numbers: Vec<u8> = (0..64u32).map(|i| (i * 37 % 251) as u8 & (0xff >> (8 - bits))).collect();
            let wide: Vec<u16> = numbers.iter().map(|&x| x.into()).collect();
            let (mut bytes, mut expected) = (Vec::new(), Vec::new());
            pack_small(&numbers, bits, &mut bytes);
            pack_bits(&wide, bits, &mut expected);
            assert_eq!(bytes, expected, "{bits}");
            let mut back = vec![0; 64];
            unpack_small(&bytes, bits, |at, number| back[at] = number);
            let mut wide = vec![0.0; back.len()];
            unpack_wide(&bytes, bits, &mut wide);
            assert!(wide.iter().zip(&back).all(|(wide, &number)| *wide == f32::from(number)), "{bits} bits");
            assert_eq!(back, numbers, "{bits}");
        }
        let mut bytes = Vec::new();
        pack_small(&[1, 2, 3, 0, 1, 1, 2, 3], 2, &mut bytes);
        assert_eq!(bytes, [0b0011_1001, 0b1110_0101]);
    }
}
