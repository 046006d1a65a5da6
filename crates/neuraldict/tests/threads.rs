//! The bits are the same for any number of threads of libtorch and of rayon.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{shard, sparse_vectors};
use kvcsr_codec::{Dictionary, Encoder, Kind as Vectors};
use kvcsr_neuraldict::{TrainConfig, kmeans::kmeans, pursuit::select_atoms, set_threads, train_group};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::Tensor;

fn random(seed: u64, rows: usize, width: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..rows * width).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    Vec::<f32>::try_from(tensor.flatten(0, -1)).unwrap().into_iter().map(f32::to_bits).collect()
}

/// Starts a new thread for each count, because libtorch fixes a thread's number of threads at its first call.
fn on_threads<T: Send>(of: impl Fn() -> T + Sync) -> Vec<T> {
    let each = |count: usize| {
        std::thread::scope(|scope| {
            let work = || {
                set_threads(count);
                let pool = rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap();
                pool.install(|| {
                    set_threads(count);
                    of()
                })
            };
            scope.spawn(work).join().unwrap()
        })
    };
    [1, 2, 3].map(each).into()
}

#[test]
fn kmeans_and_both_pursuits_do_not_depend_on_the_number_of_threads() {
    let (rows, width, atoms) = (6000, 48, 200);
    let values = random(1, rows, width);
    let dictionary = Arc::new(Dictionary::normalised(width, random(2, atoms, width)).unwrap());
    let found = on_threads(|| {
        let vectors = Tensor::from_slice(&values).view([-1, width as i64]);
        let clusters = kmeans(&vectors, atoms, 6, &mut ChaCha8Rng::seed_from_u64(3), &mut |_, _| {}).unwrap();
        let on_device = Tensor::from_slice(dictionary.atoms()).view([-1, width as i64]);
        let picked = select_atoms(&on_device, &vectors, 6).unwrap();
        let (mut indices, mut coefficients) = (vec![0u16; rows * 6], vec![0f32; rows * 6]);
        Encoder::new(dictionary.clone()).encode(&values, 6, &mut indices, &mut coefficients).unwrap();
        let coefficients: Vec<u32> = coefficients.into_iter().map(f32::to_bits).collect();
        (bits(&clusters.centroids), bits(&picked.coefficients), indices, coefficients, clusters.inertia)
    });
    assert_eq!(found[0].0, found[1].0, "k-means");
    assert_eq!(found[0].1, found[1].1, "libtorch's pursuit");
    assert!(found.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn training_does_not_depend_on_the_threads_of_its_pursuit() {
    let folder = tempfile::tempdir().unwrap();
    let train = shard(folder.path(), Vectors::Key, 0, 1000, &sparse_vectors(1, 2000));
    let heldout = shard(folder.path(), Vectors::Key, 0, 100, &sparse_vectors(2, 200));
    let config = TrainConfig { epochs: 2, ..common::small() };
    let run = |threads| {
        set_threads(1);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let train = || train_group(&config, &[&train], &[&heldout], &mut |_| {}).unwrap();
        pool.install(|| {
            set_threads(1);
            train()
        })
    };
    let [one, three] = [1, 3].map(run);
    assert_eq!(one.dictionary.atoms(), three.dictionary.atoms());
    assert_eq!(one.heldout_relative, three.heldout_relative);
}
