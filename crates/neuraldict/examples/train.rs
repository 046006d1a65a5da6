//! Trains one dictionary on synthetic vectors, and compares its error with that of its k-means start.
//!
//! ```sh
//! just setup    # libtorch
//! cargo run --release --package kvcsr-neuraldict --example train
//! ```

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use kvcsr_codec::{Kind, Shard, ShardHeader, ShardWriter};
use kvcsr_neuraldict::{Progress, TrainConfig, train_group};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Channels of a head.
const HEAD_DIM: usize = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let train = shard(&folder.path().join("train.safetensors"), 1, 4000)?;
    let heldout = shard(&folder.path().join("heldout.safetensors"), 2, 1000)?;
    let config = TrainConfig {
        atoms: 64,
        sparsity: 3,
        epochs: 6,
        batch: 128,
        kmeans_sample: 2048,
        device: "cpu".to_owned(),
        ..TrainConfig::default()
    };
    let trained = train_group(&config, &[&train], &[&heldout], &mut |progress| {
        if let Progress::Epoch { group, record } = progress {
            println!("{group} epoch {}: held-out error {:.4}", record.epoch, record.heldout_relative);
        }
    })?;
    let (before, after) = (trained.kmeans_heldout_relative, trained.heldout_relative);
    println!("k-means {before:.4}, NeuralDict {after:.4}");
    if after < before { Ok(()) } else { Err("training should lower the error".into()) }
}

/// A file of keys like those that `just calibrate` writes: one head per token, each a mix of 3 of 40 directions.
fn shard(path: &Path, seed: u64, tokens: usize) -> Result<Shard, Box<dyn Error>> {
    let mut hidden = ChaCha8Rng::seed_from_u64(1000);
    let directions: Vec<f32> = (0..40 * HEAD_DIM).map(|_| hidden.random_range(-1.0f32..1.0)).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut keys = vec![0f32; tokens * HEAD_DIM];
    for key in keys.chunks_exact_mut(HEAD_DIM) {
        for _ in 0..3 {
            let direction = &directions[rng.random_range(0..40usize) * HEAD_DIM..][..HEAD_DIM];
            let weight = rng.random_range(-2.0f32..2.0);
            key.iter_mut().zip(direction).for_each(|(x, d)| *x += weight * d);
        }
    }
    let header =
        ShardHeader { layer: 0, kind: Kind::Key, tokens, heads: 1, head_dim: HEAD_DIM, extra: BTreeMap::new() };
    let mut writer = ShardWriter::create(path, header)?;
    writer.append(&keys)?;
    writer.finish()?;
    Ok(Shard::open(path)?)
}

#[test]
fn it_runs() {
    main().expect("the example runs");
}
