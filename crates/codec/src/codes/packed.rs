//! Packed sparse codes: indices in as many bits as the dictionary needs, small coefficients.

use std::ops::Range;

use half::f16;
use serde::{Deserialize, Serialize};

use crate::Footprint;
use crate::kernels::saturating_f16;

/// Rows by which the vectors grow.
const PAGE_ROWS: usize = 256;

/// How a packed code stores its coefficients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CoefficientFormat {
    /// IEEE half precision, saturating.
    F16,
    /// Eight-bit floating point: 4 exponent and 3 mantissa bits, no infinity, saturating at ±448.
    Fp8,
    /// Eight-bit integers times a scale per row.
    Int8,
    /// Six-bit integers times a scale per row.
    Int6,
    /// Four-bit integers times a scale per row.
    Int4,
}

impl CoefficientFormat {
    /// All formats, the widest first.
    pub const ALL: [Self; 5] = [Self::F16, Self::Fp8, Self::Int8, Self::Int6, Self::Int4];

    /// `"f16"`, `"fp8"`, `"int8"`, `"int6"` or `"int4"`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Fp8 => "fp8",
            Self::Int8 => "int8",
            Self::Int6 => "int6",
            Self::Int4 => "int4",
        }
    }

    /// Bits of one coefficient.
    #[must_use]
    pub const fn bits(self) -> usize {
        match self {
            Self::F16 => 16,
            Self::Fp8 | Self::Int8 => 8,
            Self::Int6 => 6,
            Self::Int4 => 4,
        }
    }

    /// The largest integer of an integer format; the smallest is its negative.
    const fn largest_integer(self) -> Option<i32> {
        match self {
            Self::F16 | Self::Fp8 => None,
            Self::Int8 | Self::Int6 | Self::Int4 => Some((1 << (self.bits() - 1)) - 1),
        }
    }

    /// Bits of a row's scale: 16 for integer formats, else 0.
    #[must_use]
    pub const fn scale_bits(self) -> usize {
        if self.largest_integer().is_some() { 16 } else { 0 }
    }
}

/// How one row becomes bits: indices of `ceil(log2 N)` bits, then coefficients, padded to a whole byte.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowFormat {
    index_bits: usize,
    pub(crate) coefficients: CoefficientFormat,
}

impl RowFormat {
    /// # Panics
    /// If `atoms` is not in `1..=65536`.
    pub(crate) fn new(atoms: usize, coefficients: CoefficientFormat) -> Self {
        Self { index_bits: index_bits(atoms), coefficients }
    }

    /// Bytes of a row of `entries` atoms, without its scale.
    pub(crate) fn bytes(self, entries: usize) -> usize {
        (entries * (self.index_bits + self.coefficients.bits())).div_ceil(8)
    }

    /// Appends one row; its scale is returned for integer formats.
    ///
    /// # Panics
    /// If an index needs more bits than the dictionary.
    pub(crate) fn write(self, indices: &[u16], coefficients: &[f32], bytes: &mut Vec<u8>) -> Option<f16> {
        let mut bits = BitWriter { bytes, held: 0, count: 0 };
        for &index in indices {
            assert!(u32::from(index) >> self.index_bits == 0, "atom {index} is beyond the dictionary");
            bits.write(index.into(), self.index_bits);
        }
        let mut kept = None;
        match self.coefficients.largest_integer() {
            Some(largest) => {
                let top = coefficients.iter().fold(0.0f32, |m, c| m.max(c.abs()));
                let scale = saturating_f16(top / largest as f32);
                let inverse = if scale > f16::ZERO { 1.0 / scale.to_f32() } else { 0.0 };
                let width = self.coefficients.bits();
                for &c in coefficients {
                    let q = ((c * inverse).round() as i32).clamp(-largest, largest);
                    bits.write(q as u32 & ((1 << width) - 1), width);
                }
                kept = Some(scale);
            }
            None if self.coefficients == CoefficientFormat::Fp8 => {
                coefficients.iter().for_each(|&c| bits.write(to_e4m3(c).into(), 8));
            }
            None => coefficients.iter().for_each(|&c| {
                bits.write(saturating_f16(c).to_bits().into(), 16);
            }),
        }
        bits.finish();
        kept
    }

