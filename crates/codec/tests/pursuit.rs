//! Compares matching pursuit with its definition, on examples computed by hand and at random.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{dictionary, identity, normal};
use kvcsr_codec::PursuitPath::{Gram, Residual};
use kvcsr_codec::{CodecError, Dictionary, Encoder, PursuitPath, reconstruction_error};
use proptest::prelude::*;

const PATHS: [PursuitPath; 2] = [Gram, Residual];

fn encode(encoder: &Encoder, rows: &[f32], s: usize) -> (Vec<u16>, Vec<f32>) {
    let n = rows.len() / encoder.dictionary().width() * s;
    let (mut indices, mut coefficients) = (vec![u16::MAX; n], vec![f32::NAN; n]);
    encoder.encode(rows, s, &mut indices, &mut coefficients).unwrap();
    (indices, coefficients)
}

fn bits((indices, coefficients): (Vec<u16>, Vec<f32>)) -> (Vec<u16>, Vec<u32>) {
    (indices, coefficients.into_iter().map(f32::to_bits).collect())
}

/// Decodes one row in f64, without code of the crate.
fn restore(dictionary: &Dictionary, indices: &[u16], coefficients: &[f32]) -> Vec<f64> {
    let mut out = vec![0.0; dictionary.width()];
    for (&i, &c) in indices.iter().zip(coefficients) {
        for (o, &a) in out.iter_mut().zip(dictionary.atom(i.into())) {
            *o += f64::from(c) * f64::from(a);
        }
    }
    out
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() < 1e-6, "{found:?} is not {expected:?}");
    }
}

/// (1, 2) over e0, e1, (0.6, 0.8). <x, d> = 1, 2, 2.2: atom 2 leaves the residual (-0.32, 0.24).
/// <R, d> = -0.32, 0.24, 0: atom 0 leaves (0, 0.24), which is 0.24 of atom 1.
#[test]
fn worked_example() {
    let atoms = vec![1.0, 0.0, 0.0, 1.0, 0.6, 0.8];
    let dictionary = Arc::new(Dictionary::new(2, atoms).unwrap());
    for path in PATHS {
        let encoder = Encoder::with_path(dictionary.clone(), path);
        assert_eq!(encoder.path(), path);
        let (indices, coefficients) = encode(&encoder, &[1.0, 2.0], 3);
        assert_eq!(indices, [2, 0, 1], "{path:?}");
        assert_close(&coefficients, &[2.2, -0.32, 0.24]);
    }
}

/// (1, 1) over e0, (0.6, 0.8). <x, d> = 1, 1.4: atom 1 leaves the residual (0.16, -0.12). <R, d> = 0.16, 0:
/// atom 0 leaves (0, -0.12). <R, d> = 0, -0.096: atom 1 is picked again.
#[test]
fn a_repeated_atom_adds_up() {
    let dictionary = Arc::new(Dictionary::new(2, vec![1.0, 0.0, 0.6, 0.8]).unwrap());
    for path in PATHS {
        let encoder = Encoder::with_path(dictionary.clone(), path);
        let (indices, coefficients) = encode(&encoder, &[1.0, 1.0], 3);
        assert_eq!(indices, [1, 0, 1], "{path:?}");
        assert_close(&coefficients, &[1.4, 0.16, -0.096]);
        let restored = restore(&dictionary, &indices, &coefficients);
        assert!((restored[0] - 0.9424).abs() < 1e-6 && (restored[1] - 1.0432).abs() < 1e-6);
    }
}

#[test]
fn an_orthonormal_dictionary_with_all_atoms_is_exact() {
    for n in [1, 2, 16, 37] {
        let rows = normal(5 * n, 1);
        for path in PATHS {
            let encoder = Encoder::with_path(identity(n), path);
            let (indices, coefficients) = encode(&encoder, &rows, n);
            for (r, row) in rows.chunks(n).enumerate() {
                let at = r * n..(r + 1) * n;
                let restored = restore(&identity(n), &indices[at.clone()], &coefficients[at]);
                let row: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
                assert_eq!(restored, row, "{path:?} {n}");
            }
        }
    }
}

