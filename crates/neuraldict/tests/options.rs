//! Options beyond the paper. On vectors with a known structure, each option has the effect that its name says.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::{HEAD_DIM, scalars, shard, small, sparse_vectors};
use kvcsr_codec::{Kind, Shard};
use kvcsr_neuraldict::{
    DeadAtoms, Diversity, Inputs, NeuralDictError, Pursuit, Start, TrainConfig, Trained, Trainer, train_group,
    train_group_from,
};

struct Data {
    folder: tempfile::TempDir,
    train: Shard,
    heldout: Shard,
}

fn data() -> Data {
    let folder = tempfile::tempdir().unwrap();
    let train = shard(folder.path(), Kind::Key, 3, 2000, &sparse_vectors(1, 4000));
    let heldout = shard(folder.path(), Kind::Key, 3, 500, &sparse_vectors(2, 1000));
    Data { folder, train, heldout }
}

fn run(config: &TrainConfig, data: &Data) -> Trained {
    train_group(config, &[&data.train], &[&data.heldout], &mut |_| {}).unwrap()
}

#[test]
fn closed_form_updates_learn_as_well_as_gradients() {
    let data = data();
    let gradient = run(&small(), &data);
    let closed = run(&TrainConfig { trainer: Trainer::Mod, ..small() }, &data);
    assert_eq!(closed.kmeans.atoms(), gradient.kmeans.atoms(), "the same start");
    assert!(closed.heldout_relative < 0.7 * closed.kmeans_heldout_relative, "{:?}", closed.epochs.last());
    let omp = run(&TrainConfig { trainer: Trainer::Mod, pursuit: Pursuit::Omp, ..small() }, &data);
    assert!(omp.heldout_relative < 0.7 * omp.kmeans_heldout_relative, "{:?}", omp.epochs.last());
}

#[test]
fn orthogonal_pursuit_in_training_learns() {
    let data = data();
    let trained = run(&TrainConfig { pursuit: Pursuit::Omp, ..small() }, &data);
    assert!(trained.heldout_relative < 0.7 * trained.kmeans_heldout_relative, "{:?}", trained.epochs.last());
    // The training errors use refitted coefficients, so they are below those of matching pursuit.
    let plain = run(&small(), &data);
    assert!(trained.epochs[1].train_relative < plain.epochs[1].train_relative);
}

#[test]
fn dead_atoms_move_to_the_worst_fitted_vectors() {
    // 3000 vectors near one axis and 40 along another. Random starts leave most atoms unused.
    let folder = tempfile::tempdir().unwrap();
    let mut vectors = vec![0f32; 3040 * HEAD_DIM];
    for (at, vector) in vectors.chunks_mut(HEAD_DIM).enumerate() {
        let axis = if at % 76 == 0 { 5 } else { 0 };
        vector[axis] = 1.0 + (at % 7) as f32 * 0.1;
        vector[axis + 1] = (at % 13) as f32 * 0.02;
    }
    let train = shard(folder.path(), Kind::Key, 0, 1520, &vectors);
    let config = TrainConfig { start: Start::Random, sparsity: 1, learning_rate: 1e-3, epochs: 2, ..small() };
    let run = |dead_atoms| {
        let config = TrainConfig { dead_atoms, ..config.clone() };
        train_group(&config, &[&train], &[&train], &mut |_| {}).unwrap()
    };
    let (kept, moved) = (run(DeadAtoms::Keep), run(DeadAtoms::Replace));
    assert!(kept.epochs[1].dead_atoms > 30 && kept.epochs.iter().all(|e| e.replaced_atoms == 0));
    assert_eq!(moved.epochs[1].dead_atoms, kept.epochs[1].dead_atoms, "nothing moves before the first epoch's end");
    assert_eq!(moved.epochs[1].replaced_atoms, moved.epochs[1].dead_atoms);
    assert_eq!(moved.epochs[2].replaced_atoms, 0, "the last epoch leaves no untrained atom behind");
    assert!(moved.heldout_relative < 0.5 * kept.heldout_relative, "{moved:?}");
    let closed = TrainConfig { trainer: Trainer::Mod, dead_atoms: DeadAtoms::Replace, ..config };
    let closed = train_group(&closed, &[&train], &[&train], &mut |_| {}).unwrap();
    assert!(closed.epochs[1].replaced_atoms > 0 && closed.heldout_relative < 0.5 * kept.heldout_relative);
}

#[test]
fn the_curriculum_trains_at_rising_sparsity() {
    let data = data();
    let trained = run(&TrainConfig { curriculum: 0.5, ..small() }, &data);
    // The first epochs use fewer atoms. Their training error therefore exceeds that of a plain run by more than learning can
    // explain.
    let plain = run(&small(), &data);
    assert!(trained.epochs[1].train_relative > 1.5 * plain.epochs[1].train_relative);
    assert!(trained.heldout_relative < 0.7 * trained.kmeans_heldout_relative);
}

#[test]
fn starts_differ_and_all_learn() {
    let data = data();
    let mut first = Vec::new();
    for start in [Start::KMeans, Start::Sample, Start::Random] {
        let trained = run(&TrainConfig { start, diversity: Diversity::Off, ..small() }, &data);
        assert!(trained.heldout_relative < trained.kmeans_heldout_relative, "{start:?}");
        assert!(trained.epochs[1].beta == 0.0, "L_div is off");
        first.push(trained.kmeans_heldout_relative);
    }
    assert!(first[0] < first[1] && first[1] < first[2], "k-means, then sampled vectors, then noise: {first:?}");
}

