//! Tests of every layout, with rows of fixed length and of their own lengths.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

proptest! {
    /// The indices that are read are the indices that were written. Coefficients differ by at most half a step. This holds
    /// for any split into calls, and the number of bytes is that of the formula.
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
            let mut codes = Codes::new(CodeLayout::Packed(format), s, atoms);
            codes.append(&indices[..cut * s], &coefficients[..cut * s]);
            codes.append(&indices[cut * s..], &coefficients[cut * s..]);
            let row_bytes = (s * (index_bits(atoms) + format.bits())).div_ceil(8);
            prop_assert_eq!(codes.rows(), n);
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

#[test]
fn room_is_what_the_formula_says() {
    for layout in layouts() {
        for rows in [0, 1, 256, 700] {
            let (indices, coefficients) = (vec![3; rows * 5], vec![1.0; rows * 5]);
            for empty in [Codes::new(layout, 5, 100), Codes::ragged(layout, 5, 100)] {
                let mut codes = empty.clone();
                codes.append(&indices, &coefficients);
                assert_eq!(codes.footprint(), empty.footprint_of(rows), "{layout:?}");
            }
        }
    }
}

fn layouts() -> impl Iterator<Item = CodeLayout> {
    [CodeLayout::Paper, CodeLayout::Bytes].into_iter().chain(CoefficientFormat::ALL.map(CodeLayout::Packed))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// In every layout, ragged rows decode to the same values as fixed rows. This holds for any split into calls and any
    /// first row. The size is that of the lengths.
    #[test]
    fn rows_come_back_and_take_their_length(
        s in 1usize..9, lengths in proptest::collection::vec(0usize..9, 0..400), atoms in 1usize..=65536,
        split in 0.0f64..1.0, from in 0.0f64..1.0, seed in any::<u64>()
    ) {
        let mut state = seed | 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        };
        let n = lengths.len();
        let lengths: Vec<usize> = lengths.into_iter().map(|l| l.min(s)).collect();
        let (mut indices, mut coefficients) = (vec![0u16; n * s], vec![0.0f32; n * s]);
        for (row, &length) in lengths.iter().enumerate() {
            for at in row * s..row * s + length {
                indices[at] = (next() % atoms) as u16;
                coefficients[at] = (next() % 20_000) as f32 / 1000.0 + 1.0;
            }
        }
        let (cut, from) = ((split * n as f64) as usize * s, (from * n as f64) as usize);
        for layout in layouts() {
            let mut ragged = Codes::ragged(layout, s, atoms);
            ragged.append(&indices[..cut], &coefficients[..cut]);
            ragged.append(&indices[cut..], &coefficients[cut..]);
            prop_assert_eq!(ragged.rows(), n);
            let kept: usize = lengths.iter().sum();
            prop_assert_eq!(ragged.atoms_kept(), kept);
            let mut found = (vec![9u16; (n - from) * s], vec![9.0f32; (n - from) * s]);
            ragged.unpack(from..n, &mut found.0, &mut found.1);
            prop_assert_eq!(&found.0, &indices[from * s..]);
            // The rounding is that of fixed codes whose length is the row's own.
            for row in from..n {
                let at = (row - from) * s;
                let length = lengths[row];
                prop_assert!(found.1[at + length..at + s].iter().all(|&c| c == 0.0));
                if length > 0 {
                    let mut fixed = Codes::new(layout, length, atoms);
                    fixed.append(&indices[row * s..row * s + length], &coefficients[row * s..row * s + length]);
                    let (mut i, mut c) = (vec![0; length], vec![0.0; length]);
                    fixed.unpack(0..1, &mut i, &mut c);
                    prop_assert_eq!(&found.1[at..at + length], &c[..]);
                }
            }
            let held = ragged.footprint();
            let units: usize = lengths.iter().map(|&l| ragged.rows.size(l)).sum();
            let room = 2 * PAGE_ROWS * ragged.rows.size(s);
            let (codes, scale) = match layout {
                CodeLayout::Paper | CodeLayout::Bytes => (held.indices / 2, 0),
                CodeLayout::Packed(format) => (held.packed, format.scale_bits() / 8),
            };
            prop_assert!(codes >= units && codes <= units + room, "{codes} {units}");
            prop_assert!(held.row_lengths >= n + n.div_ceil(64) * 4);
            prop_assert!(held.row_lengths <= n + 2 * PAGE_ROWS + (n.div_ceil(64) + 8) * 4);
            prop_assert!(held.scales >= n * scale && held.scales <= (n + 2 * PAGE_ROWS) * scale);
        }
    }
}

#[test]
fn clearing_gives_the_memory_back() {
    for layout in layouts() {
        let mut codes = Codes::ragged(layout, 3, 100);
        codes.append(&[1, 2, 0], &[1.0, 2.0, 0.0]);
        assert!(codes.footprint().row_lengths > 0);
        codes.clear();
        assert_eq!((codes.rows(), codes.footprint().total()), (0, 0));
    }
}

#[test]
fn rows_left_after_the_first_were_dropped_read_as_before() {
    let (s, n) = (5, 300);
    let indices: Vec<u16> = (0..n * s).map(|i| (i * 7 % 100) as u16).collect();
    // Rows of every length.
    let coefficients: Vec<f32> =
        (0..n * s).map(|i| if i % s < i / s % (s + 1) { 0.25 + (i % 13) as f32 } else { 0.0 }).collect();
    let layouts = [
        CodeLayout::Paper,
        CodeLayout::Bytes,
        CodeLayout::Packed(CoefficientFormat::F16),
        CodeLayout::Packed(CoefficientFormat::Int8),
    ];
    for layout in layouts {
        for new in [Codes::new, Codes::ragged] {
            let (mut codes, mut rest) = (new(layout, s, 100), new(layout, s, 100));
            codes.append(&indices, &coefficients);
            rest.append(&indices[128 * s..], &coefficients[128 * s..]);
            let before = codes.footprint().total();
            codes.drop_first(64);
            codes.drop_first(64);
            assert_eq!((codes.rows(), codes.atoms_kept()), (rest.rows(), rest.atoms_kept()));
            assert!(codes.footprint().total() < before);
            codes.append(&indices[..s], &coefficients[..s]);
            rest.append(&indices[..s], &coefficients[..s]);
            let read = |codes: &Codes| {
                let (mut indices, mut coefficients) = (vec![0; 173 * s], vec![0.0; 173 * s]);
                codes.unpack(0..173, &mut indices, &mut coefficients);
                (indices, coefficients)
            };
            assert_eq!(read(&codes), read(&rest), "{layout:?}");
            codes.drop_first(0);
            assert_eq!(codes.rows(), 173);
        }
    }
}