#[test]
fn equal_correlations_take_the_lowest_index() {
    // Copies of one atom (and its negative) that are far apart, in different tiles of the residual path.
    let mut atoms = vec![0.0; 2 * 3000];
    atoms.iter_mut().step_by(2).for_each(|x| *x = 1.0);
    for i in [700, 1500, 2999] {
        atoms[2 * i] = 0.0;
        atoms[2 * i + 1] = if i == 700 { -1.0 } else { 1.0 };
    }
    let dictionary = Arc::new(Dictionary::new(2, atoms).unwrap());
    for path in PATHS {
        let encoder = Encoder::with_path(dictionary.clone(), path);
        let (indices, coefficients) = encode(&encoder, &[2.0, 3.0], 2);
        assert_eq!(indices, [700, 0], "{path:?}");
        assert_eq!(coefficients, [-3.0, 2.0], "{path:?}");
    }
}

#[test]
fn a_zero_row_or_residual_is_zeros() {
    for path in PATHS {
        let encoder = Encoder::with_path(identity(4), path);
        let rows = [0.0, 0.0, 0.0, 0.0, 0.0, -2.0, 0.0, 0.0];
        let (indices, coefficients) = encode(&encoder, &rows, 3);
        assert_eq!(indices, [0, 0, 0, 1, 0, 0], "{path:?}");
        assert_eq!(coefficients, [0.0, 0.0, 0.0, -2.0, 0.0, 0.0], "{path:?}");
    }
}

#[test]
fn a_bad_row_is_named_and_nothing_is_written() {
    for path in PATHS {
        let encoder = Encoder::with_path(dictionary(20, 10, 2), path);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX] {
            let mut rows = normal(200 * 10, 3);
            rows[1307] = bad;
            rows[1500] = bad;
            let (mut indices, mut coefficients) = (vec![7; 400], vec![7.0; 400]);
            let error = encoder.encode(&rows, 2, &mut indices, &mut coefficients);
            assert!(matches!(error, Err(CodecError::NonFiniteRow { row: 130 })), "{error:?}");
            assert_eq!(indices, [7; 400]);
            assert_eq!(coefficients, [7.0; 400]);
        }
    }
}

#[test]
fn wrong_lengths_are_errors() {
    let encoder = Encoder::new(identity(4));
    let (mut i, mut c) = ([0; 4], [0.0; 4]);
    let rows = [1.0; 8];
    assert!(encoder.encode(&rows, 2, &mut i, &mut c).is_ok());
    assert!(encoder.encode(&rows[1..], 2, &mut i, &mut c).is_err());
    assert!(encoder.encode(&rows, 2, &mut i[1..], &mut c).is_err());
    assert!(encoder.encode(&rows, 2, &mut i, &mut c[1..]).is_err());
    assert!(encoder.encode(&[], 2, &mut [], &mut []).is_ok());
    assert!(encoder.encode(&rows, 0, &mut [], &mut []).is_ok());
}

#[test]
fn the_budget_picks_the_path() {
    assert_eq!(Encoder::new(dictionary(4096, 1, 4)).path(), Gram);
    assert_eq!(Encoder::new(dictionary(4097, 1, 4)).path(), Residual);
    let (gram, residual) = PATHS.map(|p| Encoder::with_path(dictionary(64, 8, 4), p).bytes()).into();
    // The transposed atoms, with one extra cache line per row; then the matrix, or on some CPUs the atoms in 8 bits.
    let transposed = ((64 + 16) * 8 + 15) * 4;
    assert_eq!(gram, transposed + (64 * 64 + 15) * 4);
    assert!([0, 64 * (8 + 4 + 4)].contains(&(residual - transposed)), "{residual}");
}

/// The bits of a row depend neither on the size of the pool nor on the rows encoded with it.
#[test]
fn the_same_bits_for_any_threads_and_any_batch() {
    for (atoms, width) in [(300, 24), (64, 2), (1100, 64), (5, 33)] {
        let rows = normal(331 * width, 5);
        for path in PATHS {
            let encoder = Encoder::with_path(dictionary(atoms, width, 6), path);
            let on = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
                bits(pool.build().unwrap().install(|| encode(&encoder, &rows, 4)))
            };
            let one = on(1);
            assert_eq!(one, on(4), "{path:?} {atoms} {width}");
            for batch in [1, 2, 3, 7, 100] {
                let (mut indices, mut coefficients) = (vec![], vec![]);
                for rows in rows.chunks(batch * width) {
                    let (i, c) = bits(encode(&encoder, rows, 4));
                    indices.extend(i);
                    coefficients.extend(c);
                }
                assert!(one == (indices, coefficients), "{path:?} {atoms} {width} {batch}");
            }
        }
    }
}

