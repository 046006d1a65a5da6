//! The bit stream of packed codes: each index takes only as many bits as the dictionary needs, and coefficients are small.

use half::f16;
use serde::{Deserialize, Serialize};

use super::bits::{BitReader, BitWriter, packed_bytes};
use super::e4m3::{from_e4m3, to_e4m3};
use crate::kernels::saturating_f16;

/// How a packed code stores its coefficients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CoefficientFormat {
    /// IEEE half precision, saturating.
    F16,
    /// Eight-bit floating point: 4 exponent and 3 mantissa bits, no infinity, saturating at ±448.
    Fp8,
    /// Eight-bit integers multiplied by one scale per row.
    Int8,
    /// Six-bit integers multiplied by one scale per row.
    Int6,
    /// Four-bit integers multiplied by one scale per row.
    Int4,
}

impl CoefficientFormat {
    /// All formats, widest first.
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

    /// The largest integer of an integer format. The smallest is its negative.
    pub(super) const fn largest_integer(self) -> Option<i32> {
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

/// Packs one row into bits: first the indices of `ceil(log2 N)` bits each, then the coefficients, then zeros up to a
/// whole byte. Integer formats add one f16 scale per row: the largest magnitude divided by the largest integer.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowFormat {
    index_bits: usize,
    pub(super) coefficients: CoefficientFormat,
}

impl RowFormat {
    /// # Panics
    /// If `atoms` is not in `1..=65536`.
    pub(super) fn new(atoms: usize, coefficients: CoefficientFormat) -> Self {
        Self { index_bits: index_bits(atoms), coefficients }
    }

    /// Bytes of a row of `entries` atoms, without its scale.
    pub(super) fn bytes(self, entries: usize) -> usize {
        packed_bytes(entries, self.index_bits + self.coefficients.bits())
    }

    /// Appends one row. Returns the scale of the row for integer formats.
    ///
    /// # Panics
    /// If an index needs more bits than the dictionary uses.
    pub(super) fn write(self, indices: &[u16], coefficients: &[f32], bytes: &mut Vec<u8>) -> Option<f16> {
        let mut bits = BitWriter::new(bytes);
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

    /// Reads the row in `bytes`: as many entries as the slices hold. `scale` is used by integer formats only.
    pub(super) fn read(self, bytes: &[u8], scale: f16, indices: &mut [u16], coefficients: &mut [f32]) {
        let mut bits = BitReader::new(bytes);
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

/// Bits needed to name one of `atoms` atoms: `ceil(log2 N)`.
///
/// # Panics
/// If `atoms` is not in `1..=65536`.
#[must_use]
pub fn index_bits(atoms: usize) -> usize {
    assert!((1..=crate::MAX_ATOMS).contains(&atoms), "a dictionary holds 1 to 65536 atoms");
    atoms.next_power_of_two().trailing_zeros() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_an_index() {
        for (atoms, bits) in [(1, 0), (2, 1), (3, 2), (4096, 12), (4097, 13), (65536, 16)] {
            assert_eq!(index_bits(atoms), bits, "{atoms}");
        }
    }
}
