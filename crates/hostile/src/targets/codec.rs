//! Files of the codec, and packed codes.

use kvcsr_codec::{
    Atoms, BitReader, CodeBuffers, CodeLayout, CodebookSet, Coder, Codes, CoefficientFormat, Dictionary, DictionarySet,
    Odds, RangeDecoder, Shard, packed_bytes, unpack_bits, unpack_small,
};

use super::Verdict;
use crate::place::Place;

/// What was read is written, read again, and must be the same.
pub fn dictionary(input: &[u8], place: &Place) -> Verdict {
    let Ok(set) = DictionarySet::load(place.write("set", input)) else { return Verdict::Refused };
    for group in &set.groups {
        assert_eq!(group.chunks * group.dictionary.width(), set.head_dim);
        let norms = group.dictionary.atoms().chunks_exact(group.dictionary.width());
        assert!(norms.into_iter().all(|atom| (atom.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-2));
    }
    let again = place.path("again");
    set.save(&again).expect("a set that was read can be written");
    assert_eq!(DictionarySet::load(&again).expect("a set that was written can be read"), set);
    Verdict::Taken
}

/// The same check as [`dictionary`], and a limit on the size of the set.
pub fn codebook(input: &[u8], place: &Place) -> Verdict {
    let Ok(set) = CodebookSet::load(place.write("set", input)) else { return Verdict::Refused };
    assert!(set.bytes() <= input.len());
    let again = place.path("again");
    set.save(&again).expect("a set that was read can be written");
    assert_eq!(CodebookSet::load(&again).expect("a set that was written can be read"), set);
    Verdict::Taken
}

/// Reads the first and the last vectors: whole, in halves, and as single channels.
pub fn shard(input: &[u8], place: &Place) -> Verdict {
    let Ok(shard) = Shard::open(place.write("shard", input)) else { return Verdict::Refused };
    let head = shard.head_dim();
    for width in [head, head / 2, 1] {
        if width == 0 || !head.is_multiple_of(width) {
            continue;
        }
        let rows = shard.rows(width);
        if rows == 0 {
            assert!(shard.read(width, 0..1, &mut []).is_err());
            continue;
        }
        let mut out = vec![0f32; width];
        for row in [0, rows - 1] {
            shard.read(width, row..row + 1, &mut out).expect("a row that is held");
            shard.gather(width, &[row], &mut out).expect("a row that is held");
        }
        assert!(shard.read(width, rows..rows + 1, &mut out).is_err());
        assert!(shard.gather(width, &[rows], &mut out).is_err());
    }
    assert!(shard.read(head.wrapping_add(1), 0..1, &mut []).is_err());
    Verdict::Taken
}

/// The number of channels of the atoms over which codes are restored.
const WIDTH: usize = 4;

/// The first bytes select a layout, and the others are rows. What is appended must be the same each time it is read.
/// The readers of bits and of the range coder must accept any bytes.
pub fn codes(input: &[u8], _: &Place) -> Verdict {
    let Some((&[layout, atoms, sparsity, bits], rest)) = input.split_first_chunk::<4>() else {
        return Verdict::Refused;
    };
    let layout = match layout % 7 {
        0 => CodeLayout::Paper,
        1 => CodeLayout::Bytes,
        other => CodeLayout::Packed(CoefficientFormat::ALL[usize::from(other - 2)]),
    };
    let (atoms, sparsity) = (usize::from(atoms) + 1, usize::from(sparsity % 9) + 1);
    let rows = rest.len() / (5 * sparsity);
    let entries: Vec<(u16, f32)> = rest
        .as_chunks::<5>()
        .0
        .iter()
        .map(|&[index, a, b, c, d]| (u16::from(index) % atoms as u16, f32::from_le_bytes([a, b, c, d])))
        .take(rows * sparsity)
        .collect();
    let indices: Vec<u16> = entries.iter().map(|entry| entry.0).collect();
    // A code contains no NaN: encoders refuse it before.
    let coefficients: Vec<f32> = entries.iter().map(|entry| if entry.1.is_nan() { 0.0 } else { entry.1 }).collect();
    let made = (layout, atoms, sparsity);
    store(Codes::new(layout, sparsity, atoms), made, &indices, &coefficients);
    store(Codes::ragged(layout, sparsity, atoms), made, &indices, &coefficients);
    streams(rest, usize::from(bits % 16) + 1);
    Verdict::Taken
}

fn store(mut codes: Codes, (_, atoms, sparsity): (CodeLayout, usize, usize), indices: &[u16], coefficients: &[f32]) {
    codes.append(indices, coefficients);
    let rows = codes.rows();
    assert_eq!(rows * sparsity, indices.len());
    let mut buffers = CodeBuffers::default();
    let (read, values) = buffers.unpacked(&codes, 0..rows);
    assert!(values.iter().all(|x| x.is_finite()), "coefficients saturate");
    for ((found, put), value) in read.iter().zip(indices).zip(values) {
        assert!(found == put || *value == 0.0, "{found} for {put}");
    }
    let dictionary = Dictionary::normalised(WIDTH, (0..atoms * WIDTH).map(|i| (i % 7) as f32 + 0.5).collect());
    let dictionary = dictionary.expect("positive atoms");
    let mut out = vec![0f32; rows * WIDTH];
    codes.decode_into(Atoms::from(&dictionary), 0..rows, &mut out).expect("codes of this dictionary");
    if rows >= 64 {
        codes.drop_first(64);
        assert_eq!(codes.rows(), rows - 64);
    }
    assert!(codes.footprint().total() <= codes.footprint_of(rows.max(256)).total());
}

fn streams(bytes: &[u8], bits: usize) {
    let count = bytes.len() * 8 / bits;
    let mut numbers = vec![0u16; count];
    unpack_bits(bytes, bits, &mut numbers);
    assert!(packed_bytes(count, bits) <= bytes.len());
    let mut reader = BitReader::new(bytes);
    assert!(numbers.iter().all(|&number| u32::from(number) == reader.read(bits)));
    if bits <= 8 {
        let mut read = 0;
        unpack_small(bytes, bits, |at, number| {
            read = at + 1;
            assert!(u32::from(number) >> bits == 0);
        });
        assert!(read * bits <= bytes.len() * 8);
    }
    let (mut decoder, mut odds) = (RangeDecoder::new(bytes), Odds::default());
    for at in 0..bytes.len() as u32 {
        decoder.bit(false, &mut odds);
        assert!(decoder.plain(0, at % 17) >> (at % 17) == 0);
    }
}