#[test]
fn more_atoms_and_more_steps_fit_no_worse() {
    let rows = normal(500 * 32, 7);
    let error = |atoms, s| {
        let encoder = Encoder::new(dictionary(atoms, 32, 8));
        reconstruction_error(&encoder, &rows, s).unwrap()
    };
    let by_atoms = [16, 64, 256, 1024].map(|n| error(n, 4).relative);
    assert!(by_atoms.is_sorted_by(|a, b| a > b), "{by_atoms:?}");
    let by_steps = [1, 2, 4, 8, 16].map(|s| error(256, s).mse);
    assert!(by_steps.is_sorted_by(|a, b| a > b), "{by_steps:?}");
    assert_eq!(error(16, 1).vectors, 500);
}

#[test]
fn reconstruction_error_by_hand() {
    // Over e0 alone, (3, 4) keeps 9 of its energy of 25. (0, 0) adds no error.
    let encoder = Encoder::new(Arc::new(Dictionary::new(2, vec![1.0, 0.0]).unwrap()));
    let found = reconstruction_error(&encoder, &[3.0, 4.0, 0.0, 0.0], 1).unwrap();
    assert_eq!((found.relative, found.mse, found.vectors), (16.0 / 25.0, 8.0, 2));
    let empty = reconstruction_error(&encoder, &[], 1).unwrap();
    assert_eq!((empty.relative, empty.mse, empty.vectors), (0.0, 0.0, 0));
}

/// `<row - decoded so far, atom>` for every atom, in f64.
fn correlations(dictionary: &Dictionary, row: &[f32], restored: &[f64]) -> Vec<f64> {
    let residual: Vec<f64> = row.iter().zip(restored).map(|(&x, y)| f64::from(x) - y).collect();
    dictionary
        .atoms()
        .chunks(dictionary.width())
        .map(|atom| atom.iter().zip(&residual).map(|(&a, r)| f64::from(a) * r).sum())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Checks each step of each path in f64, given the previous steps. The atom must be the best (within rounding, if two are
    /// that close), and the coefficient must be its inner product to 1e-4. Where the two paths differ, it must be at such a
    /// near tie.
    #[test]
    fn both_paths_follow_the_definition(
        atoms in 1usize..400, width in 1usize..140, s in 1usize..10, seed in 0u64..1_000_000
    ) {
        let dictionary = dictionary(atoms, width, seed);
        let rows = normal(9 * width, seed + 1);
        let codes = PATHS.map(|p| encode(&Encoder::with_path(dictionary.clone(), p), &rows, s));
        for (r, row) in rows.chunks(width).enumerate() {
            let norm = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            for (path, (indices, coefficients)) in PATHS.iter().zip(&codes) {
                for g in 0..s {
                    let at = r * s..r * s + g;
                    let so_far = restore(&dictionary, &indices[at.clone()], &coefficients[at]);
                    let p = correlations(&dictionary, row, &so_far);
                    let best = p.iter().fold(0.0f64, |m, x| m.max(x.abs()));
                    let (i, c) = (indices[r * s + g], f64::from(coefficients[r * s + g]));
                    let exact = p[usize::from(i)];
                    // Relative to the coefficient, until the coefficient is smaller than the rounding error of the row.
                    let slack = 1e-4 * c.abs().max(1e-2 * norm);
                    prop_assert!(exact.abs() >= best - slack, "{path:?} row {r} step {g}: {exact} {best}");
                    prop_assert!((exact - c).abs() <= slack, "{path:?} row {r} step {g}: {exact} {c}");
                }
            }
            for g in r * s..(r + 1) * s {
                let [(i, c), (j, d)] = &codes;
                let slack = 1e-4 * c[g].abs().max(1e-2 * norm as f32);
                if i[g] != j[g] {
                    prop_assert!((c[g].abs() - d[g].abs()).abs() <= slack, "row {r}: {i:?} {j:?}");
                    break;
                }
                prop_assert!((c[g] - d[g]).abs() <= slack, "row {r}: {} {}", c[g], d[g]);
            }
        }
    }
}
