//! The types in which GGUF files store tensors: their names, sizes and values.
//!
//! candle reads most of them. IQ4_NL, IQ4_XS and MXFP4 are read here. They have four bits per weight, which are an
//! index into a table of sixteen values, and scales per 32 weights.
//!
//! Sources: `ggml/include/ggml.h` (numbers) and `ggml/src/ggml-quants.c` (`dequantize_row_*`) of
//! <https://github.com/ggml-org/llama.cpp>.

use candle_core::quantized::{GgmlDType, ggml_file};
use candle_core::{DType, Device, Tensor};
use half::f16;

/// A type, with GGML's number for it.
struct Kind {
    number: u32,
    name: &'static str,
    reader: Reader,
}

/// Which code reads a type.
#[derive(Clone, Copy)]
enum Reader {
    Candle(GgmlDType),
    /// A table of values: the weights of a block, the bytes of a block, and the function that restores it.
    Table(usize, usize, fn(&[u8], &mut [f32])),
    Nobody,
}

const fn candle(number: u32, name: &'static str, dtype: GgmlDType) -> Kind {
    Kind { number, name, reader: Reader::Candle(dtype) }
}

const fn unread(number: u32, name: &'static str) -> Kind {
    Kind { number, name, reader: Reader::Nobody }
}

const KINDS: &[Kind] = &[
    candle(0, "F32", GgmlDType::F32),
    candle(1, "F16", GgmlDType::F16),
    candle(30, "BF16", GgmlDType::BF16),
    candle(2, "Q4_0", GgmlDType::Q4_0),
    candle(3, "Q4_1", GgmlDType::Q4_1),
    candle(6, "Q5_0", GgmlDType::Q5_0),
    candle(7, "Q5_1", GgmlDType::Q5_1),
    candle(8, "Q8_0", GgmlDType::Q8_0),
    candle(10, "Q2_K", GgmlDType::Q2K),
    candle(11, "Q3_K", GgmlDType::Q3K),
    candle(12, "Q4_K", GgmlDType::Q4K),
    candle(13, "Q5_K", GgmlDType::Q5K),
    candle(14, "Q6_K", GgmlDType::Q6K),
    Kind { number: 20, name: "IQ4_NL", reader: Reader::Table(32, 18, iq4_nl) },
    Kind { number: 23, name: "IQ4_XS", reader: Reader::Table(256, 136, iq4_xs) },
    Kind { number: 39, name: "MXFP4", reader: Reader::Table(32, 17, mxfp4) },
    unread(4, "Q4_2"),
    unread(5, "Q4_3"),
    unread(9, "Q8_1"),
    unread(15, "Q8_K"),
    unread(16, "IQ2_XXS"),
    unread(17, "IQ2_XS"),
    unread(18, "IQ3_XXS"),
    unread(19, "IQ1_S"),
    unread(21, "IQ3_S"),
    unread(22, "IQ2_S"),
    unread(24, "I8"),
    unread(25, "I16"),
    unread(26, "I32"),
    unread(27, "I64"),
    unread(28, "F64"),
    unread(29, "IQ1_M"),
    unread(31, "Q4_0_4_4"),
    unread(32, "Q4_0_4_8"),
    unread(33, "Q4_0_8_8"),
    unread(34, "TQ1_0"),
    unread(35, "TQ2_0"),
    unread(36, "IQ4_NL_4_4"),
    unread(37, "IQ4_NL_4_8"),
    unread(38, "IQ4_NL_8_8"),
    unread(40, "NVFP4"),
    unread(41, "Q1_0"),
];

fn kind(number: u32) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.number == number)
}

/// The name of a type, or its number if it has no name yet.
pub(super) fn name(number: u32) -> String {
    kind(number).map_or_else(|| format!("type {number}"), |kind| kind.name.to_owned())
}

/// Whether [`restore`] can read a type.
pub(super) fn is_read(number: u32) -> bool {
    kind(number).is_some_and(|kind| !matches!(kind.reader, Reader::Nobody))
}

