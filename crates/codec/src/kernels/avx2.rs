//! AVX2 + FMA versions, 8 lanes.

use std::arch::x86_64::*;

use half::f16;

use super::{attend, scalar};

const LANES: usize = 8;

/// The largest magnitude seen by each lane and its index.
#[derive(Clone, Copy)]
struct Best {
    magnitude: __m256,
    index: __m256i,
}

#[target_feature(enable = "avx2,fma")]
fn no_best() -> Best {
    Best { magnitude: _mm256_setzero_ps(), index: _mm256_setzero_si256() }
}

/// Takes `x` at `index` where it is strictly larger: the earlier of equals stays.
#[target_feature(enable = "avx2,fma")]
fn improve(best: &mut Best, x: __m256, index: __m256i) {
    let magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0), x);
    let larger = _mm256_cmp_ps::<_CMP_GT_OQ>(magnitude, best.magnitude);
    best.magnitude = _mm256_blendv_ps(best.magnitude, magnitude, larger);
    best.index = _mm256_blendv_epi8(best.index, index, _mm256_castps_si256(larger));
}

/// The best of all lanes, the lowest index among equals.
#[target_feature(enable = "avx2,fma")]
fn reduce(bests: [Best; 2]) -> (usize, f32) {
    let mut result = (0usize, 0.0f32);
    for best in bests {
        let mut magnitudes = [0.0f32; LANES];
        let mut indices = [0u32; LANES];
        // SAFETY: both arrays hold exactly one 256-bit register.
        unsafe {
            _mm256_storeu_ps(magnitudes.as_mut_ptr(), best.magnitude);
            _mm256_storeu_si256(indices.as_mut_ptr().cast(), best.index);
        }
        for (m, i) in magnitudes.into_iter().zip(indices) {
            let i = i as usize;
            if m > result.1 || (m == result.1 && i < result.0) {
                result = (i, m);
            }
        }
    }
    result
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn peak(p: &[f32]) -> usize {
    let (mut bests, step) = ([no_best(); 2], _mm256_set1_epi32(2 * LANES as i32));
    let mut index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    let (pairs, tail) = p.as_chunks::<{ 2 * LANES }>();
    for pair in pairs {
        // SAFETY: `pair` holds two 256-bit registers.
        let (a, b) = unsafe {
            let p = pair.as_ptr();
            (_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(LANES)))
        };
        improve(&mut bests[0], a, index);
        let next = _mm256_add_epi32(index, _mm256_set1_epi32(LANES as i32));
        improve(&mut bests[1], b, next);
        index = _mm256_add_epi32(index, step);
    }
    scalar::peak_from(tail, p.len() - tail.len(), reduce(bests)).0
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn subtract_then_peak(p: &mut [f32], c: f32, g: &[f32]) -> usize {
    let (mut bests, step) = ([no_best(); 2], _mm256_set1_epi32(2 * LANES as i32));
    let mut index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    let factor = _mm256_set1_ps(c);
    let start = p.len() / (2 * LANES) * (2 * LANES);
    let (pairs, tail) = p.as_chunks_mut::<{ 2 * LANES }>();
    let (g_pairs, g_tail) = g.as_chunks::<{ 2 * LANES }>();
    for (pair, g) in pairs.iter_mut().zip(g_pairs) {
        // SAFETY: `pair` and `g` hold two 256-bit registers each.
        let (a, b) = unsafe {
            let (p, g) = (pair.as_mut_ptr(), g.as_ptr());
            let a = _mm256_fnmadd_ps(factor, _mm256_loadu_ps(g), _mm256_loadu_ps(p));
            let (g1, p1) = (_mm256_loadu_ps(g.add(LANES)), _mm256_loadu_ps(p.add(LANES)));
            let b = _mm256_fnmadd_ps(factor, g1, p1);
            _mm256_storeu_ps(p, a);
            _mm256_storeu_ps(p.add(LANES), b);
            (a, b)
        };
        improve(&mut bests[0], a, index);
        let next = _mm256_add_epi32(index, _mm256_set1_epi32(LANES as i32));
        improve(&mut bests[1], b, next);
        index = _mm256_add_epi32(index, step);
    }
    scalar::axpy(tail, -c, g_tail);
    scalar::peak_from(tail, start, reduce(bests)).0
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn axpy(y: &mut [f32], a: f32, x: &[f32]) {
    let factor = _mm256_set1_ps(a);
    let (chunks, tail) = y.as_chunks_mut::<LANES>();
    let (x_chunks, x_tail) = x.as_chunks::<LANES>();
    for (y, x) in chunks.iter_mut().zip(x_chunks) {
        // SAFETY: `y` and `x` hold one 256-bit register each.
        unsafe {
            let sum = _mm256_fmadd_ps(factor, _mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(y.as_ptr()));
            _mm256_storeu_ps(y.as_mut_ptr(), sum);
        }
    }
    scalar::axpy(tail, a, x_tail);
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn combine(out: &mut [f32], atoms: &[f32], indices: &[u16], coefficients: &[f32]) {
    const TILE: usize = 4 * LANES;
    let width = out.len();
    let (tiles, tail) = out.as_chunks_mut::<TILE>();
    for (t, tile) in tiles.iter_mut().enumerate() {
        let mut sums = [_mm256_setzero_ps(); 4];
        for (&index, &c) in indices.iter().zip(coefficients) {
            let atom = &super::atom(atoms, width, index)[t * TILE..][..TILE];
            let c = _mm256_set1_ps(c);
            for (k, sum) in sums.iter_mut().enumerate() {
                // SAFETY: `atom` holds four 256-bit registers and k < 4.
                let x = unsafe { _mm256_loadu_ps(atom.as_ptr().add(k * LANES)) };
                *sum = _mm256_fmadd_ps(c, x, *sum);
            }
        }
        for (k, sum) in sums.into_iter().enumerate() {
            // SAFETY: `tile` holds four 256-bit registers and k < 4.
            unsafe { _mm256_storeu_ps(tile.as_mut_ptr().add(k * LANES), sum) };
        }
    }
    tail.fill(0.0);
    for (&index, &c) in indices.iter().zip(coefficients) {
        let atom = super::atom(atoms, width, index);
        axpy(tail, c, &atom[width - tail.len()..]);
    }
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn rotate(rows: &mut [f32], cos: &[f32], sin: &[f32], half: usize) {
    attend::rotate(rows, cos, sin, half);
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn scores(keys: &[f32], queries: &[f32], width: usize, out: &mut [f32]) {
    attend::scores(keys, queries, width, out);
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn exponentials(x: &mut [f32], reference: &[f32]) {
    attend::exponentials(x, reference);
}

#[target_feature(enable = "avx2,fma")]
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

#[target_feature(enable = "avx2,fma")]
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

#[target_feature(enable = "avx2,fma")]
pub(super) fn gather(out: &mut [f32], stride: usize, atoms: &[f32], width: usize, sums: &[f32], queries: usize) {
    attend::gather(out, stride, atoms, width, sums, queries);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn combine_union(out: &mut [f32], atoms: &[f32], online: &[f16], indices: &[u16], coefficients: &[f32]) {
    const TILE: usize = 4 * LANES;
    let width = out.len();
    let offline = atoms.len() / width;
    let (tiles, tail) = out.as_chunks_mut::<TILE>();
    for (t, tile) in tiles.iter_mut().enumerate() {
        let mut sums = [_mm256_setzero_ps(); 4];
        for (&index, &c) in indices.iter().zip(coefficients) {
            let c = _mm256_set1_ps(c);
            if usize::from(index) < offline {
                let atom = &super::atom(atoms, width, index)[t * TILE..][..TILE];
                for (k, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: `atom` holds four 256-bit registers and k < 4.
                    let x = unsafe { _mm256_loadu_ps(atom.as_ptr().add(k * LANES)) };
                    *sum = _mm256_fmadd_ps(c, x, *sum);
                }
            } else {
                let atom = &super::online_atom(online, width, index.into(), offline)[t * TILE..][..TILE];
                for (k, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: `atom` holds the halves of four 256-bit registers and k < 4.
                    let x = unsafe { _mm256_cvtph_ps(_mm_loadu_si128(atom.as_ptr().add(k * LANES).cast())) };
                    *sum = _mm256_fmadd_ps(c, x, *sum);
                }
            }
        }
        for (k, sum) in sums.into_iter().enumerate() {
            // SAFETY: `tile` holds four 256-bit registers and k < 4.
            unsafe { _mm256_storeu_ps(tile.as_mut_ptr().add(k * LANES), sum) };
        }
    }
    tail.fill(0.0);
    if !tail.is_empty() {
        scalar::combine_union_from(tail, width - tail.len(), atoms, online, indices, coefficients);
    }
}
