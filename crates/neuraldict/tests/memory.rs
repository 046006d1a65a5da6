//! Memory of a large group. The test with a million vectors is ignored by default: it takes minutes and 256 MB of disk.
//!
//! `cargo test --release -p kvcsr-neuraldict --test memory -- --ignored --nocapture`

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use kvcsr_codec::{Kind, Shard, ShardHeader, ShardWriter};
use kvcsr_neuraldict::{TrainConfig, set_threads, train_group};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const WIDTH: usize = 128;

/// Resident memory that is not backed by files, in bytes.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
#[ignore = "a million vectors: minutes and 256 MB of disk"]
fn a_million_vectors_of_128_channels_stay_within_the_estimate() {
    set_threads(1);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.safetensors");
    let (tokens, heads) = (125_000, 8);
    let header = ShardHeader { layer: 0, kind: Kind::Key, tokens, heads, head_dim: WIDTH, extra: BTreeMap::new() };
    let mut writer = ShardWriter::create(&path, header).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..tokens / 1000 {
        let block: Vec<f32> = (0..1000 * heads * WIDTH).map(|_| rng.random_range(-1.0f32..1.0)).collect();
        writer.append(&block).unwrap();
    }
    writer.finish().unwrap();
    let shard = Shard::open(&path).unwrap();
    let heldout_path = folder.path().join("heldout.safetensors");
    let header = ShardHeader { tokens: 500, ..shard.header().clone() };
    let mut writer = ShardWriter::create(&heldout_path, header).unwrap();
    writer.append(&(0..500 * heads * WIDTH).map(|_| rng.random_range(-1.0f32..1.0)).collect::<Vec<f32>>()).unwrap();
    writer.finish().unwrap();
    let heldout = Shard::open(&heldout_path).unwrap();

    let all = TrainConfig { epochs: 1, sparsity: 2, kmeans_iterations: 2, ..TrainConfig::default() };
    // The first run uses all vectors. The second uses the paper's largest dictionary, with as many vectors as its start needs.
    let largest =
        TrainConfig { atoms: 16_384, vectors: 32_768, kmeans_sample: 32_768, kmeans_iterations: 1, ..all.clone() };
    let before = anonymous();
    for config in [all, largest] {
        let mut peak = 0;
        train_group(&config, &[&shard], &[&heldout], &mut |_| peak = peak.max(anonymous())).unwrap();
        let (took, estimate) = (peak.saturating_sub(before), config.memory_bytes(tokens * heads, WIDTH));
        println!("N = {}: {} MB beside the mapped shard, estimate {} MB", config.atoms, took >> 20, estimate >> 20);
        assert!(took < estimate, "{took} bytes, estimated {estimate}");
        assert!(estimate < 2 << 30, "three of these at once fit 8 GB");
    }
}

/// A shard of `tokens` tokens with 8 heads, written block by block.
fn made_up(folder: &std::path::Path, tokens: usize) -> Shard {
    let path = folder.join(format!("{tokens}.safetensors"));
    let header = ShardHeader { layer: 0, kind: Kind::Key, tokens, heads: 8, head_dim: WIDTH, extra: BTreeMap::new() };
    let mut writer = ShardWriter::create(&path, header).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for _ in 0..tokens / 500 {
        let block: Vec<f32> = (0..500 * 8 * WIDTH).map(|_| rng.random_range(-1.0f32..1.0)).collect();
        writer.append(&block).unwrap();
    }
    writer.finish().unwrap();
    Shard::open(&path).unwrap()
}

/// This test runs alone in its process, because the test above is ignored.
#[test]
fn memory_grows_by_the_order_of_vectors_and_not_by_the_vectors() {
    set_threads(1);
    let folder = tempfile::tempdir().unwrap();
    let config = TrainConfig {
        atoms: 32,
        sparsity: 1,
        epochs: 1,
        batch: 1024,
        kmeans_sample: 1024,
        kmeans_iterations: 1,
        device: "cpu".to_owned(),
        ..TrainConfig::default()
    };
    let heldout = made_up(folder.path(), 500);
    let peak = |shard: &Shard| {
        let mut peak = 0;
        train_group(&config, &[shard], &[&heldout], &mut |_| peak = peak.max(anonymous())).unwrap();
        peak
    };
    let (few, many) = (made_up(folder.path(), 2000), made_up(folder.path(), 16_000));
    // Libraries and buffers are allocated in the first run.
    let first = peak(&few);
    let grown = peak(&many).saturating_sub(first);
    let (more, bytes) = (14_000 * 8u64, 4 * WIDTH as u64);
    assert!(grown < more * bytes / 4, "{grown} bytes for {more} more vectors, which take {} as f32", more * bytes);

    // The formula that decides how many groups are trained in parallel. 60 groups of a million vectors of 128 channels fit 8 GB:
    // one at a time for every size, and three at a time for the default size.
    let eight = 8u64 << 30;
    for (atoms, at_once) in [(1024, 3), (8192, 1), (16_384, 1)] {
        let config = TrainConfig { atoms, ..TrainConfig::default() };
        let estimate = config.memory_bytes(1_000_000, WIDTH);
        assert!(at_once * estimate <= eight, "N = {atoms}: {at_once} x {estimate} bytes");
        let growth = estimate - config.memory_bytes(0, WIDTH);
        assert_eq!(growth, 8_000_000, "eight bytes for every vector");
    }
}
