//! Compares orthogonal matching pursuit with tests/data/orthogonal.py (numpy, checked against scikit-learn).
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use kvcsr_codec::{Atoms, Dictionary, Encoder, OnlineAtoms, OrthogonalCodes, PursuitPath};

struct Codes {
    indices: Vec<u16>,
    coefficients: Vec<f32>,
    lengths: Vec<u8>,
    residuals: Vec<f32>,
}

fn encode(encoder: &Encoder, atoms: Atoms<'_>, rows: &[f32], sparsity: usize, tolerance: f32) -> Codes {
    let n = rows.len() / encoder.dictionary().width();
    let mut codes = Codes {
        indices: vec![9; n * sparsity],
        coefficients: vec![9.0; n * sparsity],
        lengths: vec![9; n],
        residuals: vec![9.0; n],
    };
    let into = OrthogonalCodes {
        indices: &mut codes.indices,
        coefficients: &mut codes.coefficients,
        lengths: &mut codes.lengths,
        residuals: &mut codes.residuals,
    };
    encoder.encode_orthogonal(atoms, rows, sparsity, tolerance, into).unwrap();
    codes
}

fn numbers(value: &serde_json::Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

#[test]
fn codes_are_those_of_the_restatement() {
    let text = include_str!("data/orthogonal.json");
    let data: serde_json::Value = serde_json::from_str(text).unwrap();
    for case in data["cases"].as_array().unwrap() {
        let width = case["width"].as_u64().unwrap() as usize;
        let sparsity = case["sparsity"].as_u64().unwrap() as usize;
        let scaled = |name: &str| numbers(&case[name]).iter().map(|x| x / 64.0).collect::<Vec<_>>();
        let dictionary = Arc::new(Dictionary::normalised(width, scaled("atoms")).unwrap());
        for path in [PursuitPath::Gram, PursuitPath::Residual] {
            let encoder = Encoder::with_path(dictionary.clone(), path);
            let tolerance = case["tolerance"].as_f64().unwrap() as f32;
            let found = encode(&encoder, dictionary.as_ref().into(), &scaled("rows"), sparsity, tolerance);
            for (r, expected) in case["codes"].as_array().unwrap().iter().enumerate() {
                let indices = numbers(&expected["indices"]);
                assert_eq!(usize::from(found.lengths[r]), indices.len(), "{width}, row {r}");
                for (j, (&index, &c)) in indices.iter().zip(&numbers(&expected["coefficients"])).enumerate() {
                    let at = r * sparsity + j;
                    assert_eq!(f32::from(found.indices[at]), index, "{width}, row {r}, step {j}");
                    assert!((found.coefficients[at] - c).abs() < 2e-4, "{width}, row {r}, step {j}");
                }
                assert!(found.coefficients[r * sparsity + indices.len()..(r + 1) * sparsity].iter().all(|&c| c == 0.0));
                let left = expected["residual"].as_f64().unwrap() as f32;
                assert!((found.residuals[r] - left).abs() < 1e-4, "{width}, row {r}: {} {left}", found.residuals[r]);
            }
        }
    }
}

#[test]
fn online_atoms_count_and_a_row_alone_is_coded_as_in_company() {
    let noise = |n: usize, salt: u32| -> Vec<f32> {
        (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(salt) % 2003) as f32 / 1000.0 - 1.0).collect()
    };
    let dictionary = Arc::new(Dictionary::normalised(16, noise(16 * 40, 3)).unwrap());
    let rows = noise(16 * 130, 91);
    let mut online = OnlineAtoms::new(16);
    online.sample(rows.chunks_exact(16).take(3));
    let atoms = Atoms::new(&dictionary, &online).unwrap();
    for path in [PursuitPath::Gram, PursuitPath::Residual] {
        let encoder = Encoder::with_path(dictionary.clone(), path);
        let all = encode(&encoder, atoms, &rows, 4, 0.01);
        for r in 0..3 {
            assert_eq!((all.lengths[r], all.indices[4 * r]), (1, 40 + r as u16), "an atom of its own is enough");
            assert!(all.residuals[r] < 2e-3);
        }
        for r in [0, 5, 63, 64, 129] {
            let one = encode(&encoder, atoms, &rows[16 * r..16 * (r + 1)], 4, 0.01);
            assert_eq!(one.indices, all.indices[4 * r..4 * (r + 1)]);
            assert_eq!(one.coefficients, all.coefficients[4 * r..4 * (r + 1)]);
        }
        let plain = encode(&encoder, dictionary.as_ref().into(), &[0.0; 16], 4, 0.0);
        assert_eq!((plain.lengths[0], plain.residuals[0]), (0, 0.0));
    }
}

#[test]
fn both_paths_pick_the_same_atoms() {
    let mut state = 7u64;
    let mut noise = |n: usize| -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    };
    for (atoms, width, sparsity, tolerance) in [(700, 48, 12, 0.0), (2000, 64, 8, 0.5), (30, 20, 12, 0.0)] {
        let dictionary = Arc::new(Dictionary::normalised(width, noise(atoms * width)).unwrap());
        let rows = noise(width * 150);
        let by = |path| {
            encode(
                &Encoder::with_path(dictionary.clone(), path),
                dictionary.as_ref().into(),
                &rows,
                sparsity,
                tolerance,
            )
        };
        let (gram, residual) = (by(PursuitPath::Gram), by(PursuitPath::Residual));
        // Rounding may decide between two atoms that are almost equally good, and then the rest of the row differs.
        let same = |r: usize| {
            let at = r * sparsity..(r + 1) * sparsity;
            gram.indices[at.clone()] == residual.indices[at.clone()]
                && gram.coefficients[at.clone()]
                    .iter()
                    .zip(&residual.coefficients[at])
                    .all(|(a, b)| (a - b).abs() < 1e-3)
        };
        let agree = (0..150).filter(|&r| same(r)).count();
        assert!(agree >= 147, "{atoms} atoms: {agree} of 150 rows agree");
        for (a, b) in gram.residuals.iter().zip(&residual.residuals) {
            assert!((a - b).abs() < 1e-2, "{atoms} atoms: {a} {b}");
        }
    }
}
