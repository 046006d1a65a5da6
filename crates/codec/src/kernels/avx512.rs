//! AVX-512F versions, 16 lanes.

use std::arch::x86_64::*;

use half::f16;

use super::{attend, scalar};

const LANES: usize = 16;

/// Independent searches at a time: one alone would wait for its own comparison.
const UNROLL: usize = 4;

/// The largest magnitude seen by each lane and its index.
#[derive(Clone, Copy)]
struct Best {
    magnitude: __m512,
    index: __m512i,
}

#[target_feature(enable = "avx512f")]
fn no_best() -> Best {
    Best { magnitude: _mm512_setzero_ps(), index: _mm512_setzero_si512() }
}

/// Takes `x` at `index` where it is strictly larger: the earlier of equals stays.
#[target_feature(enable = "avx512f")]
fn improve(best: &mut Best, x: __m512, index: __m512i) {
    let magnitude = _mm512_abs_ps(x);
    let larger = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(magnitude, best.magnitude);
    best.magnitude = _mm512_mask_mov_ps(best.magnitude, larger, magnitude);
    best.index = _mm512_mask_mov_epi32(best.index, larger, index);
}

/// The best of all lanes, the lowest index among equals.
#[target_feature(enable = "avx512f")]
fn reduce(bests: [Best; UNROLL]) -> (usize, f32) {
    let [a, b, c, d] = bests.map(|best| best.magnitude);
    let top = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(a, b), _mm512_max_ps(c, d)));
    let mut index = _mm512_set1_epi32(-1);
    for best in bests {
        let holds = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(best.magnitude, _mm512_set1_ps(top));
        index = _mm512_mask_min_epu32(index, holds, index, best.index);
    }
    (_mm512_reduce_min_epu32(index) as usize, top)
}

/// Indices of the first register's lanes, and the indices' step to the others.
#[target_feature(enable = "avx512f")]
fn lane_indices() -> [__m512i; UNROLL] {
    let first = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let mut all = [first; UNROLL];
    for (k, index) in all.iter_mut().enumerate() {
        *index = _mm512_add_epi32(first, _mm512_set1_epi32((k * LANES) as i32));
    }
    all
}

#[target_feature(enable = "avx512f")]
pub(super) fn peak(p: &[f32]) -> usize {
    let step = _mm512_set1_epi32((UNROLL * LANES) as i32);
    let (mut bests, mut indices) = ([no_best(); UNROLL], lane_indices());
    let (groups, tail) = p.as_chunks::<{ UNROLL * LANES }>();
    for group in groups {
        for k in 0..UNROLL {
            // SAFETY: `group` holds UNROLL 512-bit registers and k < UNROLL.
            let x = unsafe { _mm512_loadu_ps(group.as_ptr().add(k * LANES)) };
            improve(&mut bests[k], x, indices[k]);
            indices[k] = _mm512_add_epi32(indices[k], step);
        }
    }
    scalar::peak_from(tail, p.len() - tail.len(), reduce(bests)).0
}

#[target_feature(enable = "avx512f")]
pub(super) fn subtract_then_peak(p: &mut [f32], c: f32, g: &[f32]) -> usize {
    let step = _mm512_set1_epi32((UNROLL * LANES) as i32);
    let (mut bests, mut indices) = ([no_best(); UNROLL], lane_indices());
    let factor = _mm512_set1_ps(c);
    let start = p.len() / (UNROLL * LANES) * (UNROLL * LANES);
    let (groups, tail) = p.as_chunks_mut::<{ UNROLL * LANES }>();
    let (g_groups, g_tail) = g.as_chunks::<{ UNROLL * LANES }>();
    for (group, g) in groups.iter_mut().zip(g_groups) {
        for k in 0..UNROLL {
            // SAFETY: `group` and `g` hold UNROLL 512-bit registers each and k < UNROLL.
            let x = unsafe {
                let (p, g) = (group.as_mut_ptr().add(k * LANES), g.as_ptr().add(k * LANES));
                let x = _mm512_fnmadd_ps(factor, _mm512_loadu_ps(g), _mm512_loadu_ps(p));
                _mm512_storeu_ps(p, x);
                x
            };
            improve(&mut bests[k], x, indices[k]);
            indices[k] = _mm512_add_epi32(indices[k], step);
        }
    }
    scalar::axpy(tail, -c, g_tail);
    scalar::peak_from(tail, start, reduce(bests)).0
}

#[target_feature(enable = "avx512f")]
pub(super) fn axpy(y: &mut [f32], a: f32, x: &[f32]) {
    let factor = _mm512_set1_ps(a);
    let (chunks, tail) = y.as_chunks_mut::<LANES>();
    let (x_chunks, x_tail) = x.as_chunks::<LANES>();
    for (y, x) in chunks.iter_mut().zip(x_chunks) {
        // SAFETY: `y` and `x` hold one 512-bit register each.
        unsafe {
            let sum = _mm512_fmadd_ps(factor, _mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(y.as_ptr()));
            _mm512_storeu_ps(y.as_mut_ptr(), sum);
        }
    }
    scalar::axpy(tail, a, x_tail);
}

