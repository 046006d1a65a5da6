//! Codes of a few bits, packed into bytes by arithmetic, because there are no bit operations on tensors.
//!
//! A code of 13 bits is split into one field of 8 bits, one of 4 and one of 1. Fields of equal width are packed
//! together, eight bits per byte. So bits are lost only at the end of a row. Packing is a weighted sum. Unpacking looks
//! up the fields of each byte in a table.

use candle_core::{DType, Device, Tensor};

use crate::CacheError;

/// Constants on a device. For each width of a field: the table that splits bytes, `(256, fields)`, and the weights that
/// combine fields, `(1, fields)`.
#[derive(Debug)]
pub struct Fields {
    apart: [Tensor; 3],
    together: [Tensor; 3],
}

/// Widths that need a table. A field of 8 bits is the byte itself.
const WIDTHS: [usize; 3] = [4, 2, 1];

impl Fields {
    /// The tables on a device.
    ///
    /// # Errors
    /// If the device does not have enough memory.
    pub fn new(device: &Device) -> Result<Self, CacheError> {
        let table = |width: usize| {
            let fields = 8 / width;
            let numbers: Vec<f32> = (0..256 * fields)
                .map(|at| (((at / fields) >> (at % fields * width)) & ((1 << width) - 1)) as f32)
                .collect();
            Tensor::from_vec(numbers, (256, fields), device)
        };
        let weights = |width: usize| {
            let weights: Vec<f32> = (0..8 / width).map(|i| (1u32 << (i * width)) as f32).collect();
            Tensor::from_vec(weights, (1, 8 / width), device)
        };
        let [four, two, one] = WIDTHS;
        Ok(Self {
            apart: [table(four)?, table(two)?, table(one)?],
            together: [weights(four)?, weights(two)?, weights(one)?],
        })
    }

    /// Bytes of the tables.
    pub fn bytes(&self) -> usize {
        self.apart.iter().chain(&self.together).map(|table| table.elem_count() * size_of::<f32>()).sum()
    }

    /// The fields of `width` bits in `bytes` `(n, m)` u8. Returns `(n, m · 8 / width)` f32.
    fn of(&self, width: usize, bytes: &Tensor) -> Result<Tensor, CacheError> {
        let Some(at) = WIDTHS.iter().position(|&known| known == width) else { return Ok(bytes.to_dtype(DType::F32)?) };
        let (n, m) = bytes.dims2()?;
        let bytes = bytes.contiguous()?.flatten_all()?.to_dtype(DType::U32)?;
        Ok(self.apart[at].index_select(&bytes, 0)?.reshape((n, m * 8 / width))?)
    }
}

/// Rows of `count` codes of `bits` bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packing {
    /// Bits of a code, at most 16.
    pub bits: usize,
    /// Codes of a row.
    pub count: usize,
}

impl Packing {
    /// The fields of a code: the first bit and the width of each.
    fn fields(self) -> impl Iterator<Item = (usize, usize)> {
        let mut at = 0;
        let mut left = self.bits;
        std::iter::from_fn(move || {
            let width = [8, 4, 2, 1].into_iter().find(|&width| width <= left)?;
            let field = (at, width);
            (at, left) = (at + width, left - width);
            Some(field)
        })
    }

    /// The number of bytes that the fields of one width take.
    fn field_bytes(self, width: usize) -> usize {
        (self.count * width).div_ceil(8)
    }

    /// Bytes of a row.
    pub fn bytes(self) -> usize {
        self.fields().map(|(_, width)| self.field_bytes(width)).sum()
    }

    /// Packs codes `(n, count)`, whole numbers as f32. Returns `(n, bytes)` u8.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn pack(self, codes: &Tensor, fields: &Fields) -> Result<Tensor, CacheError> {
        let (n, count) = codes.dims2()?;
        let mut parts = Vec::new();
        for (at, width) in self.fields() {
            let (scale, size) = ((-(at as f64)).exp2(), (width as f64).exp2());
            let shifted = if at == 0 { codes.clone() } else { codes.affine(scale, 0.0)?.floor()? };
            let rest = if at + width == self.bits {
                shifted
            } else {
                (&shifted - shifted.affine(1.0 / size, 0.0)?.floor()?.affine(size, 0.0)?)?
            };
            let (together, bytes) = (8 / width, self.field_bytes(width));
            let joined = match WIDTHS.iter().position(|&known| known == width) {
                None => rest,
                Some(place) => {
                    let padded = rest.pad_with_zeros(1, 0, bytes * together - count)?.reshape((n * bytes, together))?;
                    padded.broadcast_mul(&fields.together[place])?.sum(1)?.reshape((n, bytes))?
                }
            };
            parts.push(joined.to_dtype(DType::U8)?);
        }
        match parts.len() {
            0 => Ok(Tensor::zeros((n, 0), DType::U8, codes.device())?),
            1 => Ok(parts.swap_remove(0)),
            _ => Ok(Tensor::cat(&parts, 1)?),
        }
    }

    /// Unpacks rows `(n, bytes)` u8. Returns `(n, count)` whole numbers as f32.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn unpack(self, rows: &Tensor, fields: &Fields) -> Result<Tensor, CacheError> {
        let n = rows.dim(0)?;
        let (mut codes, mut from): (Option<Tensor>, usize) = (None, 0);
        for (at, width) in self.fields() {
            let bytes = self.field_bytes(width);
            let part = fields.of(width, &rows.narrow(1, from, bytes)?)?.narrow(1, 0, self.count)?;
            from += bytes;
            codes = Some(match codes {
                None => part.contiguous()?,
                Some(codes) => (codes + part.affine((at as f64).exp2(), 0.0)?)?,
            });
        }
        codes.map_or_else(|| Ok(Tensor::zeros((n, self.count), DType::F32, rows.device())?), Ok)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn codes_of_any_width_come_back_and_take_their_bits() {
        let fields = Fields::new(&Device::Cpu).unwrap();
        for bits in 0..=16usize {
            for count in [1, 7, 8, 33] {
                let packing = Packing { bits, count };
                let codes: Vec<f32> = (0..3 * count as u32)
                    .map(|i| ((i.wrapping_mul(2_654_435_761) >> 9) & ((1 << bits) - 1)) as f32)
                    .collect();
                let x = Tensor::from_vec(codes.clone(), (3, count), &Device::Cpu).unwrap();
                let rows = packing.pack(&x, &fields).unwrap();
                assert_eq!(rows.dims(), [3, packing.bytes()], "{bits} bits, {count}");
                let back: Vec<f32> = packing.unpack(&rows, &fields).unwrap().flatten_all().unwrap().to_vec1().unwrap();
                assert_eq!(back, codes, "{bits} bits, {count}");
                if count % 8 == 0 {
                    assert_eq!(packing.bytes() * 8, bits * count);
                }
            }
        }
    }
}
