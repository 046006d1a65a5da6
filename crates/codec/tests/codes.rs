//! Tests of sparse codes: layout, rounding, growth, decoding.

#![allow(clippy::unwrap_used)]

mod common;

use common::{dictionary, identity, normal};
use half::f16;
use kvcsr_codec::{CodecError, Encoder, SparseCodes};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The codes that are read are those that were appended, rounded to f16, for any split into calls. Decoding any range
    /// gives the sum of coefficients times atoms.
    #[test]
    fn round_trip(
        width in 1usize..80, s in 1usize..6, n in 1usize..300, split in 0.0f64..1.0,
        seed in 0u64..1_000_000
    ) {
        let dictionary = dictionary(50, width, seed);
        let indices: Vec<u16> = (0..n * s).map(|i| (i as u64 * (seed + 7) % 50) as u16).collect();
        let coefficients = normal(n * s, seed);
        let cut = (split * n as f64) as usize;
        let mut codes = SparseCodes::new(s);
        codes.append(&indices[..cut * s], &coefficients[..cut * s]);
        codes.append(&indices[cut * s..], &coefficients[cut * s..]);
        prop_assert_eq!(codes.rows(), n);
        prop_assert_eq!(codes.indices(), &indices);
        for (stored, &c) in codes.coefficients().iter().zip(&coefficients) {
            prop_assert_eq!(*stored, f16::from_f32(c));
        }
        let mut out = vec![f32::NAN; (n - cut) * width];
        codes.decode_into(&dictionary, cut..n, &mut out).unwrap();
        for (row, out) in (cut..n).zip(out.chunks(width)) {
            let (indices, coefficients) = codes.row(row);
            for (k, &x) in out.iter().enumerate() {
                let terms = indices.iter().zip(coefficients);
                let exact: f64 = terms
                    .map(|(&i, c)| c.to_f64() * f64::from(dictionary.atom(i.into())[k]))
                    .sum();
                prop_assert!((f64::from(x) - exact).abs() < 1e-5, "{x} {exact}");
            }
        }
    }
}

#[test]
fn encode_append_is_encode_then_append() {
    let encoder = Encoder::new(dictionary(100, 16, 1));
    let rows = normal(5000 * 16, 2);
    let (mut indices, mut coefficients) = (vec![0; 5000 * 3], vec![0.0; 5000 * 3]);
    encoder.encode(&rows, 3, &mut indices, &mut coefficients).unwrap();
    let mut expected = SparseCodes::new(3);
    expected.append(&indices, &coefficients);
    let mut codes = SparseCodes::new(3);
    codes.encode_append(&encoder, &rows[..16]).unwrap();
    codes.encode_append(&encoder, &rows[16..]).unwrap();
    assert_eq!(codes.indices(), expected.indices());
    assert_eq!(codes.coefficients(), expected.coefficients());
}

#[test]
fn a_bad_row_leaves_the_codes_as_they_were() {
    let encoder = Encoder::new(identity(4));
    let mut codes = SparseCodes::new(2);
    codes.encode_append(&encoder, &[1.0; 8]).unwrap();
    let before = codes.clone();
    let mut rows = vec![1.0; 4 * 6000];
    rows[4 * 5000] = f32::NAN;
    let error = codes.encode_append(&encoder, &rows);
    assert!(matches!(error, Err(CodecError::NonFiniteRow { row: 5000 })));
    assert!(codes.encode_append(&encoder, &rows[1..]).is_err());
    assert_eq!(codes.indices(), before.indices());
    assert_eq!(codes.coefficients(), before.coefficients());
}

/// The codes are large enough for the parallel path. It must give the same bits as decoding single rows.
#[test]
fn decoding_in_parallel_gives_the_same_bits() {
    let encoder = Encoder::new(dictionary(200, 64, 3));
    let mut codes = SparseCodes::new(8);
    codes.encode_append(&encoder, &normal(1000 * 64, 4)).unwrap();
    let decode = |rows: std::ops::Range<usize>| {
        let mut out = vec![f32::NAN; rows.len() * 64];
        codes.decode_into(encoder.dictionary(), rows, &mut out).unwrap();
        out
    };
    let all = decode(0..1000);
    for row in 0..1000 {
        assert_eq!(all[row * 64..][..64], decode(row..row + 1), "row {row}");
    }
}

#[test]
fn decoding_checks_everything() {
    let mut codes = SparseCodes::new(1);
    let mut indices = vec![0u16; 70_000];
    indices[40_000] = 4;
    indices[50_000] = 5;
    codes.append(&indices, &vec![1.0; 70_000]);
    let dictionary = identity(4);
    let decode =
        |rows: std::ops::Range<usize>, elements| codes.decode_into(&dictionary, rows, &mut vec![0.0; elements]);
    assert!(decode(0..10, 40).is_ok());
    assert!(decode(5..5, 0).is_ok());
    assert!(matches!(decode(0..10, 39), Err(CodecError::Length { .. })));
    assert!(matches!(decode(69_999..70_001, 8), Err(CodecError::RowRange { end: 70_001, rows: 70_000, .. })));
    #[expect(clippy::reversed_empty_ranges, reason = "the point of the test")]
    let reversed = decode(5..4, 0);
    assert!(matches!(reversed, Err(CodecError::RowRange { .. })));
    for rows in [39_990..40_010, 1..70_000] {
        let error = decode(rows.clone(), rows.len() * 4);
        assert!(matches!(error, Err(CodecError::UnknownAtom { row: 40_000, index: 4, atoms: 4 })), "{error:?}");
    }
}

#[test]
fn coefficients_saturate_instead_of_overflowing() {
    let mut codes = SparseCodes::new(2);
    codes.append(&[0, 0], &[1e6, -1e6]);
    assert_eq!(codes.coefficients(), [f16::MAX, f16::MIN]);
}

#[test]
fn growth_is_by_pages() {
    let mut codes = SparseCodes::new(4);
    assert_eq!(codes.footprint().total(), 0);
    for rows in 1..=600usize {
        codes.append(&[1; 4], &[1.0; 4]);
        let pages = rows.div_ceil(256);
        assert_eq!(codes.footprint().indices, pages * 256 * 4 * 2);
        assert_eq!(codes.footprint().coefficients, pages * 256 * 4 * 2);
    }
    codes.clear();
    assert_eq!((codes.rows(), codes.footprint().total()), (0, 0));
    // A large append allocates exactly what it needs.
    codes.append(&[1; 4000], &[1.0; 4000]);
    assert_eq!(codes.footprint().total(), 4000 * 4);
}
