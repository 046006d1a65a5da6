//! Scores of keys that are coded over a dictionary, without restoring them: the products of all atoms with the queries once,
//! then a sum over each key's codes. For `S` keys of `s` atoms and `N` atoms, `S s + N d` operations a query instead of
//! `S s d + S d`.

use crate::Dictionary;
use crate::kernels::{Isa, correlate};

/// `out[n][q] = atoms[n] . queries[q]`: queries `(Q, width)`, out `(N, Q)`, resized to that.
///
/// # Panics
/// If `queries` are not rows of the dictionary's width.
pub fn atom_products(dictionary: &Dictionary, queries: &[f32], out: &mut Vec<f32>) {
    let width = dictionary.width();
    assert!(queries.len().is_multiple_of(width), "queries have the dictionary's width");
    out.resize(dictionary.len() * (queries.len() / width), 0.0);
    correlate(queries, dictionary.atoms(), width, out);
}

/// `out[t][q] = sum_j coefficients[t][j] products[indices[t][j]][q]`: codes `(n, s)`, products `(N, Q)`, out `(n, Q)`.
///
/// # Panics
/// If an index is not below `N`, or the slices do not fit each other.
pub fn score_codes(products: &[f32], queries: usize, indices: &[u16], coefficients: &[f32], out: &mut [f32]) {
    assert!(queries > 0 && out.len().is_multiple_of(queries), "scores of whole keys");
    let keys = out.len() / queries;
    assert!(keys > 0 && indices.len().is_multiple_of(keys), "keys of one length");
    if indices.is_empty() {
        out.fill(0.0);
        return;
    }
    Isa::detect().score_codes(products, 1, indices, coefficients, out, queries);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn scores_are_those_of_restored_keys() {
        let (n, width, s) = (37, 12, 3);
        let number = |i: usize| ((i * 7919 % 1013) as f32 - 506.0) / 300.0;
        let dictionary = Dictionary::normalised(width, (0..n * width).map(number).collect()).unwrap();
        for queries in [1, 2, 3, 5, 8, 30] {
            let q: Vec<f32> = (0..queries * width).map(|i| number(i + 17)).collect();
            let mut products = Vec::new();
            atom_products(&dictionary, &q, &mut products);
            let keys = 6;
            let indices: Vec<u16> = (0..keys * s).map(|i| (i * 11 % n) as u16).collect();
            let coefficients: Vec<f32> = (0..keys * s).map(|i| number(i + 5)).collect();
            let mut out = vec![f32::NAN; keys * queries];
            score_codes(&products, queries, &indices, &coefficients, &mut out);
            let mut key = vec![0.0; width];
            for t in 0..keys {
                let codes = t * s..(t + 1) * s;
                crate::Atoms::from(&dictionary).restore(&indices[codes.clone()], &coefficients[codes], &mut key);
                for (query, score) in q.chunks_exact(width).zip(&out[t * queries..]) {
                    let expected: f32 = query.iter().zip(&key).map(|(a, b)| a * b).sum();
                    assert!((score - expected).abs() < 1e-4, "{queries} queries, key {t}: {score} {expected}");
                }
            }
        }
    }
}
