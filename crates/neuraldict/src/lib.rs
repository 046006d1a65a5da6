//! NeuralDict: learning CSR's offline dictionaries with libtorch.
//!
//! CSR (Zhang et al., AAAI 2025, arXiv 2412.11741) stores a key or value vector as a few atoms of a
//! dictionary. This crate learns the dictionary from calibration vectors by the paper's Algorithm
//! 1: k-means centroids as a start, then gradient descent on what matching pursuit leaves over. It
//! is the only crate of the workspace that links libtorch; everything it gives back is plain data
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
//! Beyond the paper, each a field of [`TrainConfig`] and off by default: closed-form updates
//! ([`closed`]), orthogonal matching pursuit ([`pursuit::orthogonal_codes`]), other starts, dead
//! atoms that move, a curriculum over `s`, early stopping, and weights ([`Inputs::weights`]).
//! [`TrainConfig::lexico`] gives the settings of a public trainer, to compare with. [`train_group_from`]
//! keeps checkpoints.
//!
//! Symbols: `N` atoms, `D` channels of a (chunk of a) head vector, `S` sparsity (the paper's `s`,
//! "MP level"), `B` vectors in a batch, `M` vectors in the k-means sample. Atoms are rows, `(N,
//! D)`; the paper's `W_D` is the transpose.
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
