//! Measures the time to a given held-out error. Compares this crate's default training with the settings of Lexico's public
//! trainer (`TrainConfig::lexico`), on one thread. Both run in this crate.
//!
//! First Lexico's training runs in full. Its best held-out error is the goal. The time of our training includes k-means and
//! evaluation, and ends with the first epoch whose error is at most the goal. By default the vectors are synthetic: each
//! is a sum of a few of many directions, with decreasing coefficients and noise. With arguments they come from
//! calibration shards:
//!
//! `cargo bench -p kvcsr-neuraldict --bench time_to_error -- TRAIN.safetensors HELDOUT.safetensors`

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use kvcsr_codec::{Kind, Shard, ShardHeader, ShardWriter};
use kvcsr_neuraldict::{TrainConfig, Trained, set_threads, train_group};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const WIDTH: usize = 64;
const DIRECTIONS: usize = 600;

/// `count` vectors. Each is a sum of eight of the same hidden directions, with decreasing coefficients and noise.
fn shard(folder: &Path, name: &str, count: usize, seed: u64) -> Result<Shard, Box<dyn Error>> {
    let mut hidden = ChaCha8Rng::seed_from_u64(1);
    let directions: Vec<f32> = (0..DIRECTIONS * WIDTH).map(|_| hidden.random_range(-1.0f32..1.0)).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut vectors = vec![0f32; count * WIDTH];
    for vector in vectors.chunks_mut(WIDTH) {
        for step in 0..8 {
            // As in real caches, some directions are much more frequent than others.
            let share: f32 = rng.random_range(0.0f32..1.0);
            let picked = ((share * share * DIRECTIONS as f32) as usize).min(DIRECTIONS - 1);
            let coefficient = rng.random_range(-2.0f32..2.0) * 0.75f32.powi(step);
            let direction = &directions[picked * WIDTH..][..WIDTH];
            vector.iter_mut().zip(direction).for_each(|(v, d)| *v += coefficient * d);
        }
        vector.iter_mut().for_each(|v| *v += rng.random_range(-0.1f32..0.1));
    }
    let path = folder.join(name);
    let header =
        ShardHeader { layer: 0, kind: Kind::Key, tokens: count, heads: 1, head_dim: WIDTH, extra: BTreeMap::new() };
    let mut writer = ShardWriter::create(&path, header)?;
    writer.append(&vectors)?;
    writer.finish()?;
    Ok(Shard::open(&path)?)
}

fn run(config: &TrainConfig, train: &Shard, heldout: &Shard) -> Result<Trained, Box<dyn Error>> {
    Ok(train_group(config, &[train], &[heldout], &mut |_| {})?)
}

/// Seconds from the start to the end of the first epoch with an error of at most `goal`.
fn time_to(trained: &Trained, goal: f64) -> Option<(usize, f64)> {
    let mut seconds = 0.0;
    trained.epochs.iter().find_map(|epoch| {
        seconds += epoch.seconds;
        (epoch.heldout_relative <= goal).then_some((epoch.epoch, seconds))
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    set_threads(1);
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global()?;
    let files: Vec<PathBuf> =
        std::env::args().skip(1).filter(|a| a.ends_with(".safetensors")).map(PathBuf::from).collect();
    let folder = tempfile::tempdir()?;
    let (train, heldout) = match files.as_slice() {
        [train, heldout] => (Shard::open(train)?, Shard::open(heldout)?),
        _ => (
            shard(folder.path(), "train.safetensors", 16_384, 2)?,
            shard(folder.path(), "heldout.safetensors", 4096, 3)?,
        ),
    };
    let ours = TrainConfig {
        atoms: 512,
        vectors: 16_384,
        kmeans_sample: 16_384,
        batch: 1024,
        device: "cpu".to_owned(),
        ..TrainConfig::default()
    };
    let peer = run(&ours.clone().lexico(), &train, &heldout)?;
    let goal = peer.epochs.iter().map(|e| e.heldout_relative).fold(f64::INFINITY, f64::min);
    let (peer_epoch, peer_seconds) = time_to(&peer, goal).ok_or("the peer reaches its own best error")?;
    println!("time_to_error/lexico      {peer_seconds:8.2} s to held-out error {goal:.4} (epoch {peer_epoch} of 20)");
    for (name, config) in
        [("default", ours.clone()), ("random start", TrainConfig { start: kvcsr_neuraldict::Start::Random, ..ours })]
    {
        let trained = run(&config, &train, &heldout)?;
        let last = trained.heldout_relative;
        match time_to(&trained, goal) {
            Some((epoch, seconds)) => println!(
                "time_to_error/{name:<12}{seconds:8.2} s (epoch {epoch}), ratio {:.1} to lexico; goes on to {last:.4}",
                peer_seconds / seconds
            ),
            None => println!("time_to_error/{name:<12}does not reach {goal:.4}: it ends at {last:.4}"),
        }
    }
    Ok(())
}
