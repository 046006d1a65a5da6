//! Complete runs on synthetic vectors that are sparse.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{HEAD_DIM, shard, small, sparse_vectors};
use kvcsr_codec::{Encoder, Kind, Shard, reconstruction_error};
use kvcsr_neuraldict::{EpochRecord, GradientPath, Progress, Reduction, Selection, TrainConfig, Trained, train_group};

struct Data {
    _folder: tempfile::TempDir,
    train: Shard,
    heldout: Shard,
    heldout_vectors: Vec<f32>,
}

fn data() -> Data {
    let folder = tempfile::tempdir().unwrap();
    let train = shard(folder.path(), Kind::Key, 3, 2000, &sparse_vectors(1, 4000));
    let heldout_vectors = sparse_vectors(2, 1000);
    let heldout = shard(folder.path(), Kind::Key, 3, 500, &heldout_vectors);
    Data { _folder: folder, train, heldout, heldout_vectors }
}

fn run(config: &TrainConfig, data: &Data) -> Trained {
    train_group(config, &[&data.train], &[&data.heldout], &mut |_| {}).unwrap()
}

#[test]
fn training_beats_its_initialisation_on_both_paths_by_both_pursuits() {
    let data = data();
    for gradient in [GradientPath::Coefficients, GradientPath::Atoms] {
        for selection in [Selection::Codec, Selection::Torch] {
            let trained = run(&TrainConfig { gradient, selection, ..small() }, &data);
            let (before, after) = (trained.kmeans_heldout_relative, trained.heldout_relative);
            assert!(after < 0.7 * before, "{gradient:?}, {selection:?}: {before} -> {after}");
        }
    }
}

#[test]
fn reported_errors_are_those_of_the_dictionaries() {
    let data = data();
    let trained = run(&small(), &data);
    for (dictionary, reported) in
        [(&trained.kmeans, trained.kmeans_heldout_relative), (&trained.dictionary, trained.heldout_relative)]
    {
        let encoder = Encoder::new(Arc::new(dictionary.clone()));
        // The shard rounded the vectors to f16. This causes at most 1e-3 of the error.
        let found = reconstruction_error(&encoder, &data.heldout_vectors, 3).unwrap();
        assert!((found.relative - reported).abs() < 2e-3 * reported, "{} {reported}", found.relative);
    }
}

#[test]
fn records_are_complete_and_consistent() {
    let data = data();
    let (mut seen, mut batches, mut inertia) = (Vec::<EpochRecord>::new(), 0, Vec::new());
    let trained = train_group(&small(), &[&data.train], &[&data.heldout], &mut |progress| match progress {
        Progress::Epoch { group, record } => {
            assert_eq!(*group, "key[3]");
            seen.push((*record).clone());
        }
        Progress::Batch { batches: of, .. } => {
            assert_eq!(*of, 32);
            batches += 1;
        }
        Progress::KMeans { inertia: value, .. } => inertia.push(*value),
        Progress::Resumed { .. } => panic!("nothing to go on from"),
    })
    .unwrap();
    assert_eq!(seen, trained.epochs);
    assert_eq!(batches, 4 * 32);
    assert!(inertia.len() >= 2 && inertia.last() < inertia.first());
    for (epoch, record) in trained.epochs.iter().enumerate() {
        assert_eq!(record.epoch, epoch);
        assert!(record.usage_entropy > 0.0 && record.usage_entropy <= 6.0);
        assert!(record.diversity > 0.0 && record.seconds > 0.0);
        assert!(record.dead_atoms < 64);
        assert!((record.beta > 0.0) == (epoch > 0) && record.beta <= 1.0);
    }
    let best = &trained.epochs[trained.best_epoch];
    assert!(trained.epochs.iter().all(|record| record.heldout_relative >= best.heldout_relative));
    assert_eq!(trained.epochs[4].heldout_relative, trained.heldout_relative);
    // The training error of the last epoch and the held-out error measure the same distribution.
    let last = &trained.epochs[4];
    assert!((last.train_relative / last.heldout_relative - 1.0).abs() < 0.3, "{last:?}");
}

#[test]
fn the_seed_decides_every_bit() {
    let data = data();
    let [a, b, c] = [0, 0, 1].map(|seed| run(&TrainConfig { seed, epochs: 2, ..small() }, &data));
    assert_eq!(a.dictionary.atoms(), b.dictionary.atoms());
    assert_eq!(a.kmeans.atoms(), b.kmeans.atoms());
    assert_ne!(a.dictionary.atoms(), c.dictionary.atoms());
    let without_time = |trained: &Trained| {
        trained.epochs.iter().map(|record| EpochRecord { seconds: 0.0, ..record.clone() }).collect::<Vec<_>>()
    };
    assert_eq!(without_time(&a), without_time(&b));
}

#[test]
fn chunks_and_merged_layers_train_one_dictionary() {
    let folder = tempfile::tempdir().unwrap();
    let first = shard(folder.path(), Kind::Value, 4, 600, &sparse_vectors(1, 1200));
    let second = shard(folder.path(), Kind::Value, 5, 700, &sparse_vectors(5, 1400));
    let heldout = shard(folder.path(), Kind::Value, 4, 100, &sparse_vectors(6, 200));
    let config = TrainConfig { chunks: 2, sparsity: 2, ..small() };
    let mut names = Vec::new();
    let trained = train_group(&config, &[&first, &second], &[&heldout], &mut |progress| {
        if let Progress::Epoch { group, .. } = progress {
            names.push((*group).to_owned());
        }
    })
    .unwrap();
    assert_eq!(trained.dictionary.width(), HEAD_DIM / 2);
    assert!(names.iter().all(|name| name == "value[4-5]"));
    assert!(trained.heldout_relative < trained.kmeans_heldout_relative);
}

#[test]
fn zero_epochs_keep_the_kmeans_dictionary() {
    let data = data();
    let trained = run(&TrainConfig { epochs: 0, ..small() }, &data);
    assert_eq!(trained.kmeans.atoms(), trained.dictionary.atoms());
    assert_eq!((trained.epochs.len(), trained.best_epoch), (1, 0));
}

#[test]
fn the_mean_gives_diversity_more_weight_than_the_sum() {
    let data = data();
    let spread = |reduction| {
        let config = TrainConfig { reduction, ..small() };
        run(&config, &data).epochs.last().unwrap().diversity
    };
    assert!(spread(Reduction::Mean) < spread(Reduction::Sum));
}
