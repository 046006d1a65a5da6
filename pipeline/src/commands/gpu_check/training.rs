//! Trains one dictionary on the device and on the CPU.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result};
use kvcsr_cache::conformance::noise;
use kvcsr_codec::{Kind, Shard, ShardHeader, ShardWriter};
use kvcsr_neuraldict::{Selection, TrainConfig, train_group};

use super::Check;

/// The largest allowed relative difference between the two held-out errors: sums have another order, so a few atoms differ.
const NEAR: f64 = 0.02;

/// Trains a group twice from the same start and compares the curves.
pub(super) fn one_group(check: &mut Check) -> Result<()> {
    let (tokens, head_dim, atoms, epochs) = if check.quick { (3000, 32, 64, 2) } else { (32768, 128, 2048, 3) };
    let folder = tempfile::tempdir()?;
    let train = shard(&folder.path().join("train.safetensors"), 1, tokens, head_dim)?;
    let heldout = shard(&folder.path().join("heldout.safetensors"), 2, tokens / 8, head_dim)?;
    let curve = |device: &str| -> Result<(Vec<f64>, f64)> {
        let config = TrainConfig {
            atoms,
            sparsity: 4,
            epochs,
            selection: Selection::Torch,
            device: device.to_owned(),
            ..TrainConfig::default()
        };
        let begun = Instant::now();
        let trained = train_group(&config, &[&train], &[&heldout], &mut |_| {})?;
        Ok((trained.epochs.iter().map(|epoch| epoch.heldout_relative).collect(), begun.elapsed().as_secs_f64()))
    };
    let (there, seconds) = curve(&check.torch)?;
    let (host, host_seconds) = curve("cpu")?;
    let off = there.iter().zip(&host).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max);
    let last = there.last().context("no epoch was trained")?;
    let what = format!("N = {atoms}, {tokens} vectors of {head_dim}, {epochs} epochs");
    let found = format!("{seconds:.1} s, error {last:.4}");
    let beside = format!("cpu {host_seconds:.1} s; curves apart by {:.2} %", 100.0 * off);
    check.add("training", what, found, beside, off <= NEAR);
    Ok(())
}

/// Writes keys that are random mixtures of a few hidden directions.
fn shard(path: &std::path::Path, seed: u64, tokens: usize, head_dim: usize) -> Result<Shard> {
    const DIRECTIONS: usize = 200;
    let directions = noise(77, DIRECTIONS * head_dim);
    let picks = noise(seed, tokens * 8);
    let mut keys = vec![0f32; tokens * head_dim];
    for (key, picks) in keys.chunks_exact_mut(head_dim).zip(picks.chunks_exact(8)) {
        for pair in picks.chunks_exact(2) {
            let at = ((pair[0] + 1.0) * 0.5 * DIRECTIONS as f32) as usize % DIRECTIONS;
            let direction = &directions[at * head_dim..(at + 1) * head_dim];
            key.iter_mut().zip(direction).for_each(|(x, d)| *x += 2.0 * pair[1] * d);
        }
    }
    let header = ShardHeader { layer: 0, kind: Kind::Key, tokens, heads: 1, head_dim, extra: BTreeMap::new() };
    let mut writer = ShardWriter::create(path, header)?;
    writer.append(&keys)?;
    writer.finish()?;
    Ok(Shard::open(path)?)
}
