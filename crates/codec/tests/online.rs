//! Coding over offline and online atoms, and attention on such codes, against plain definitions.
#![allow(clippy::unwrap_used)]

mod common;

use std::ops::Range;
use std::sync::Arc;

use common::{dictionary, normal};
use half::f16;
use kvcsr_codec::attend::{AttentionScratch, CodedHead, HeadAttention, RotaryTables};
use kvcsr_codec::{
    Atoms, CodeLayout, CodecError, Codes, CoefficientFormat, Dictionary, Encoder, OnlineAtoms, PursuitPath,
    relative_residuals,
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

    /// Over the union as over one dictionary of all atoms, and rows coded alone as together, both up to near ties.
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
                    // Of a near tie only the size is the same, and what follows is another pursuit.
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

    /// One head by the definition, in f64: coded tokens between exact ones, each query with its own
    /// ranges.
    #[test]
    fn attention_follows_the_definition(
        tokens in 1usize..200, exact in 0usize..80, queries in 1usize..7, half in 1usize..40, chunks in 1usize..3,
        key_chunks in 1usize..3, rotated in any::<bool>(), ragged in any::<bool>(), packed in any::<bool>(),
        sharp in 0.1f32..30.0, seed in 0u64..1_000_000
    ) {
        let (d, width, key_width) = (2 * half, 2 * half / chunks, 2 * half / key_chunks);
        let (key_atoms, value_atoms) = (dictionary(90, key_width, seed), dictionary(70, width, seed + 1));
        let (key_online, value_online) = (online(66, 4, key_width, seed + 2), online(66, 3, width, seed + 4));
        let (key_atoms, value_atoms) =
            (Atoms::new(&key_atoms, &key_online).unwrap(), Atoms::new(&value_atoms, &value_online).unwrap());
        let layout = if packed { CodeLayout::Packed(CoefficientFormat::F16) } else { CodeLayout::Paper };
        let fill = |atoms: Atoms<'_>, rows: usize, s: usize| {
            let mut codes =
                if ragged { Codes::ragged(layout, s, atoms.len()) } else { Codes::new(layout, s, atoms.len()) };
            let indices: Vec<u16> = (0..rows * s).map(|i| (i * 31 % atoms.len()) as u16).collect();
            let mut coefficients = normal(rows * s, seed + 5);
            for (row, coefficients) in coefficients.chunks_mut(s).enumerate() {
                coefficients[row % (s + 1)..].fill(0.0);
            }
            codes.append(&indices, &coefficients);
            codes
        };
        let key_codes = fill(key_atoms, tokens * key_chunks, 3);
        let value_codes = fill(value_atoms, tokens * chunks, 2);
        let halves = |seed: u64| normal(exact * d, seed).into_iter().map(f16::from_f32).collect::<Vec<_>>();
        let (exact_keys, exact_values) = (halves(seed + 8), halves(seed + 9));
        let positions = tokens + exact;
        let angles: Vec<f32> = (0..positions * half).map(|i| (i * 7 % 1000) as f32 / 90.0).collect();
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
        let q: Vec<f32> = normal(queries * d, seed + 6).iter().map(|x| x * sharp).collect();
        let coded: Vec<Range<usize>> = (0..queries).map(|i| i.min(tokens)..tokens - (tokens / 3 * i / queries)).collect();
        let recent: Vec<Range<usize>> = (0..queries).map(|i| exact / 2 * i / queries..exact).collect();

        // Keys that are kept after position embedding are scored as they are. The scratch was used before.
        let tables = (!rotated).then_some(RotaryTables { cos: &cos, sin: &sin });
        let mut scratch = AttentionScratch::default();
        let other = normal(9 * 2 * d, seed);
        let _ = HeadAttention::new(&other, 2 * d, None, &mut scratch).exact(&halves(seed)[..0], &[], 0, &vec![0..0; 9]);
        let mut head = HeadAttention::new(&q, d, tables, &mut scratch);
        let keys = CodedHead { codes: &key_codes, atoms: key_atoms, chunks: key_chunks };
        let values = CodedHead { codes: &value_codes, atoms: value_atoms, chunks };
        head.coded(keys, values, 0, &coded).unwrap();
        head.exact(&exact_keys, &exact_values, tokens, &recent).unwrap();
        let mut out = vec![f32::NAN; queries * d];
        head.finish(&mut out);

        let (mut all_keys, mut all_values) = (vec![0.0; tokens * d], vec![0.0; tokens * d]);
        key_codes.decode_into(key_atoms, 0..tokens * key_chunks, &mut all_keys).unwrap();
        value_codes.decode_into(value_atoms, 0..tokens * chunks, &mut all_values).unwrap();
        all_keys.extend(exact_keys.iter().map(|x| x.to_f32()));
        all_values.extend(exact_values.iter().map(|x| x.to_f32()));
        for i in 0..queries {
            let seen: Vec<usize> =
                coded[i].clone().chain(recent[i].clone().map(|t| tokens + t)).collect();
            let score = |&t: &usize| -> f64 {
                (0..half).map(|j| {
                    let turned = (f64::from(cos[t * half + j]), f64::from(sin[t * half + j]));
                    let (c, s) = if rotated { (1.0, 0.0) } else { turned };
                    let (x, y) = (f64::from(all_keys[t * d + j]), f64::from(all_keys[t * d + half + j]));
                    f64::from(q[i * d + j]) * (x * c - y * s) + f64::from(q[i * d + half + j]) * (y * c + x * s)
                }).sum()
            };
            let scores: Vec<f64> = seen.iter().map(score).collect();
            let top = scores.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(x));
            let weights: Vec<f64> = scores.iter().map(|x| (x - top).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for k in 0..d {
                let want: f64 =
                    seen.iter().zip(&weights).map(|(t, w)| w * f64::from(all_values[t * d + k])).sum::<f64>();
                let want = if seen.is_empty() { 0.0 } else { want / sum };
                let tolerance = 1e-5 * (1.0 + f64::from(sharp));
                prop_assert!((f64::from(out[i * d + k]) - want).abs() < tolerance, "{} {want}", out[i * d + k]);
            }
        }
    }
}