    /// Reads the row in `bytes`, as many entries as the slices hold; `scale` is that of integer formats.
    pub(crate) fn read(self, bytes: &[u8], scale: f16, indices: &mut [u16], coefficients: &mut [f32]) {
        let mut bits = BitReader { bytes, held: 0, count: 0 };
        for index in indices {
            *index = bits.read(self.index_bits) as u16;
        }
        let width = self.coefficients.bits();
        if self.coefficients.largest_integer().is_some() {
            let (scale, unused) = (scale.to_f32(), 32 - width);
            for c in coefficients {
                *c = (((bits.read(width) << unused) as i32) >> unused) as f32 * scale;
            }
        } else if self.coefficients == CoefficientFormat::Fp8 {
            coefficients.iter_mut().for_each(|c| *c = from_e4m3(bits.read(8) as u8));
        } else {
            coefficients.iter_mut().for_each(|c| *c = f16::from_bits(bits.read(16) as u16).to_f32());
        }
    }
}

/// Codes of fixed sparsity `s` as a bit stream per row: `s` indices of `ceil(log2 N)` bits, then
/// `s` coefficients, padded to a whole byte. Integer formats add one f16 scale per row, the
/// largest magnitude over the largest integer.
#[derive(Clone, Debug)]
pub struct PackedCodes {
    sparsity: usize,
    format: RowFormat,
    bytes: Vec<u8>,
    scales: Vec<f16>,
}

impl PackedCodes {
    /// No rows yet, and nothing allocated; rows will name `atoms` atoms at most.
    ///
    /// # Panics
    /// If `sparsity` is 0 or `atoms` is not in `1..=65536`.
    #[must_use]
    pub fn new(sparsity: usize, atoms: usize, format: CoefficientFormat) -> Self {
        assert!(sparsity > 0, "a code keeps at least one atom per row");
        Self { sparsity, format: RowFormat::new(atoms, format), bytes: Vec::new(), scales: Vec::new() }
    }