/// The names of the types that [`restore`] can read.
pub(super) fn read_names() -> String {
    let read = KINDS.iter().filter(|kind| !matches!(kind.reader, Reader::Nobody));
    read.map(|kind| kind.name).collect::<Vec<_>>().join(", ")
}

/// The floating-point type that holds a tensor's values without loss.
pub(super) fn dtype(number: u32) -> DType {
    match number {
        1 => DType::F16,
        30 => DType::BF16,
        _ => DType::F32,
    }
}

/// The number of bytes that `elements` weights take. An error if there is no such number.
fn size(number: u32, elements: usize) -> Result<usize, String> {
    let (weights, bytes) = match kind(number).map(|kind| kind.reader) {
        Some(Reader::Candle(dtype)) => (dtype.block_size(), dtype.type_size()),
        Some(Reader::Table(weights, bytes, _)) => (weights, bytes),
        _ => return Err(format!("{} cannot be read", name(number))),
    };
    if !elements.is_multiple_of(weights) {
        return Err(format!("{elements} weights are no whole number of {} blocks of {weights}", name(number)));
    }
    (elements / weights).checked_mul(bytes).ok_or_else(|| format!("{elements} weights are too many"))
}

/// The number of bytes that a tensor takes in a file. `None` if its type is not read, or if it is not made of whole
/// blocks.
pub(super) fn bytes(number: u32, shape: &[usize]) -> Option<u64> {
    let elements = shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim))?;
    size(number, elements).ok().map(|bytes| bytes as u64)
}

/// Reads a tensor's weights from `file`, beginning at byte `at`: as f32, or in the 16-bit type in which they are
/// stored.
pub(super) fn restore(number: u32, shape: &[usize], file: &[u8], at: u64) -> candle_core::Result<Tensor> {
    let elements = shape.iter().product();
    // For an empty list, candle would cast an address that may be unaligned.
    if elements == 0 {
        return Tensor::zeros(shape, DType::F32, &Device::Cpu);
    }
    let bytes = size(number, elements).map_err(candle_core::Error::Msg)?;
    let from = usize::try_from(at).unwrap_or(usize::MAX).min(file.len());
    let Some(raw) = file[from..].get(..bytes) else {
        let left = file.len() - from;
        let detail = format!(
            "tensor needs {bytes} bytes at offset {at}, only {left} remaining in file: the file is cut off; download it again"
        );
        return Err(candle_core::Error::Msg(detail));
    };
    match kind(number).map(|kind| kind.reader) {
        Some(Reader::Candle(dtype)) => {
            // candle casts the bytes to blocks in place. So they must be aligned like an allocation.
            let aligned = raw.to_vec();
            ggml_file::qtensor_from_ggml(dtype, &aligned, shape.to_vec(), &Device::Cpu)?.dequantize(&Device::Cpu)
        }
        Some(Reader::Table(weights, bytes, block)) => {
            let mut values = vec![0f32; elements];
            for (raw, values) in raw.chunks_exact(bytes).zip(values.chunks_exact_mut(weights)) {
                block(raw, values);
            }
            Tensor::from_vec(values, shape, &Device::Cpu)
        }
        _ => candle_core::bail!("{} cannot be read", name(number)),
    }
}

/// The values of the four-bit codes of IQ4_NL and IQ4_XS.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// The values of the four-bit codes of MXFP4, doubled: E2M1.
const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

