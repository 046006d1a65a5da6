//! Compares encoding over offline and online atoms, and scores and sums on such codes, with plain definitions.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{dictionary, normal};
use kvcsr_codec::{
    Atoms, CodeBuffers, CodeLayout, Codes, CoefficientFormat, Dictionary, Encoder, OnlineAtoms, PursuitPath,
    add_atom_sums, add_weighted_codes, atom_products, relative_residuals, score_codes,
};
use proptest::prelude::*;

fn online(sampled: usize, guard: usize, width: usize, seed: u64) -> OnlineAtoms {
    let mut online = OnlineAtoms::new(width);
    online.sample(normal(sampled * width, seed).chunks_exact(width));
    online.guard(normal(guard * width, seed + 1).chunks_exact(width));
    online
}

/// All atoms as one dictionary.
fn joined(atoms: &Dictionary, online: &OnlineAtoms) -> Arc<Dictionary> {
    let mut all = atoms.atoms().to_vec();
    all.extend((0..online.len()).flat_map(|i| online.atom(i)).map(|x| x.to_f32()));
    Arc::new(Dictionary::new(atoms.width(), all).unwrap())
}

fn code(encoder: &Encoder, atoms: Atoms<'_>, rows: &[f32], s: usize) -> (Vec<u16>, Vec<f32>) {
    let n = rows.len() / atoms.width() * s;
    let (mut indices, mut coefficients) = (vec![0; n], vec![0.0; n]);
    encoder.encode_over(atoms, rows, s, &mut indices, &mut coefficients).unwrap();
    (indices, coefficients)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Codes over the union equal codes over one dictionary of all atoms. Rows encoded alone equal rows encoded together. Both
    /// hold except at near ties.
    #[test]
    fn a_union_is_one_dictionary(
        offline in 1usize..1200, sampled in 0usize..700, guard in 0usize..40, width in 1usize..100, s in 1usize..6,
        seed in 0u64..1_000_000
    ) {
        let (offline, online) = (dictionary(offline, width, seed), online(sampled, guard, width, seed + 7));
        let rows = normal(70 * width, seed + 3);
        let encoder = Encoder::new(offline.clone());
        let atoms = Atoms::new(&offline, &online).unwrap();
        let (indices, coefficients) = code(&encoder, atoms, &rows, s);
        let all = Encoder::with_path(joined(&offline, &online), PursuitPath::Residual);
        let (expected_i, expected_c) = code(&all, all.dictionary().as_ref().into(), &rows, s);
        for (r, row) in rows.chunks(width).enumerate() {
            let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            for g in r * s..(r + 1) * s {
                prop_assert!((coefficients[g].abs() - expected_c[g].abs()).abs() < 1e-4 * norm, "row {r}");
                if indices[g] != expected_i[g] {
                    break;
                }
            }
            let alone = code(&encoder, atoms, row, s);
            let together = &indices[r * s..(r + 1) * s];
            for (step, (a, b)) in alone.1.iter().zip(&coefficients[r * s..]).enumerate() {
                if alone.0[step] != together[step] {
                    // At a near tie only the magnitude is the same. The following steps belong to another pursuit.
                    prop_assert!((a.abs() - b.abs()).abs() < 1e-5 * norm);
                    break;
                }
                prop_assert!((a - b).abs() < 1e-5 * norm);
            }
        }
        let left = relative_residuals(atoms, &rows, &indices, &coefficients).unwrap();
        let expected = relative_residuals(all.dictionary().as_ref().into(), &rows, &expected_i, &expected_c).unwrap();
        for (a, b) in left.iter().zip(&expected) {
            prop_assert!((a - b).abs() < 1e-3 && (0.0..=1.0).contains(a));
        }
    }

    /// Compares scores and weighted sums on codes with those on decoded vectors, in f64.
    #[test]
    fn codes_are_scored_and_summed_as_what_they_restore(
        tokens in 1usize..200, queries in 1usize..7, width in 1usize..40, chunks in 1usize..3, ragged in any::<bool>(),
        packed in any::<bool>(), own in any::<bool>(), seed in 0u64..1_000_000
    ) {
        let d = chunks * width;
        let (offline, online) = (dictionary(90, width, seed), online(66, 4, width, seed + 2));
        let atoms = if own { Atoms::new(&offline, &online).unwrap() } else { offline.as_ref().into() };
        let layout = if packed { CodeLayout::Packed(CoefficientFormat::F16) } else { CodeLayout::Paper };
        let s = 3;
        let mut codes = if ragged { Codes::ragged(layout, s, atoms.len()) } else { Codes::new(layout, s, atoms.len()) };
        let indices: Vec<u16> = (0..tokens * chunks * s).map(|i| (i * 31 % atoms.len()) as u16).collect();
        let mut coefficients = normal(indices.len(), seed + 5);
        for (row, coefficients) in coefficients.chunks_mut(s).enumerate() {
            coefficients[row % (s + 1)..].fill(0.0);
        }
        codes.append(&indices, &coefficients);

        let (mut restored, mut again) = (vec![0.0; tokens * d], vec![0.0; tokens * d]);
        codes.decode_into(atoms, 0..tokens * chunks, &mut restored).unwrap();
        let mut buffers = CodeBuffers::default();
        codes.restore(atoms, 0..tokens * chunks, &mut buffers, &mut again);
        prop_assert_eq!(&restored, &again);

        let (q, weights) = (normal(queries * d, seed + 6), normal(tokens * queries, seed + 7));
        let (mut products, mut scores) = (Vec::new(), vec![f32::NAN; tokens * queries]);
        atom_products(atoms, chunks, &q, &mut products);
        let (indices, coefficients) = buffers.unpacked(&codes, 0..tokens * chunks);
        score_codes(&products, chunks, queries, indices, coefficients, &mut scores);
        let (mut sums, mut out) = (vec![0.0; products.len()], vec![0.0; queries * d]);
        add_weighted_codes(&mut sums, chunks, queries, indices, coefficients, &weights);
        add_atom_sums(atoms, chunks, queries, &sums, &mut out);
        for (i, (query, out)) in q.chunks_exact(d).zip(out.chunks_exact(d)).enumerate() {
            let mut expected = vec![0f64; d];
            for (t, vector) in restored.chunks_exact(d).enumerate() {
                let score: f64 = query.iter().zip(vector).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                prop_assert!((f64::from(scores[t * queries + i]) - score).abs() < 1e-4, "token {t}");
                let weight = f64::from(weights[t * queries + i]);
                expected.iter_mut().zip(vector).for_each(|(to, x)| *to += weight * f64::from(*x));
            }
            for (found, expected) in out.iter().zip(&expected) {
                prop_assert!((f64::from(*found) - expected).abs() < 1e-4 * (1.0 + tokens as f64).sqrt(), "{found} {expected}");
            }
        }
    }
}

