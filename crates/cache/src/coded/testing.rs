//! Data for the unit tests of codecs.
#![allow(clippy::unwrap_used)]

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::schemes::variates::normal;

/// Independent N(0, 1) variates.
pub(crate) fn variates(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| normal(&mut rng) as f32).collect()
}

/// `sum (x - y)^2 / sum x^2`
pub(crate) fn relative_error(x: &[f32], y: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = x.iter().zip(y).map(|(&x, &y)| square(x - y)).sum();
    error / x.iter().map(|&x| square(x)).sum::<f64>()
}

/// The input numbers of the formulas in `tests/data/quantisers.py`: multiples of 1/256 that f16 represents exactly.
/// Some of them are large.
pub(crate) fn ramp(seed: u32, n: usize) -> Vec<f32> {
    let mut state = seed;
    (0..n)
        .map(|i| {
            state = state.wrapping_mul(1_103_515_245).wrapping_add(12_345) & 0x7fff_ffff;
            let x = ((state >> 16) % 2001) as f32 - 1000.0;
            if i % 97 == 96 { x / 32.0 } else { x / 256.0 }
        })
        .collect()
}

/// The file that `tests/data/quantisers.py` wrote.
pub(crate) fn published() -> serde_json::Value {
    serde_json::from_str(include_str!("../../tests/data/quantisers.json")).unwrap()
}
