//! Inner loops of attention and of the decoder: vectorised where the machine allows, with a scalar twin.
//!
//! Which version runs is decided at run time by what the machine has (AVX2, FMA and F16C). The versions agree to
//! rounding: sums are taken in another order, and only the vectorised ones fuse a product with its sum. On one machine
//! every call takes the same version, so results do not depend on threads.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod elementwise;
mod scalar;

use half::{bf16, f16};

/// Calls the version this machine can run.
macro_rules! dispatch {
    ($kernel:ident($($argument:expr),*)) => {{
        #[cfg(target_arch = "x86_64")]
        if vectorised() {
            // SAFETY: AVX2, FMA and F16C were detected.
            return unsafe { avx2::$kernel($($argument),*) };
        }
        scalar::$kernel($($argument),*)
    }};
}

/// Whether AVX2, FMA and F16C are there. Cheap: the standard library remembers the answer.
#[cfg(target_arch = "x86_64")]
fn vectorised() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// A number that weights and caches are stored in, widened exactly to f32 as it is used.
pub trait Stored: Copy + Send + Sync {
    /// `sum_i a_i b_i`, in f32.
    ///
    /// # Panics
    /// If the lengths differ; so for all kernels here.
    fn dot(a: &[Self], b: &[f32]) -> f32;

    /// Copies to f32.
    fn widen(from: &[Self], to: &mut [f32]);
}

impl Stored for f32 {
    fn dot(a: &[Self], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        dispatch!(dot(a, b))
    }

    fn widen(from: &[Self], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl Stored for bf16 {
    fn dot(a: &[Self], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        dispatch!(dot_bf16(a, b))
    }

    fn widen(from: &[Self], to: &mut [f32]) {
        assert_eq!(from.len(), to.len());
        dispatch!(widen_bf16(from, to))
    }
}

impl Stored for f16 {
    fn dot(a: &[Self], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        dispatch!(dot_f16(a, b))
    }

    fn widen(from: &[Self], to: &mut [f32]) {
        use half::slice::HalfFloatSliceExt;
        from.convert_to_f32_slice(to);
    }
}

/// `out += sum_j weights_j rows_j` for rows `(weights.len(), out.len())`.
pub fn add_weighted(weights: &[f32], rows: &[f32], out: &mut [f32]) {
    assert_eq!(weights.len() * out.len(), rows.len());
    dispatch!(add_weighted(weights, rows, out))
}

/// The largest element, minus infinity of none; NaN is not seen.
pub fn max(x: &[f32]) -> f32 {
    dispatch!(max(x))
}

/// Replaces each `x` by `e^(x - reference)` and returns their sum. Arguments below -87 give at most 2e-38.
pub fn exponentials(x: &mut [f32], reference: f32) -> f32 {
    dispatch!(exponentials(x, reference))
}

/// `out = gate / (1 + e^-gate) * up`.
pub fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == out.len() && up.len() == out.len());
    dispatch!(swiglu(gate, up, out))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn noise(n: usize, seed: u64, width: f32) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| rng.random_range(-width..width)).collect()
    }

    const LENGTHS: [usize; 9] = [0, 1, 7, 8, 31, 32, 64, 100, 577];

    #[test]
    fn dots_equal_the_definition_in_every_type_and_version() {
        for n in LENGTHS {
            let (a, b) = (noise(n, 1, 1.0), noise(n, 2, 1.0));
            let expected = |a: &[f32]| a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            let near = |found: f32, a: &[f32]| assert!((f64::from(found) - expected(a)).abs() < 1e-4, "{n}: {found}");
            near(f32::dot(&a, &b), &a);
            near(scalar::dot(&a, &b), &a);
            let brain: Vec<bf16> = a.iter().map(|x| bf16::from_f32(*x)).collect();
            let mut wide = vec![0.0; n];
            bf16::widen(&brain, &mut wide);
            assert!(wide.iter().zip(&brain).all(|(wide, brain)| *wide == brain.to_f32()));
            near(bf16::dot(&brain, &b), &wide);
            near(scalar::dot_bf16(&brain, &b), &wide);
            let half: Vec<f16> = a.iter().map(|x| f16::from_f32(*x)).collect();
            f16::widen(&half, &mut wide);
            assert!(wide.iter().zip(&half).all(|(wide, half)| *wide == half.to_f32()));
            near(f16::dot(&half, &b), &wide);
            near(scalar::dot_f16(&half, &b), &wide);
        }
    }

    #[test]
    fn weighted_rows_add_up() {
        for (keys, width) in [(0, 8), (1, 8), (3, 20), (4, 64), (9, 128), (6, 1)] {
            let (weights, rows) = (noise(keys, 3, 1.0), noise(keys * width, 4, 1.0));
            let mut found = [noise(width, 5, 1.0), noise(width, 5, 1.0)];
            let expected: Vec<f32> = (0..width)
                .map(|c| found[0][c] + weights.iter().zip(rows.chunks(width)).map(|(w, row)| w * row[c]).sum::<f32>())
                .collect();
            add_weighted(&weights, &rows, &mut found[0]);
            scalar::add_weighted(&weights, &rows, &mut found[1]);
            for found in found {
                assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "{keys} x {width}");
            }
        }
    }

    #[test]
    fn exponentials_are_exact_to_a_few_parts_in_ten_million_and_keep_nan() {
        for n in LENGTHS {
            let x = noise(n, 6, 40.0);
            let reference = max(&x);
            assert_eq!(reference, x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let mut versions = [x.clone(), x.clone()];
            let sums = [exponentials(&mut versions[0], reference), scalar::exponentials(&mut versions[1], reference)];
            for (found, sum) in versions.iter().zip(sums) {
                let mut total = 0.0;
                for (found, x) in found.iter().zip(&x) {
                    let expected = f64::from(x - reference).exp();
                    total += expected;
                    assert!((f64::from(*found) / expected - 1.0).abs() < 4e-7, "e^{}: {found}", x - reference);
                }
                assert!((f64::from(sum) - total).abs() <= 1e-6 * total);
            }
        }
        let mut odd = [0.0, -200.0, f32::NEG_INFINITY, f32::NAN, 0.0, 0.0, 0.0, 0.0, 0.0, f32::NAN];
        assert!(exponentials(&mut odd, 0.0).is_nan());
        assert!(odd[0] == 1.0 && odd[1] < 2e-38 && odd[2] < 2e-38 && odd[3].is_nan() && odd[9].is_nan());
    }

    #[test]
    fn swiglu_equals_its_definition_far_out_too() {
        for n in LENGTHS {
            let (mut gate, up) = (noise(n, 7, 20.0), noise(n, 8, 3.0));
            for (gate, extreme) in gate.iter_mut().zip([-1e30, 1e30, -100.0, 100.0, 0.0]) {
                *gate = extreme;
            }
            let mut found = [vec![0.0; n], vec![0.0; n]];
            swiglu(&gate, &up, &mut found[0]);
            scalar::swiglu(&gate, &up, &mut found[1]);
            for found in found {
                for ((found, gate), up) in found.iter().zip(&gate).zip(&up) {
                    let (gate, up) = (f64::from(*gate), f64::from(*up));
                    let expected = gate / (1.0 + (-gate).exp()) * up;
                    let error = (f64::from(*found) - expected).abs();
                    assert!(error <= 1e-6 * expected.abs() + 1e-6, "{gate}, {up}: {found} for {expected}");
                }
            }
        }
    }
}