    /// Bytes of one row's indices and coefficients, without its scale.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.format.bytes(self.sparsity)
    }

    /// Rows held.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.bytes.len() / self.row_bytes()
    }

    /// Atoms per row, the paper's `s`.
    #[must_use]
    pub fn sparsity(&self) -> usize {
        self.sparsity
    }

    /// Appends rows `(n, sparsity)`; coefficients are rounded to the nearest value of the format.
    ///
    /// # Panics
    /// If the slices differ in length or are not a whole number of rows, or an index needs more
    /// bits than the dictionary of [`PackedCodes::new`].
    pub fn append(&mut self, indices: &[u16], coefficients: &[f32]) {
        assert_eq!(indices.len(), coefficients.len(), "one coefficient per index");
        assert_eq!(indices.len() % self.sparsity, 0, "whole rows");
        let (rows, row_bytes) = (indices.len() / self.sparsity, self.row_bytes());
        if self.bytes.capacity() - self.bytes.len() < rows * row_bytes {
            self.bytes.reserve_exact(rows.max(PAGE_ROWS) * row_bytes);
            if self.format.coefficients.scale_bits() > 0 {
                self.scales.reserve_exact(rows.max(PAGE_ROWS));
            }
        }
        let codes = indices.chunks_exact(self.sparsity).zip(coefficients.chunks_exact(self.sparsity));
        for (indices, coefficients) in codes {
            self.scales.extend(self.format.write(indices, coefficients, &mut self.bytes));
        }
    }

    /// Indices and coefficients of `rows`, `(rows.len(), sparsity)` each.
    ///
    /// # Panics
    /// If the rows are not held or a slice has another size.
    pub fn unpack(&self, rows: Range<usize>, indices: &mut [u16], coefficients: &mut [f32]) {
        let row_bytes = self.row_bytes();
        assert_eq!(indices.len(), rows.len() * self.sparsity);
        assert_eq!(coefficients.len(), indices.len());
        let packed = self.bytes[rows.start * row_bytes..rows.end * row_bytes].chunks_exact(row_bytes);
        let codes = indices.chunks_exact_mut(self.sparsity).zip(coefficients.chunks_exact_mut(self.sparsity));
        for ((row, bytes), (indices, coefficients)) in rows.zip(packed).zip(codes) {
            let scale = self.scales.get(row).copied().unwrap_or(f16::ZERO);
            self.format.read(bytes, scale, indices, coefficients);
        }
    }

    /// Bytes allocated for the bit streams and the scales.
    #[must_use]
    pub fn footprint(&self) -> Footprint {
        Footprint {
            packed: self.bytes.capacity(),
            scales: self.scales.capacity() * size_of::<f16>(),
            ..Footprint::default()
        }
    }

    /// What [`PackedCodes::footprint`] of empty codes becomes with `rows` rows in one call.
    #[must_use]
    pub fn footprint_of(&self, rows: usize) -> Footprint {
        let room = if rows == 0 { 0 } else { rows.max(PAGE_ROWS) };
        Footprint {
            packed: room * self.row_bytes(),
            scales: room * self.format.coefficients.scale_bits() / 8,
            ..Footprint::default()
        }
    }

    /// Forgets all rows and gives the memory back.
    pub fn clear(&mut self) {
        self.bytes = Vec::new();
        self.scales = Vec::new();
    }
}

/// Bits that name one of `atoms` atoms: `ceil(log2 N)`.
///
/// # Panics
/// If `atoms` is not in `1..=65536`.
#[must_use]
pub fn index_bits(atoms: usize) -> usize {
    assert!((1..=crate::MAX_ATOMS).contains(&atoms), "a dictionary holds 1 to 65536 atoms");
    atoms.next_power_of_two().trailing_zeros() as usize
}

/// Appends numbers of few bits, the lowest bits first.
struct BitWriter<'a> {
    bytes: &'a mut Vec<u8>,
    held: u64,
    count: usize,
}

impl BitWriter<'_> {
    fn write(&mut self, value: u32, bits: usize) {
        self.held |= u64::from(value) << self.count;
        self.count += bits;
        while self.count >= 8 {
            self.bytes.push(self.held as u8);
            self.held >>= 8;
            self.count -= 8;
        }
    }

    fn finish(self) {
        if self.count > 0 {
            self.bytes.push(self.held as u8);
        }
    }
}

/// Reads what [`BitWriter`] wrote.
struct BitReader<'a> {
    bytes: &'a [u8],
    held: u64,
    count: usize,
}

