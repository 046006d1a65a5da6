//! A run that is interrupted at any moment ends with the same bytes.

#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, panic, path::Path, time::Duration};

use common::{shard, small, sparse_vectors};
use kvcsr_codec::{Kind, Shard};
use kvcsr_neuraldict::{
    DeadAtoms, EpochRecord, Inputs, NeuralDictError, Progress, Pursuit, TrainConfig, Trained, Trainer,
    checkpoint::{CHECKPOINT, DIVERGED},
    train_group, train_group_from,
};

fn run(config: &TrainConfig, shards: [&Shard; 2], folder: &Path, stop: usize) -> Option<Result<Trained, String>> {
    let inputs = Inputs {
        train: &[shards[0]],
        heldout: &[shards[1]],
        folder: Some(folder),
        checkpoint_every: Duration::ZERO,
        ..Inputs::default()
    };
    let mut left = stop;
    let cut = panic::AssertUnwindSafe(|| {
        train_group_from(config, &inputs, &mut |progress| {
            if matches!(progress, Progress::Batch { .. } | Progress::Epoch { .. }) {
                if left == 0 {
                    // This unwinds out of the trainer without any further action, like a kill.
                    panic::resume_unwind(Box::new("cut off"));
                }
                left -= 1;
            }
        })
        .map_err(|error| error.to_string())
    });
    panic::catch_unwind(cut).ok()
}

fn timeless(epochs: &[EpochRecord]) -> Vec<EpochRecord> {
    epochs.iter().map(|record| EpochRecord { seconds: 0.0, ..record.clone() }).collect()
}

fn shards(folder: &Path) -> (Shard, Shard) {
    (
        shard(folder, Kind::Key, 0, 500, &sparse_vectors(1, 1000)),
        shard(folder, Kind::Key, 0, 100, &sparse_vectors(2, 200)),
    )
}

#[test]
fn interrupted_anywhere_it_ends_with_the_same_bytes() {
    let data = tempfile::tempdir().unwrap();
    let (train, heldout) = shards(data.path());
    let base = TrainConfig { atoms: 24, epochs: 3, ..small() };
    let configs = [
        base.clone(),
        TrainConfig { trainer: Trainer::Mod, dead_atoms: DeadAtoms::Replace, ..base.clone() },
        TrainConfig { pursuit: Pursuit::Omp, curriculum: 0.4, patience: 1, dead_atoms: DeadAtoms::Replace, ..base },
    ];
    for config in &configs {
        let whole = train_group(config, &[&train], &[&heldout], &mut |_| {}).unwrap();
        // An epoch has eight batches and one record. The run stops before, at and after the end of an epoch, and twice.
        for stops in [vec![3], vec![8], vec![9, 1, 4], vec![10], vec![20, 2]] {
            let folder = tempfile::tempdir().unwrap();
            for &stop in &stops {
                assert!(run(config, [&train, &heldout], folder.path(), stop).is_none(), "not cut off at {stop}");
            }
            let resumed = run(config, [&train, &heldout], folder.path(), usize::MAX).unwrap().unwrap();
            assert_eq!(resumed.dictionary.atoms(), whole.dictionary.atoms(), "{stops:?}, {config:?}");
            assert_eq!(resumed.kmeans.atoms(), whole.kmeans.atoms());
            assert_eq!(timeless(&resumed.epochs), timeless(&whole.epochs), "{stops:?}");
            assert_eq!(resumed.best_epoch, whole.best_epoch);
        }
    }
}

#[test]
fn a_checkpoint_of_another_run_or_damaged_is_an_error_that_says_what_to_do() {
    let data = tempfile::tempdir().unwrap();
    let (train, heldout) = shards(data.path());
    let folder = tempfile::tempdir().unwrap();
    let config = TrainConfig { atoms: 24, epochs: 1, ..small() };
    assert!(run(&config, [&train, &heldout], folder.path(), 4).is_none());
    let refused = |config: &TrainConfig| run(config, [&train, &heldout], folder.path(), 99).unwrap().unwrap_err();
    let message = refused(&TrainConfig { seed: 1, ..config.clone() });
    assert!(message.contains("belongs to") && message.contains("remove the file"), "{message}");

    let path = folder.path().join(CHECKPOINT);
    let good = fs::read(&path).unwrap();
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    assert!(refused(&config).contains("remove the file"));
    // The last bytes belong to an f32 tensor. Set them to NaN.
    let mut poisoned = good.clone();
    let end = poisoned.len();
    poisoned[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, &poisoned).unwrap();
    assert!(refused(&config).contains("not finite"));
    fs::write(&path, good).unwrap();
    assert!(run(&config, [&train, &heldout], folder.path(), 99).unwrap().is_ok());
}

#[test]
fn a_diverging_run_saves_the_batch_and_no_dictionary() {
    let data = tempfile::tempdir().unwrap();
    let (train, heldout) = shards(data.path());
    let folder = tempfile::tempdir().unwrap();
    let config = TrainConfig { atoms: 24, learning_rate: 1e38, ..small() };
    let inputs = Inputs {
        train: &[&train],
        heldout: &[&heldout],
        folder: Some(folder.path()),
        checkpoint_every: Duration::from_secs(3600),
        ..Inputs::default()
    };
    let error = train_group_from(&config, &inputs, &mut |_| {}).unwrap_err();
    let NeuralDictError::Diverged { saved: Some(path), .. } = &error else { panic!("{error}") };
    assert_eq!(path, &folder.path().join(DIVERGED));
    assert!(error.to_string().contains(DIVERGED), "{error}");
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("vectors").unwrap().shape(), [125, 16]);
    assert_eq!(file.tensor("atoms").unwrap().shape(), [24, 16]);
    // The remaining checkpoint is the previous one. It contains finite atoms only.
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}