#[test]
fn the_peers_recipe_learns_slowly_from_noise() {
    let data = data();
    let trained = run(&TrainConfig { vectors: 1000, epochs: 20, ..small().lexico() }, &data);
    assert_eq!(trained.epochs.len(), 21);
    assert!(trained.heldout_relative < 0.98 * trained.kmeans_heldout_relative, "{:?}", trained.epochs.last());
    assert!(trained.heldout_relative > run(&small(), &data).heldout_relative);
}

#[test]
fn patience_stops_and_takes_the_best_epoch() {
    let data = data();
    // The rate overshoots, so the start has the smallest error of all epochs.
    let config = TrainConfig { learning_rate: 3.0, patience: 2, epochs: 50, ..small() };
    let trained = run(&config, &data);
    assert!(trained.epochs.len() < 50, "{} epochs", trained.epochs.len());
    assert_eq!(trained.epochs.len() - 1, trained.best_epoch + 2);
    let best = trained.epochs.iter().map(|e| e.heldout_relative).fold(f64::INFINITY, f64::min);
    assert_eq!(trained.heldout_relative, best);
    let without = run(&TrainConfig { patience: 0, epochs: 3, ..config }, &data);
    assert_eq!(without.heldout_relative, without.epochs[3].heldout_relative);
}

#[test]
fn a_limit_on_vectors_is_kept() {
    let data = data();
    let mut batches = 0;
    let config = TrainConfig { vectors: 1000, epochs: 1, ..small() };
    train_group(&config, &[&data.train], &[&data.heldout], &mut |progress| {
        if let kvcsr_neuraldict::Progress::Batch { batches: of, .. } = progress {
            batches = *of;
        }
    })
    .unwrap();
    assert_eq!(batches, 8);
    let all = TrainConfig { vectors: 4000, epochs: 1, ..small() };
    let plain = TrainConfig { vectors: 0, ..all.clone() };
    assert_eq!(run(&all, &data).dictionary.atoms(), run(&plain, &data).dictionary.atoms());
}

/// Weights of 1 for the first half of the tokens and `second` for the others.
fn halves(folder: &Path, tokens: usize, second: f32) -> Shard {
    let values: Vec<f32> = (0..tokens * 2).map(|head| if head < tokens { 1.0 } else { second }).collect();
    scalars(folder, Kind::Key, 0, tokens, &values)
}

#[test]
fn weighted_vectors_are_fitted_better_at_the_cost_of_others() {
    // Two halves with different directions, and atoms for only one of them.
    let folder = tempfile::tempdir().unwrap();
    let mut vectors = sparse_vectors(1, 4000);
    vectors[2000 * HEAD_DIM..].iter_mut().enumerate().for_each(|(at, v)| {
        if at % 2 == 0 {
            *v *= -2.0;
        }
    });
    let train = shard(folder.path(), Kind::Key, 0, 2000, &vectors);
    for trainer in [Trainer::NeuralDict, Trainer::Mod] {
        let config = TrainConfig { atoms: 16, sparsity: 2, epochs: 6, trainer, ..small() };
        let run = |second: f32| {
            let weights = halves(folder.path(), 2000, second);
            let measured = halves(folder.path(), 2000, 20.0);
            let inputs = Inputs {
                train: &[&train],
                heldout: &[&train],
                weights: Some(&[&weights]),
                heldout_weights: Some(&[&measured]),
                ..Inputs::default()
            };
            train_group_from(&config, &inputs, &mut |_| {}).unwrap()
        };
        let (even, tilted) = (run(1.0), run(20.0));
        let (even_w, tilted_w) = (even.heldout_weighted.unwrap(), tilted.heldout_weighted.unwrap());
        assert!(tilted_w < 0.97 * even_w, "{trainer:?}: {even_w} -> {tilted_w}");
        assert!(tilted.heldout_relative > even.heldout_relative, "{trainer:?}");
    }
}

#[test]
fn even_weights_change_nothing_but_rounding() {
    let data = data();
    let weights = halves(data.folder.path(), 2000, 1.0);
    let run_with = |weights: &[&Shard]| {
        let (train, heldout) = ([&data.train], [&data.heldout]);
        let inputs = Inputs { train: &train, heldout: &heldout, weights: Some(weights), ..Inputs::default() };
        train_group_from(&small(), &inputs, &mut |_| {})
    };
    // The shard of weights has layer 0, the vectors have layer 3.
    let error = run_with(&[&weights]).unwrap_err();
    assert!(matches!(error, NeuralDictError::Weights { .. }) && error.to_string().contains("layer 3"), "{error}");

    let ones = scalars(data.folder.path(), Kind::Key, 3, 2000, &vec![1.0; 4000]);
    let even = run_with(&[&ones]).unwrap();
    let plain = run(&small(), &data);
    assert!((even.heldout_relative / plain.heldout_relative - 1.0).abs() < 1e-3);
    let negative = scalars(data.folder.path(), Kind::Key, 3, 2000, &vec![-1.0; 4000]);
    let error = run_with(&[&negative]).unwrap_err();
    assert!(error.to_string().contains("expected 0 or more"), "{error}");
    let error = run_with(&[]).unwrap_err();
    assert!(error.to_string().contains("0 shards for 1 shards"), "{error}");
}
