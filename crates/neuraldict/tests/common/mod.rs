//! Calibration shards of synthetic vectors with a known sparse structure.

#![allow(clippy::unwrap_used, dead_code)]

use std::{collections::BTreeMap, path::Path};

use kvcsr_codec::{Kind, Shard, ShardHeader, ShardWriter};
use kvcsr_neuraldict::TrainConfig;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Channels of a synthetic head vector.
pub const HEAD_DIM: usize = 16;

/// Writes a shard of `tokens` tokens with two heads and opens it.
pub fn shard(folder: &Path, kind: Kind, layer: usize, tokens: usize, vectors: &[f32]) -> Shard {
    let path = folder.join(format!("{kind}.{layer}.{tokens}.safetensors"));
    let heads = vectors.len() / tokens / HEAD_DIM;
    let header = ShardHeader { layer, kind, tokens, heads, head_dim: HEAD_DIM, extra: BTreeMap::new() };
    let mut writer = ShardWriter::create(&path, header).unwrap();
    writer.append(vectors).unwrap();
    writer.finish().unwrap();
    Shard::open(&path).unwrap()
}

/// `count` vectors of [`HEAD_DIM`] channels. Each is a random combination of 3 of 40 hidden directions with a little noise.
pub fn sparse_vectors(seed: u64, count: usize) -> Vec<f32> {
    let mut hidden = ChaCha8Rng::seed_from_u64(1000);
    let directions: Vec<f32> = (0..40 * HEAD_DIM).map(|_| hidden.random_range(-1.0f32..1.0)).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut vectors = vec![0f32; count * HEAD_DIM];
    for vector in vectors.chunks_mut(HEAD_DIM) {
        for _ in 0..3 {
            let direction = &directions[rng.random_range(0..40usize) * HEAD_DIM..][..HEAD_DIM];
            let weight = rng.random_range(-2.0f32..2.0);
            vector.iter_mut().zip(direction).for_each(|(v, d)| *v += weight * d);
        }
        vector.iter_mut().for_each(|v| *v += rng.random_range(-0.01f32..0.01));
    }
    vectors
}

/// A configuration that is small enough for tests. Tests run in parallel, so each uses one thread of libtorch.
pub fn small() -> TrainConfig {
    kvcsr_neuraldict::set_threads(1);
    TrainConfig {
        atoms: 64,
        sparsity: 3,
        epochs: 4,
        batch: 128,
        learning_rate: 1e-2,
        kmeans_sample: 2048,
        device: "cpu".to_owned(),
        ..TrainConfig::default()
    }
}

/// Writes a shard with one number per token and head (two heads), `(T, 2, 1)`, and opens it.
pub fn scalars(folder: &Path, kind: Kind, layer: usize, tokens: usize, values: &[f32]) -> Shard {
    let name = values.iter().fold(0u64, |hash, v| hash.wrapping_mul(31).wrapping_add(u64::from(v.to_bits())));
    let path = folder.join(format!("weights.{kind}.{layer}.{name}.safetensors"));
    let header = ShardHeader { layer, kind, tokens, heads: 2, head_dim: 1, extra: BTreeMap::new() };
    let mut writer = ShardWriter::create(&path, header).unwrap();
    writer.append(values).unwrap();
    writer.finish().unwrap();
    Shard::open(&path).unwrap()
}
