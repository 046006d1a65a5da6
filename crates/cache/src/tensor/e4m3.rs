//! Numbers of eight bits with four bits of exponent and three of mantissa, on tensors. It is the e4m3 format of
//! [`kvcsr_codec`], by table look-up and bisection.

use candle_core::{DType, Device, Tensor};
use kvcsr_codec::from_e4m3;

use crate::CacheError;

/// Bits of a magnitude.
const BITS: usize = 7;
/// The code of the largest magnitude. Larger numbers saturate to it.
const LARGEST: u8 = 0x7e;

/// The tables of the format, on a device.
#[derive(Debug)]
pub struct E4m3 {
    /// `(256,)`: the number that each byte stands for.
    values: Tensor,
    /// `(127,)`: the code of a magnitude is the number of thresholds that it exceeds.
    thresholds: Tensor,
}

impl E4m3 {
    /// The tables on a device.
    ///
    /// # Errors
    /// If the device does not have enough memory.
    pub fn new(device: &Device) -> Result<Self, CacheError> {
        let values: Vec<f32> =
            (0..=u8::MAX).map(|bits| if bits & 0x7f == 0x7f { 0.0 } else { from_e4m3(bits) }).collect();
        let halfway = |code: u8| {
            let middle = f32::midpoint(from_e4m3(code), from_e4m3(code + 1));
            // Ties go to even codes. Above an odd code, a number exactly in the middle must therefore exceed the
            // threshold.
            if code % 2 == 1 { middle.next_down() } else { middle }
        };
        let thresholds: Vec<f32> = (0..LARGEST).map(halfway).chain([f32::INFINITY]).collect();
        Ok(Self { values: Tensor::new(values, device)?, thresholds: Tensor::new(thresholds, device)? })
    }

    /// Bytes of the tables.
    pub fn bytes(&self) -> usize {
        (self.values.elem_count() + self.thresholds.elem_count()) * size_of::<f32>()
    }

    /// The nearest e4m3 numbers, as bytes. Ties go to even codes, and large numbers saturate.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn encode(&self, x: &Tensor) -> Result<Tensor, CacheError> {
        let x = x.contiguous()?;
        let magnitude = exceeded(&self.thresholds, &x.abs()?, BITS)?;
        let sign = x.lt(0f32)?.to_dtype(DType::F32)?.affine(128.0, 0.0)?;
        Ok((magnitude + sign)?.to_dtype(DType::U8)?)
    }

    /// The numbers that the bytes stand for.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn decode(&self, bytes: &Tensor) -> Result<Tensor, CacheError> {
        let at = bytes.contiguous()?.flatten_all()?.to_dtype(DType::U32)?;
        Ok(self.values.index_select(&at, 0)?.reshape(bytes.shape())?)
    }
}

/// How many of the `2^bits - 1` rising thresholds each element of `x` exceeds, found by bisection. The result is whole
/// numbers as f32.
pub(crate) fn exceeded(thresholds: &Tensor, x: &Tensor, bits: usize) -> Result<Tensor, CacheError> {
    let mut code = x.zeros_like()?;
    for bit in (0..bits).rev() {
        let step = f64::from(1u32 << bit);
        let at = code.affine(1.0, step - 1.0)?.to_dtype(DType::U32)?;
        let threshold = thresholds.index_select(&at.flatten_all()?, 0)?.reshape(x.shape())?;
        code = (code + x.gt(&threshold)?.to_dtype(DType::F32)?.affine(step, 0.0)?)?;
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use kvcsr_codec::to_e4m3;

    use super::*;

    #[test]
    fn bytes_are_those_of_the_codec() {
        let table = E4m3::new(&Device::Cpu).unwrap();
        let exact = (0..LARGEST).flat_map(|code| {
            let (a, b) = (from_e4m3(code), from_e4m3(code + 1));
            [a, f32::midpoint(a, b), f32::midpoint(a, b).next_up(), f32::midpoint(a, b).next_down()]
        });
        let numbers: Vec<f32> = exact.chain([448.0, 500.0, 1e30, 1e-30]).flat_map(|x| [x, -x]).collect();
        let bytes = table.encode(&Tensor::new(numbers.clone(), &Device::Cpu).unwrap()).unwrap();
        let back = table.decode(&bytes).unwrap().to_vec1::<f32>().unwrap();
        for ((x, byte), back) in numbers.iter().zip(bytes.to_vec1::<u8>().unwrap()).zip(back) {
            let expected = to_e4m3(*x);
            // Zero has two signs, which stand for the same number.
            assert!(byte == expected || (byte | expected) == 0x80, "{x}: {byte:#x}, expected {expected:#x}");
            assert_eq!(back, from_e4m3(expected), "{x}");
        }
    }
}
