//! The options for the fields of [`TrainConfig`](super::TrainConfig).

use serde::{Deserialize, Serialize};

/// How the gradient of `L_MSE` reaches the atoms. Algorithm 1 does not specify this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GradientPath {
    /// Through every use of an atom: as a direction and inside its coefficient `c_g = <R_g, d_{i_g}>`.
    Coefficients,
    /// Through directions only. Coefficients are constants, as in classic dictionary learning.
    Atoms,
}

/// The implementation of matching pursuit in training. Both pick the same atoms, up to ties in the last bit.
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

/// How `L_MSE` combines the vectors of a batch. This matters for `beta`, which compares `L_MSE` with `L_div`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reduction {
    /// `sum_x ||x - x^||^2`, as the paper writes it.
    Sum,
    /// The mean over the batch's vectors. The influence of `L_div` then does not decrease with the batch size.
    Mean,
}

/// Update rule. Algorithm 1 says "update `W_D`".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimiser {
    /// Adam with the usual constants (0.9, 0.999, 1e-8).
    Adam,
}

/// How the learning rate changes over the steps of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// The same rate in every step.
    Constant,
    /// The rate falls from its full value to zero along half a cosine.
    Cosine,
}

/// How the atoms are updated from a batch and its codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trainer {
    /// Algorithm 1: a gradient step on `L_MSE + beta L_div`, then ReNorm.
    NeuralDict,
    /// Closed form, similar to MOD (Engan et al. 1999). The atoms are the least-squares solution for the codes of the vectors
    /// seen so far. Older vectors have less weight. See [`closed`](crate::closed).
    Mod,
    /// The settings of Lexico's public trainer. They replace the other choices: see
    /// [`TrainConfig::lexico`](super::TrainConfig::lexico).
    Lexico,
}

/// The algorithm that picks atoms in training. Held-out errors always use matching pursuit, as the cache does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pursuit {
    /// Matching pursuit, as the paper trains.
    Mp,
    /// Orthogonal matching pursuit: all coefficients are refitted after each pick. Runs in libtorch. At the least-squares
    /// solution, the loss does not depend on the coefficients to first order. The gradient therefore flows only through the
    /// atoms, whatever [`super::TrainConfig::gradient`] is.
    Omp,
}

/// The atoms before the first step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// Cluster centroids (Algorithm 1, step 3).
    KMeans,
    /// Training vectors drawn at random, scaled to unit length.
    Sample,
    /// Uniform random entries, scaled to unit length. This is Kaiming's initialisation after normalisation.
    Random,
}

/// Whether `L_div` is part of the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Diversity {
    /// With `beta = clamp(0.1 L_MSE / L_div, 0, 1)`.
    Adaptive,
    /// The loss has no `L_div`.
    Off,
}

/// What happens to atoms that were never picked in an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeadAtoms {
    /// Nothing, as in the paper.
    Keep,
    /// At the end of every epoch except the last, they are replaced by the vectors that the epoch fitted worst. Their
    /// optimiser state is reset.
    Replace,
}
