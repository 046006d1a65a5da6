//! NeuralDict: learns the offline dictionaries of CSR with libtorch.
//!
//! CSR (Zhang et al., AAAI 2025, arXiv 2412.11741) stores a key or value vector as a few atoms of a
//! dictionary. This crate learns the dictionary from calibration vectors with the paper's Algorithm 1.
//! It starts from k-means centroids. Gradient descent then reduces the residual that matching pursuit
//! leaves. This is the only crate of the workspace that links libtorch. All its results are plain data
//! of [`kvcsr_codec`].
//!
//! | paper | here |
//! |---|---|
//! | Algorithm 1, step 2: `M_K`, `M_V` | [`divergence`], [`merge::LayerGroups`] |
//! | concatenated vectors of a group, cut into `s_n` chunks | [`pool::VectorPool`] |
//! | step 3: cluster centroids, ReNorm | [`kmeans::kmeans`], [`kmeans::centroids_to_atoms`] |
//! | step 4: `r` from matching pursuit | [`pursuit::select_atoms`], or the codec's encoder |
//! | `L_MSE` and its gradient | [`pursuit::unrolled_residual`], [`pursuit::linear_residual`], [`loss::reconstruction`] |
//! | `L_div`, `beta` | [`loss::diversity`], [`loss::beta`] |
//! | update, ReNorm | [`optimiser::Adam`], [`optimiser::renorm`] |
//! | the loop over epochs and batches | [`train_group`] |
//!
//! The crate has options beyond the paper. Each is a field of [`TrainConfig`] and off by default: closed-form updates
//! ([`closed`]), orthogonal matching pursuit ([`pursuit::orthogonal_codes`]), other starts, replacement of dead atoms, a
//! curriculum over `s`, early stopping, and weights ([`Inputs::weights`]). [`TrainConfig::lexico`] gives the settings of
//! a public trainer for comparison. [`train_group_from`] writes checkpoints.
//!
//! Symbols: `N` atoms, `D` channels of a head vector or of a chunk of it, `S` sparsity (the paper's `s`, "MP level"),
//! `B` vectors in a batch, `M` vectors in the k-means sample. Atoms are rows, `(N, D)`. The paper's `W_D` is the
//! transpose of that matrix.
//!
//! ```no_run
//! use kvcsr_codec::Shard;
//! use kvcsr_neuraldict::{TrainConfig, set_threads, train_group};
//!
//! set_threads(2);
//! let (train, heldout) = (Shard::open("value.0.safetensors")?, Shard::open("value.0.heldout.safetensors")?);
//! let config = TrainConfig { chunks: 2, sparsity: 4, ..TrainConfig::default() };
//! let trained = train_group(&config, &[&train], &[&heldout], &mut |_| {})?;
//! assert!(trained.heldout_relative < trained.kmeans_heldout_relative);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod axes;
pub mod ceiling;
pub mod checkpoint;
pub mod closed;
mod coder;
pub mod config;
pub mod device;
pub mod divergence;
pub mod error;
pub mod kmeans;
pub mod loss;
pub mod merge;
pub mod optimiser;
pub mod peers;
pub mod plus;
pub mod pool;
pub mod pursuit;
pub mod record;
mod spread;
mod step;
#[cfg(test)]
mod testing;
pub mod train;
mod update;
mod weights;
pub mod yardstick;

pub use config::{
    DeadAtoms, Diversity, GradientPath, Optimiser, Pursuit, Reduction, Schedule, Selection, Start, TrainConfig, Trainer,
};
pub use device::{resolve_device, set_threads, threads};
pub use error::NeuralDictError;
pub use merge::LayerGroups;
pub use record::{EpochRecord, Progress, Trained};
pub use train::{Inputs, train_group, train_group_from, training_vectors};