/// Where a prompt's own vectors are atoms, near ties are common. The two ways to the same codes may then pick
/// different atoms, but neither restores better than the other, or than pursuit in f64.
#[test]
fn neither_path_restores_better_where_near_ties_are_common() {
    let (width, n, s) = (32, 600, 6);
    let offline = dictionary(256, width, 1);
    // Vectors in a few directions with little noise, a third of them atoms.
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

/// The squared residual after `s` steps.
fn pursuit_in_f64(atoms: &[Vec<f64>], residual: &mut [f64], s: usize) -> f64 {
    for _ in 0..s {
        let products = atoms.iter().map(|atom| atom.iter().zip(&*residual).map(|(a, r)| a * r).sum::<f64>());
        let (at, c) = products.enumerate().max_by(|a, b| a.1.abs().total_cmp(&b.1.abs())).unwrap();
        residual.iter_mut().zip(&atoms[at]).for_each(|(r, a)| *r -= c * a);
    }
    residual.iter().map(|r| r * r).sum()
}

#[test]
fn what_does_not_fit_is_an_error() {
    let atoms = dictionary(10, 4, 1);
    let mut codes = Codes::new(CodeLayout::Paper, 1, 20);
    codes.append(&[3, 15], &[1.0, 1.0]);
    let head = CodedHead { codes: &codes, atoms: atoms.as_ref().into(), chunks: 1 };
    let table = vec![0.5f32; 2 * 2];
    let tables = RotaryTables { cos: &table, sin: &table };
    let query = [1.0f32; 4];
    let mut scratch = AttentionScratch::default();
    let mut attention = HeadAttention::new(&query, 4, Some(tables), &mut scratch);
    let visible = |n: usize| vec![Range { start: 0, end: n }];
    assert!(attention.coded(head, head, 0, &visible(1)).is_ok(), "only tokens that are seen are looked at");
    let error = attention.coded(head, head, 0, &visible(2)).unwrap_err();
    assert!(matches!(error, CodecError::UnknownAtom { row: 1, index: 15, atoms: 10 }), "{error}");
    let error = attention.coded(head, head, 1, &visible(2)).unwrap_err();
    assert!(matches!(error, CodecError::RowRange { end: 3, rows: 2, .. }), "{error}");
    let halved = CodedHead { chunks: 2, ..head };
    assert!(matches!(attention.coded(head, halved, 0, &visible(1)), Err(CodecError::Length { .. })));
    let ones = [f16::ONE; 8];
    assert!(matches!(attention.exact(&ones, &ones[4..], 0, &visible(1)), Err(CodecError::Length { .. })));
    assert!(attention.exact(&ones, &ones, 0, &visible(2)).is_ok());
}
