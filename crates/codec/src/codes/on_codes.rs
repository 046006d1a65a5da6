//! Attention on the codes of a dictionary, without decoding them.
//!
//! - The score of a key is a sum over its codes. Each term is the coefficient times the product of atom and query. These
//!   products are computed once. For `S` keys of `s` atoms and `N` atoms, a query then costs `S s + N d` operations
//!   instead of `S s d + S d`.
//! - The weighted sum of values is `sum_t p_t D r_t = D (sum_t p_t r_t)`. The weights times the coefficients are added
//!   up per atom. One product with the dictionary gives the result. This also costs `S s + N d` instead of
//!   `S s d + S d`.
//!
//! A head vector is stored as `chunks` consecutive rows of codes. `Q` is the number of query rows.

use std::cell::Cell;

use crate::Atoms;
use crate::kernels::{Isa, correlate};

/// Online atoms converted to f32 at a time.
const ATOM_TILE: usize = 64;

thread_local! {
    /// Scratch memory for one chunk of the queries, or for online atoms as f32.
    static EXPANDED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Computes `out[c][n][q] = atoms[n] . queries[q][c]` for queries `(Q, chunks, width)`. `out` is resized to
/// `(chunks, N, Q)`.
///
/// # Panics
/// If the rows of `queries` do not have the width `chunks` times the atoms' width.
pub fn atom_products(atoms: Atoms<'_>, chunks: usize, queries: &[f32], out: &mut Vec<f32>) {
    let (width, offline) = (atoms.width(), atoms.offline());
    assert!(queries.len().is_multiple_of(chunks * width), "queries have the width of a head");
    let count = queries.len() / (chunks * width);
    out.resize(chunks * atoms.len() * count, 0.0);
    let mut expanded = EXPANDED.take();
    expanded.resize((count + ATOM_TILE) * width, 0.0);
    let (part, tile) = expanded.split_at_mut(count * width);
    for (c, out) in out.chunks_exact_mut(atoms.len() * count).enumerate() {
        for (part, query) in part.chunks_exact_mut(width).zip(queries.chunks_exact(chunks * width)) {
            part.copy_from_slice(&query[c * width..(c + 1) * width]);
        }
        let (of_offline, of_online) = out.split_at_mut(offline.len() * count);
        correlate(part, offline.atoms(), width, of_offline);
        let Some(online) = atoms.online() else { continue };
        for (t, out) in of_online.chunks_mut(ATOM_TILE * count).enumerate() {
            let atoms = &mut tile[..out.len() / count * width];
            online.expand(t * ATOM_TILE, atoms);
            correlate(part, atoms, width, out);
        }
    }
    EXPANDED.set(expanded);
}

/// Computes `out[t][q] = sum_cj coefficients[t][c][j] products[c][indices[t][c][j]][q]` for codes `(n, chunks, s)`,
/// products `(chunks, N, Q)` and out `(n, Q)`.
///
/// # Panics
/// If an index is not below `N`, or the sizes of the slices do not match.
pub fn score_codes(
    products: &[f32],
    chunks: usize,
    queries: usize,
    indices: &[u16],
    coefficients: &[f32],
    out: &mut [f32],
) {
    assert!(queries > 0 && out.len().is_multiple_of(queries), "scores of whole keys");
    let keys = out.len() / queries;
    assert!(keys > 0 && indices.len().is_multiple_of(keys * chunks), "keys of one length");
    if indices.is_empty() {
        out.fill(0.0);
        return;
    }
    Isa::detect().score_codes(products, chunks, indices, coefficients, out, queries);
}

/// Computes `sums[c][indices[t][c][j]][q] += coefficients[t][c][j] weights[t][q]` for codes `(n, chunks, s)`, weights
/// `(n, Q)` and sums `(chunks, N, Q)`.
///
/// # Panics
/// If an index is not below `N`, or the sizes of the slices do not match.
pub fn add_weighted_codes(
    sums: &mut [f32],
    chunks: usize,
    queries: usize,
    indices: &[u16],
    coefficients: &[f32],
    weights: &[f32],
) {
    Isa::detect().scatter(sums, queries, chunks, indices, coefficients, weights);
}

/// Computes `out[q][c] += sum_n sums[c][n][q] atoms[n]` for sums `(chunks, N, Q)` and out `(Q, chunks, width)`.
///
/// # Panics
/// If the sizes of the slices do not match.
pub fn add_atom_sums(atoms: Atoms<'_>, chunks: usize, queries: usize, sums: &[f32], out: &mut [f32]) {
    let (isa, width, offline) = (Isa::detect(), atoms.width(), atoms.offline());
    let d = chunks * width;
    assert_eq!((sums.len(), out.len()), (chunks * atoms.len() * queries, queries * d));
    let mut expanded = EXPANDED.take();
    expanded.resize(ATOM_TILE * width, 0.0);
    for (c, sums) in sums.chunks_exact(atoms.len() * queries).enumerate() {
        let out = &mut out[c * width..];
        let (of_offline, of_online) = sums.split_at(offline.len() * queries);
        isa.gather(out, d, offline.atoms(), width, of_offline, queries);
        let Some(online) = atoms.online() else { continue };
        for (tile, sums) in of_online.chunks(ATOM_TILE * queries).enumerate() {
            let atoms = &mut expanded[..sums.len() / queries * width];
            online.expand(tile * ATOM_TILE, atoms);
            isa.gather(out, d, atoms, width, sums, queries);
        }
    }
    EXPANDED.set(expanded);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Dictionary, OnlineAtoms};

    fn number(i: usize) -> f32 {
        ((i * 7919 % 1013) as f32 - 506.0) / 300.0
    }

    /// Compares scores and sums on codes with those on the decoded vectors. The codes are of `keys` vectors of two chunks,
    /// over offline and online atoms.
    #[test]
    fn scores_and_sums_are_those_of_restored_vectors() {
        let (n, width, chunks, s, keys) = (37, 12, 2, 3, 6);
        let dictionary = Dictionary::normalised(width, (0..n * width).map(number).collect()).unwrap();
        let mut online = OnlineAtoms::new(width);
        let rows: Vec<f32> = (0..70 * width).map(|i| number(i + 91)).collect();
        online.sample(rows.chunks_exact(width));
        for atoms in [Atoms::from(&dictionary), Atoms::new(&dictionary, &online).unwrap()] {
            let indices: Vec<u16> = (0..keys * chunks * s).map(|i| (i * 11 % atoms.len()) as u16).collect();
            let coefficients: Vec<f32> = (0..keys * chunks * s).map(|i| number(i + 5)).collect();
            let mut restored = vec![0.0; keys * chunks * width];
            let codes = indices.chunks_exact(s).zip(coefficients.chunks_exact(s));
            codes.zip(restored.chunks_exact_mut(width)).for_each(|((i, c), out)| atoms.restore(i, c, out));
            for queries in [1, 2, 3, 5, 8, 30] {
                let q: Vec<f32> = (0..queries * chunks * width).map(|i| number(i + 17)).collect();
                let (mut products, mut scores) = (Vec::new(), vec![f32::NAN; keys * queries]);
                atom_products(atoms, chunks, &q, &mut products);
                score_codes(&products, chunks, queries, &indices, &coefficients, &mut scores);
                let mut sums = vec![0.0; products.len()];
                add_weighted_codes(&mut sums, chunks, queries, &indices, &coefficients, &scores);
                let mut out = vec![1.0; q.len()];
                add_atom_sums(atoms, chunks, queries, &sums, &mut out);
                for (at, query) in q.chunks_exact(chunks * width).enumerate() {
                    let mut expected = vec![1.0; chunks * width];
                    for (t, key) in restored.chunks_exact(chunks * width).enumerate() {
                        let score: f32 = query.iter().zip(key).map(|(a, b)| a * b).sum();
                        assert!((scores[t * queries + at] - score).abs() < 1e-3, "{queries} queries, key {t}");
                        expected.iter_mut().zip(key).for_each(|(to, x)| *to += score * x);
                    }
                    let out = &out[at * chunks * width..][..chunks * width];
                    let off = out.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    let size = expected.iter().map(|x| x.abs()).fold(1.0, f32::max);
                    assert!(off < 1e-4 * size, "{queries} queries: {off} of {size}");
                }
            }
        }
    }
}