#[target_feature(enable = "avx512f")]
pub(super) fn combine(out: &mut [f32], atoms: &[f32], indices: &[u16], coefficients: &[f32]) {
    const TILE: usize = 4 * LANES;
    let width = out.len();
    let (tiles, tail) = out.as_chunks_mut::<TILE>();
    for (t, tile) in tiles.iter_mut().enumerate() {
        let mut sums = [_mm512_setzero_ps(); 4];
        for (&index, &c) in indices.iter().zip(coefficients) {
            let atom = &super::atom(atoms, width, index)[t * TILE..][..TILE];
            let c = _mm512_set1_ps(c);
            for (k, sum) in sums.iter_mut().enumerate() {
                // SAFETY: `atom` holds four 512-bit registers and k < 4.
                let x = unsafe { _mm512_loadu_ps(atom.as_ptr().add(k * LANES)) };
                *sum = _mm512_fmadd_ps(c, x, *sum);
            }
        }
        for (k, sum) in sums.into_iter().enumerate() {
            // SAFETY: `tile` holds four 512-bit registers and k < 4.
            unsafe { _mm512_storeu_ps(tile.as_mut_ptr().add(k * LANES), sum) };
        }
    }
    tail.fill(0.0);
    for (&index, &c) in indices.iter().zip(coefficients) {
        let atom = super::atom(atoms, width, index);
        axpy(tail, c, &atom[width - tail.len()..]);
    }
}

#[target_feature(enable = "avx512f")]
pub(super) fn rotate(rows: &mut [f32], cos: &[f32], sin: &[f32], half: usize) {
    attend::rotate(rows, cos, sin, half);
}

#[target_feature(enable = "avx512f")]
pub(super) fn scores(keys: &[f32], queries: &[f32], width: usize, out: &mut [f32]) {
    attend::scores(keys, queries, width, out);
}

#[target_feature(enable = "avx512f")]
pub(super) fn exponentials(x: &mut [f32], reference: &[f32]) {
    attend::exponentials(x, reference);
}

#[target_feature(enable = "avx512f")]
pub(super) fn scatter(
    sums: &mut [f32],
    queries: usize,
    chunks: usize,
    indices: &[u16],
    coefficients: &[f32],
    weights: &[f32],
) {
    attend::scatter(sums, queries, chunks, indices, coefficients, weights);
}

#[target_feature(enable = "avx512f")]
pub(super) fn score_codes(
    products: &[f32],
    chunks: usize,
    indices: &[u16],
    coefficients: &[f32],
    out: &mut [f32],
    queries: usize,
) {
    attend::score_codes(products, chunks, indices, coefficients, out, queries);
}

#[target_feature(enable = "avx512f")]
pub(super) fn gather(out: &mut [f32], stride: usize, atoms: &[f32], width: usize, sums: &[f32], queries: usize) {
    attend::gather(out, stride, atoms, width, sums, queries);
}

#[target_feature(enable = "avx512f")]
pub(super) fn combine_union(out: &mut [f32], atoms: &[f32], online: &[f16], indices: &[u16], coefficients: &[f32]) {
    const TILE: usize = 4 * LANES;
    let width = out.len();
    let offline = atoms.len() / width;
    let (tiles, tail) = out.as_chunks_mut::<TILE>();
    for (t, tile) in tiles.iter_mut().enumerate() {
        let mut sums = [_mm512_setzero_ps(); 4];
        for (&index, &c) in indices.iter().zip(coefficients) {
            let c = _mm512_set1_ps(c);
            if usize::from(index) < offline {
                let atom = &super::atom(atoms, width, index)[t * TILE..][..TILE];
                for (k, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: `atom` holds four 512-bit registers and k < 4.
                    let x = unsafe { _mm512_loadu_ps(atom.as_ptr().add(k * LANES)) };
                    *sum = _mm512_fmadd_ps(c, x, *sum);
                }
            } else {
                let atom = &super::online_atom(online, width, index.into(), offline)[t * TILE..][..TILE];
                for (k, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: `atom` holds the halves of four 512-bit registers and k < 4.
                    let x = unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(atom.as_ptr().add(k * LANES).cast())) };
                    *sum = _mm512_fmadd_ps(c, x, *sum);
                }
            }
        }
        for (k, sum) in sums.into_iter().enumerate() {
            // SAFETY: `tile` holds four 512-bit registers and k < 4.
            unsafe { _mm512_storeu_ps(tile.as_mut_ptr().add(k * LANES), sum) };
        }
    }
    tail.fill(0.0);
    if !tail.is_empty() {
        scalar::combine_union_from(tail, width - tail.len(), atoms, online, indices, coefficients);
    }
}
