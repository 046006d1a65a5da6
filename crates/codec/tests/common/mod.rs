//! Seeded random dictionaries and vectors.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::sync::Arc;

use kvcsr_codec::Dictionary;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// `n` numbers, roughly normal (a sum of four uniforms), so that the directions of vectors are evenly spread.
pub fn normal(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut uniform = || rng.random::<f32>() - 0.5;
    (0..n).map(|_| uniform() + uniform() + uniform() + uniform()).collect()
}

pub fn dictionary(atoms: usize, width: usize, seed: u64) -> Arc<Dictionary> {
    Arc::new(Dictionary::normalised(width, normal(atoms * width, seed)).unwrap())
}

/// A dictionary of the `n` unit vectors.
pub fn identity(n: usize) -> Arc<Dictionary> {
    let mut atoms = vec![0.0; n * n];
    atoms.iter_mut().step_by(n + 1).for_each(|x| *x = 1.0);
    Arc::new(Dictionary::new(n, atoms).unwrap())
}
