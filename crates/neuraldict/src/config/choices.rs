//! What the fields of [`TrainConfig`](super::TrainConfig) choose from.

use serde::{Deserialize, Serialize};

/// Through what the gradient of `L_MSE` reaches the atoms. Algorithm 1 is silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GradientPath {
    /// Through every occurrence of an atom: as a direction and inside its coefficient `c_g = <R_g,
    /// d_{i_g}>`.
    Coefficients,
    /// Through directions only: coefficients are constants, as in classic dictionary learning.
    Atoms,
}

/// Who runs matching pursuit while training. Both pick the same atoms up to ties in the last bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Selection {
    /// `Codec` on the CPU, `Torch` on CUDA.
    Auto,
    /// The codec's SIMD encoder on the CPU.
    Codec,
    /// Matrix products on the training device: [`select_atoms`](crate::pursuit::select_atoms).
    Torch,
}

/// How `L_MSE` gathers the vectors of a batch. It matters for `beta`, which compares `L_MSE` with
/// `L_div`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reduction {
    /// `sum_x ||x - x^||^2`, as the paper writes it.
    Sum,
    /// The mean over the batch's vectors: `L_div` then has a say that does not shrink with the
    /// batch size.
    Mean,
}

/// Update rule. Algorithm 1 says "update `W_D`".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimiser {
    /// Adam with the usual constants (0.9, 0.999, 1e-8).
    Adam,
}

/// Learning rate over the steps of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// The same at every step.
    Constant,
    /// From the full rate down to zero along half a cosine.
    Cosine,
}

/// How the atoms are updated from a batch and its codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trainer {
    /// Algorithm 1: a gradient step on `L_MSE + beta L_div`, then ReNorm.
    NeuralDict,
    /// Closed form, in the manner of MOD (Engan et al. 1999): the atoms that are the least-squares
    /// answer to the codes of the vectors seen so far, older ones counting less. See
    /// [`closed`](crate::closed).
    Mod,
    /// The settings of Lexico's public trainer, which replace the other choices: see
    /// [`TrainConfig::lexico`](super::TrainConfig::lexico).
    Lexico,
}

/// What picks atoms in training. Held-out errors always use matching pursuit, as the cache does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pursuit {
    /// Matching pursuit, as the paper trains.
    Mp,
    /// Orthogonal matching pursuit: coefficients are refitted after each pick. Runs in libtorch.
    /// At the least-squares coefficients the loss does not change with them to first order, so the
    /// gradient flows through atoms only, whatever [`super::TrainConfig::gradient`] says.
    Omp,
}

/// What the atoms are before the first step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// Cluster centroids (Algorithm 1, step 3).
    KMeans,
    /// Training vectors drawn at random, scaled to unit length.
    Sample,
    /// Uniform random entries scaled to unit length: Kaiming's initialisation after normalisation.
    Random,
}

/// Whether `L_div` is part of the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Diversity {
    /// With `beta = clamp(0.1 L_MSE / L_div, 0, 1)`.
    Adaptive,
    /// Left out.
    Off,
}

/// What happens to atoms that an epoch never picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeadAtoms {
    /// Nothing, as in the paper.
    Keep,
    /// At the end of every epoch but the last they become the vectors that the epoch fitted worst,
    /// and their optimiser state starts over.
    Replace,
}
