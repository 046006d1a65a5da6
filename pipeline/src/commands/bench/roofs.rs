//! What the machine allows: how fast it reads memory, and how fast it multiplies.

use std::hint::black_box;
use std::time::Instant;

use kvcsr_cache::conformance::noise;
use kvcsr_codec::kernels::{Isa, Matrix, MatrixMut, multiply_parallel};
use rayon::prelude::*;

use super::contest::Limit;

/// Rounds of each measurement; the fastest counts.
const ROUNDS: usize = 8;

/// Rates of this machine on all threads of the current pool.
#[derive(Debug, Clone, Copy)]
pub struct Roofs {
    /// Bytes read from memory per second.
    pub read: f64,
    /// Operations per second of a large matrix product in f32; a multiplication and an addition count as two.
    pub product: f64,
}

impl Roofs {
    /// Measures both. `quick` uses small operands; the numbers then say little.
    pub fn measure(quick: bool) -> Self {
        // Far more than any CPU cache holds.
        let numbers = if quick { 1 << 20 } else { 1 << 28 };
        let memory = vec![1f32; numbers];
        let isa = Isa::detect();
        let read = fastest(|| {
            let largest = memory.par_chunks(1 << 18).map(|chunk| isa.max(chunk)).reduce(|| 0.0, f32::max);
            black_box(largest);
        });
        drop(memory);
        let n = if quick { 128 } else { 2048 };
        let (a, b, mut out) = (noise(1, n * n), noise(2, n * n), vec![0f32; n * n]);
        let product = fastest(|| {
            multiply_parallel(MatrixMut::new(&mut out, n, n), Matrix::new(&a, n, n), Matrix::new(&b, n, n));
        });
        Self { read: (numbers * size_of::<f32>()) as f64 / read, product: 2.0 * (n as f64).powi(3) / product }
    }

    /// The limit of encoding: vectors per second if the only work were one product of each vector with every atom, in f32.
    pub fn one_product(&self, width: usize, atoms: usize) -> Limit {
        Limit { what: "one product with all atoms".to_owned(), per_s: self.product / (2 * width * atoms) as f64 }
    }

    /// The limit of attention: tokens per second if the only work were to read a cache of `bytes` once for each token.
    pub fn one_reading(&self, bytes: f64) -> Limit {
        Limit { what: "its bytes read once".to_owned(), per_s: self.read / bytes }
    }
}

fn fastest(mut run: impl FnMut()) -> f64 {
    let mut fastest = f64::INFINITY;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        run();
        fastest = fastest.min(begun.elapsed().as_secs_f64());
    }
    fastest
}
