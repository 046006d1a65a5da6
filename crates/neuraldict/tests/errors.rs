//! Errors for bad input say what was found, where, and what to do.

#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, path::Path};

use common::{HEAD_DIM, shard, small, sparse_vectors};
use kvcsr_codec::{Kind, Shard};
use kvcsr_neuraldict::{NeuralDictError, TrainConfig, train_group};

fn fails(config: &TrainConfig, train: &[&Shard], heldout: &[&Shard]) -> NeuralDictError {
    train_group(config, train, heldout, &mut |_| {}).unwrap_err()
}

fn good(folder: &Path, layer: usize) -> Shard {
    shard(folder, Kind::Key, layer, 200, &sparse_vectors(1, 400))
}

#[test]
fn too_few_vectors_and_bad_chunks() {
    let folder = tempfile::tempdir().unwrap();
    let data = good(folder.path(), 0);
    let error = fails(&TrainConfig { atoms: 401, ..small() }, &[&data], &[&data]);
    assert!(matches!(error, NeuralDictError::TooFewVectors { vectors: 400, atoms: 401, .. }), "{error}");
    let error = fails(&TrainConfig { chunks: 3, ..small() }, &[&data], &[&data]);
    assert!(matches!(error, NeuralDictError::Chunks { chunks: 3, head_dim: HEAD_DIM, .. }), "{error}");
    let error = fails(&TrainConfig { atoms: 0, ..small() }, &[&data], &[&data]);
    assert!(error.to_string().starts_with("train.atoms"), "{error}");
}

#[test]
fn missing_vectors_and_mixed_shards() {
    let folder = tempfile::tempdir().unwrap();
    let keys = good(folder.path(), 0);
    let values = shard(folder.path(), Kind::Value, 1, 200, &sparse_vectors(1, 400));
    for (train, heldout, what) in [(vec![], vec![&keys], "training"), (vec![&keys], vec![], "held-out")] {
        let error = fails(&small(), &train, &heldout);
        assert!(matches!(&error, NeuralDictError::NoVectors { what: found, .. } if *found == what), "{error}");
    }
    for (train, heldout) in [(vec![&keys, &values], vec![&keys]), (vec![&keys], vec![&values])] {
        let error = fails(&small(), &train, &heldout);
        assert!(error.to_string().contains("layer 1 holds value vectors"), "{error}");
    }
}

#[test]
fn a_missing_device() {
    let folder = tempfile::tempdir().unwrap();
    let data = good(folder.path(), 0);
    let error = fails(&TrainConfig { device: "cuda:4096".to_owned(), ..small() }, &[&data], &[&data]);
    assert!(matches!(error, NeuralDictError::Device { .. }), "{error}");
}

/// Overwrites one f16 in the file of a finished shard.
fn poison(folder: &Path, layer: usize, element: usize, bits: u16) -> Shard {
    drop(good(folder, layer));
    let path = folder.join(format!("key.{layer}.200.safetensors"));
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.len() - 400 * HEAD_DIM * 2 + element * 2;
    bytes[at..at + 2].copy_from_slice(&bits.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    Shard::open(&path).unwrap()
}

#[test]
fn vectors_that_are_not_finite_are_named_by_layer_and_number() {
    let folder = tempfile::tempdir().unwrap();
    let clean = good(folder.path(), 0);
    let config = TrainConfig { chunks: 2, ..small() };
    for (layer, bits) in [(7, 0x7e00u16 /* NaN */), (8, 0xfc00 /* -infinity */)] {
        // Channel 9 of head vector 123 is in its second chunk.
        let bad = poison(folder.path(), layer, 123 * HEAD_DIM + 9, bits);
        for error in [fails(&config, &[&bad], &[&clean]), fails(&config, &[&clean], &[&bad])] {
            let NeuralDictError::NonFiniteVector { layer: found, vector, width, .. } = error else {
                panic!("{error}");
            };
            assert_eq!((found, vector, width), (layer, 247, 8));
        }
        let error = fails(&config, &[&clean, &bad], &[&clean]);
        assert!(matches!(error, NeuralDictError::NonFiniteVector { vector: 247, .. }), "{error}");
    }
}

#[test]
fn divergence_names_group_epoch_and_batch() {
    let folder = tempfile::tempdir().unwrap();
    let data = good(folder.path(), 2);
    let error = fails(&TrainConfig { learning_rate: 1e38, ..small() }, &[&data], &[&data]);
    let NeuralDictError::Diverged { group, epoch, batch, .. } = &error else { panic!("{error}") };
    assert_eq!((group.as_str(), *epoch, *batch), ("key[2]", 1, 0));
    assert!(error.to_string().contains("learning_rate"), "{error}");
}

#[test]
fn all_zero_vectors() {
    let folder = tempfile::tempdir().unwrap();
    let zero = shard(folder.path(), Kind::Key, 0, 200, &vec![0.0; 400 * HEAD_DIM]);
    let error = fails(&small(), &[&zero], &[&zero]);
    assert!(matches!(error, NeuralDictError::AllZero { .. }), "{error}");
}

#[test]
fn constant_and_partly_zero_vectors_train_to_usable_atoms() {
    let folder = tempfile::tempdir().unwrap();
    let constant = shard(folder.path(), Kind::Key, 0, 200, &vec![0.5; 400 * HEAD_DIM]);
    let mut vectors = vec![0.0; 400 * HEAD_DIM];
    vectors[..100 * HEAD_DIM].copy_from_slice(&sparse_vectors(1, 100));
    let mostly_zero = shard(folder.path(), Kind::Key, 1, 200, &vectors);
    for (data, limit) in [(&constant, 1e-5), (&mostly_zero, 0.2)] {
        for trainer in [kvcsr_neuraldict::Trainer::NeuralDict, kvcsr_neuraldict::Trainer::Mod] {
            let config = TrainConfig { trainer, ..small() };
            let trained = train_group(&config, &[data], &[data], &mut |_| {}).unwrap();
            assert!(trained.dictionary.atoms().iter().all(|v| v.is_finite()));
            assert!(trained.heldout_relative < limit, "{trainer:?}: {}", trained.heldout_relative);
        }
    }
}

#[test]
fn an_empty_shard_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let data = good(folder.path(), 0);
    let path = folder.path().join("empty.safetensors");
    let header = kvcsr_codec::ShardHeader { tokens: 0, ..data.header().clone() };
    kvcsr_codec::ShardWriter::create(&path, header).unwrap().finish().unwrap();
    let empty = Shard::open(&path).unwrap();
    for (train, heldout) in [(&empty, &data), (&data, &empty)] {
        let error = fails(&small(), &[train], &[heldout]);
        assert!(matches!(error, NeuralDictError::NoVectors { .. }), "{error}");
    }
}