fn half_at(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// Restores 32 weights from 16 bytes. The low halves of the bytes come first.
fn look_up(table: &[i8; 16], scale: f32, codes: &[u8], values: &mut [f32]) {
    let (low, high) = values.split_at_mut(16);
    for ((&code, low), high) in codes.iter().zip(low).zip(high) {
        *low = scale * f32::from(table[usize::from(code & 15)]);
        *high = scale * f32::from(table[usize::from(code >> 4)]);
    }
}

/// A scale, followed by 32 codes.
fn iq4_nl(block: &[u8], values: &mut [f32]) {
    look_up(&IQ4, half_at(block), &block[2..], values);
}

/// A scale, eight 6-bit scales (the two upper bits of all, then the four lower bits), followed by 256 codes.
fn iq4_xs(block: &[u8], values: &mut [f32]) {
    let (scale, upper) = (half_at(block), u16::from_le_bytes([block[2], block[3]]));
    let (lower, codes) = (&block[4..8], &block[8..]);
    for (i, (codes, values)) in codes.chunks_exact(16).zip(values.chunks_exact_mut(32)).enumerate() {
        let low = lower[i / 2] >> (4 * (i % 2)) & 15;
        let high = (upper >> (2 * i) & 3) as u8;
        let own = i16::from(low | high << 4) - 32;
        look_up(&IQ4, scale * f32::from(own), codes, values);
    }
}

/// A power of two, followed by 32 codes.
fn mxfp4(block: &[u8], values: &mut [f32]) {
    // Half of 2^(e - 127), because the table is doubled. The two smallest numbers are subnormal.
    let bits = match u32::from(block[0]) {
        small @ 0..=1 => 0x0020_0000 << small,
        exponent => (exponent - 1) << 23,
    };
    look_up(&E2M1, f32::from_bits(bits), &block[1..], values);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_type_has_one_number_and_one_name() {
        for (i, kind) in KINDS.iter().enumerate() {
            assert!(KINDS[..i].iter().all(|other| other.number != kind.number && other.name != kind.name));
        }
        assert!(is_read(20) && !is_read(16) && !is_read(99));
        assert_eq!((name(18).as_str(), name(99).as_str()), ("IQ3_XXS", "type 99"));
    }

    #[test]
    fn blocks_of_every_type_are_restored_as_gguf_py_does() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/blocks.safetensors");
        let written = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let mut compared: Vec<String> = Vec::new();
        for (key, blocks) in written.iter().filter(|(key, _)| !key.ends_with(".values")) {
            let (number, name) = key.split_once('.').unwrap();
            let number: u32 = number.parse().unwrap();
            assert_eq!(super::name(number), name);
            let bytes = blocks.flatten_all().unwrap().to_vec1::<u8>().unwrap();
            let expected = written[&format!("{key}.values")].to_vec1::<f32>().unwrap();
            let found = restore(number, &[expected.len()], &bytes, 0).unwrap().to_vec1::<f32>().unwrap();
            let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
            for (at, (x, y)) in found.iter().zip(&expected).enumerate() {
                // Products of two scales may be rounded in another order.
                assert!((x - y).abs() <= 1e-6 * largest.min(1.0 + y.abs()), "{name}, weight {at}: {x}, not {y}");
            }
            compared.push(name.to_owned());
        }
        let blocky = KINDS.iter().filter(|kind| match kind.reader {
            Reader::Candle(dtype) => dtype.block_size() > 1,
            Reader::Table(..) => true,
            Reader::Nobody => false,
        });
        let mut read: Vec<String> = blocky.map(|kind| kind.name.to_owned()).collect();
        compared.sort_unstable();
        read.sort_unstable();
        assert_eq!(compared, read, "every block type that is read is compared");
    }

    #[test]
    fn blocks_that_do_not_fit_are_an_error() {
        let error = |shape: &[usize], file: &[u8], at| restore(20, shape, file, at).unwrap_err().to_string();
        assert!(error(&[33], &[0; 99], 0).contains("no whole number of IQ4_NL blocks of 32"));
        assert!(error(&[64], &[0; 99], 70).contains("needs 36 bytes at offset 70, only 29 remaining"));
        assert!(error(&[64], &[0; 99], u64::MAX).contains("only 0 remaining"));
        assert!(restore(16, &[256], &[0; 999], 0).unwrap_err().to_string().contains("IQ2_XXS cannot be read"));
    }
}