impl BitReader<'_> {
    #[inline]
    fn read(&mut self, bits: usize) -> u32 {
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

/// The nearest e4m3 number, ties to even, saturating at ±448.
#[must_use]
pub fn to_e4m3(x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = x.abs().min(448.0);
    // Steps of this size separate the numbers around `magnitude`; below 2^-6 they are 2^-9.
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(-6);
    let steps = (magnitude * (3 - exponent).exp2_f32()).round_ties_even() as i32;
    // Eight steps or more carry into the exponent's bits by themselves.
    let bits = if exponent == -6 { steps } else { (exponent + 6) * 8 + steps };
    sign | bits as u8
}

/// The value of an e4m3 number that [`to_e4m3`] made.
#[must_use]
pub fn from_e4m3(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let magnitude =
        if exponent == 0 { mantissa * (-9).exp2_f32() } else { (8.0 + mantissa) * (exponent - 10).exp2_f32() };
    if bits & 0x80 == 0 { magnitude } else { -magnitude }
}

/// `2^n` for the exponents of normal f32 numbers.
trait Exp2 {
    fn exp2_f32(self) -> f32;
}

impl Exp2 for i32 {
    fn exp2_f32(self) -> f32 {
        f32::from_bits(((self + 127) as u32) << 23)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_e4m3_number_comes_back_and_between_two_the_nearer_is_taken() {
        let numbers: Vec<f32> = (0..0x7f).map(from_e4m3).collect();
        assert_eq!((numbers[0], numbers[1], numbers[8], numbers[0x7e]), (0.0, 2f32.powi(-9), 2f32.powi(-6), 448.0));
        for (bits, pair) in numbers.windows(2).enumerate() {
            let bits = bits as u8;
            assert!(pair[0] < pair[1], "{bits}");
            assert_eq!((to_e4m3(pair[0]), to_e4m3(-pair[0]) & 0x7f), (bits, bits));
            let middle = f32::midpoint(pair[0], pair[1]);
            assert_eq!(to_e4m3(middle * 0.999), bits);
            assert_eq!(to_e4m3(middle * 1.001), bits + 1);
            assert_eq!(to_e4m3(middle) & 1, 0, "ties go to even");
        }
        assert_eq!((to_e4m3(1e9), to_e4m3(-449.0)), (0x7e, 0xfe));
    }

    #[test]
    fn bits_of_an_index() {
        for (atoms, bits) in [(1, 0), (2, 1), (3, 2), (4096, 12), (4097, 13), (65536, 16)] {
            assert_eq!(index_bits(atoms), bits, "{atoms}");
        }
    }

    proptest! {
        /// Indices come back exactly and coefficients within half a step, in any split into calls,
        /// and the bytes are what the formula says.
        #[test]
        fn round_trip(
            s in 1usize..9, n in 0usize..600, atoms in 1usize..=65536, split in 0.0f64..1.0, seed in any::<u64>()
        ) {
            let mut state = seed | 1;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as usize
            };
            let indices: Vec<u16> = (0..n * s).map(|_| (next() % atoms) as u16).collect();
            let coefficients: Vec<f32> = (0..n * s).map(|_| (next() % 20_001) as f32 / 1000.0 - 10.0).collect();
            let cut = (split * n as f64) as usize;
            for format in CoefficientFormat::ALL {
                let mut codes = PackedCodes::new(s, atoms, format);
                codes.append(&indices[..cut * s], &coefficients[..cut * s]);
                codes.append(&indices[cut * s..], &coefficients[cut * s..]);
                let row_bytes = (s * (index_bits(atoms) + format.bits())).div_ceil(8);
                if codes.row_bytes() > 0 {
                    prop_assert_eq!(codes.rows(), n);
                }
                let held = codes.footprint();
                prop_assert!(held.packed >= n * row_bytes && held.packed <= (n + 2 * PAGE_ROWS) * row_bytes);
                prop_assert_eq!(held.scales * row_bytes * 8, held.packed * format.scale_bits());
                prop_assert_eq!(held.packed + held.scales, held.total());
                let (mut i, mut c) = (vec![0; (n - cut) * s], vec![0.0; (n - cut) * s]);
                codes.unpack(cut..n, &mut i, &mut c);
                prop_assert_eq!(&i, &indices[cut * s..]);
                for (found, row) in c.chunks(s).zip(coefficients[cut * s..].chunks(s)) {
                    let top = row.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                    for (&found, &x) in found.iter().zip(row) {
                        let step = match format.largest_integer() {
                            Some(largest) => top / largest as f32 * 1.05 + 1e-3,
                            None if format == CoefficientFormat::Fp8 => x.abs() / 8.0 + 2f32.powi(-9),
                            None => x.abs() / 1024.0,
                        };
                        prop_assert!((found - x).abs() <= step / 2.0 * 1.01 + 1e-6, "{format:?} {x} {found}");
                    }
                }
            }
        }
    }
}