/// If a prompt's own vectors are atoms, near ties are common. The two paths may then pick different atoms. Neither path
/// may have a larger error than the other, or than pursuit in f64.
#[test]
fn neither_path_restores_better_where_near_ties_are_common() {
    let (width, n, s) = (32, 600, 6);
    let offline = dictionary(256, width, 1);
    // The vectors lie near a few directions, with little noise. A third of them are atoms.
    let (base, noise) = (normal(20 * width, 2), normal(n * width, 3));
    let rows: Vec<f32> =
        noise.iter().enumerate().map(|(i, x)| base[i / width % 20 * width + i % width] + 0.05 * x).collect();
    let mut online = OnlineAtoms::new(width);
    online.sample(rows.chunks_exact(width).take(200));
    let atoms = Atoms::new(&offline, &online).unwrap();
    let encoder = Encoder::new(offline.clone());
    let (together, mut alone) = (code(&encoder, atoms, &rows, s), (Vec::new(), Vec::new()));
    for row in rows.chunks_exact(width) {
        let (indices, coefficients) = code(&encoder, atoms, row, s);
        alone.0.extend(indices);
        alone.1.extend(coefficients);
    }
    let all: Vec<Vec<f64>> = joined(&offline, &online).atoms().chunks_exact(width).map(widened).collect();
    let exact: f64 = rows.chunks_exact(width).map(|row| pursuit_in_f64(&all, &mut widened(row), s)).sum();
    let energy = |codes: &(Vec<u16>, Vec<f32>)| -> f64 {
        let left = relative_residuals(atoms, &rows, &codes.0, &codes.1).unwrap();
        left.iter()
            .zip(rows.chunks_exact(width))
            .map(|(r, row)| r * widened(row).iter().map(|x| x * x).sum::<f64>())
            .sum()
    };
    for codes in [&together, &alone] {
        assert!((energy(codes) / exact - 1.0).abs() < 1e-3, "{} beside {exact}", energy(codes));
    }
}

fn widened(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x.into()).collect()
}

/// The squared norm of the residual after `s` steps.
fn pursuit_in_f64(atoms: &[Vec<f64>], residual: &mut [f64], s: usize) -> f64 {
    for _ in 0..s {
        let products = atoms.iter().map(|atom| atom.iter().zip(&*residual).map(|(a, r)| a * r).sum::<f64>());
        let (at, c) = products.enumerate().max_by(|a, b| a.1.abs().total_cmp(&b.1.abs())).unwrap();
        residual.iter_mut().zip(&atoms[at]).for_each(|(r, a)| *r -= c * a);
    }
    residual.iter().map(|r| r * r).sum()
}
