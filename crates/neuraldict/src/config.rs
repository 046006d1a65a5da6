//! The training parameters, their defaults and their limits.

use serde::{Deserialize, Serialize};

use crate::error::{NeuralDictError, Result};

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

/// Parameters of one dictionary's training (section 3 of the paper).
///
/// Unknown fields are errors; missing fields take the defaults, which suit keys of a small model
/// (`head_dim` 64) on a few CPU cores. Values use `chunks = 2` and half the sparsity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Offline size `N`: atoms of the dictionary, 1 to 65,536. Default 1024.
    pub atoms: usize,
    /// MP level `s` while training and in the reported errors. Default 8.
    pub sparsity: usize,
    /// Equal contiguous chunks per head vector, `s_n`; they share the dictionary. Default 1.
    pub chunks: usize,
    /// Passes `E` over the training vectors after k-means; 0 keeps the k-means dictionary.
    /// Default 8.
    pub epochs: usize,
    /// Vectors (chunks) per step; an epoch is cut into batches of nearly equal size, at most this.
    /// Default 4096.
    pub batch: usize,
    /// Adam's step for one entry of an atom; entries of a unit atom are about `1/sqrt(width)`, so
    /// the default of 0.02 first turns an atom by up to ten degrees a step. On a middle layer, with
    /// the cosine, 0.01 to 0.04 end within 5 % of each other; 0.001 needs several times the epochs.
    pub learning_rate: f64,
    /// Update rule. Default Adam.
    pub optimiser: Optimiser,
    /// Learning rate over the run. Default cosine.
    pub schedule: Schedule,
    /// Share of all steps, in [0, 1), over which the rate rises linearly from zero. Default 0.
    pub warmup: f64,
    /// Gathering of `L_MSE` over a batch. Default sum, as the paper writes it.
    pub reduction: Reduction,
    /// Path of the gradient. Default through the coefficients.
    pub gradient: GradientPath,
    /// Who runs matching pursuit. Default auto.
    pub selection: Selection,
    /// Most Lloyd iterations of the k-means initialisation. Default 10.
    pub kmeans_iterations: usize,
    /// Most vectors k-means looks at, drawn with the seed; at least `atoms`. Default 65,536.
    pub kmeans_sample: usize,
    /// Seed of every random draw: k-means sample, k-means++, order of the batches. Default 0.
    pub seed: u64,
    /// `auto` (CUDA where libtorch finds it), `cpu`, or `cuda:N`. Default auto.
    pub device: String,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            atoms: 1024,
            sparsity: 8,
            chunks: 1,
            epochs: 8,
            batch: 4096,
            learning_rate: 0.02,
            optimiser: Optimiser::Adam,
            schedule: Schedule::Cosine,
            warmup: 0.0,
            reduction: Reduction::Sum,
            gradient: GradientPath::Coefficients,
            selection: Selection::Auto,
            kmeans_iterations: 10,
            kmeans_sample: 65_536,
            seed: 0,
            device: "auto".to_owned(),
        }
    }
}

impl TrainConfig {
    /// Checks every field on its own. Whether the device exists and the data suffices is found out
    /// by training.
    ///
    /// # Errors
    /// [`NeuralDictError::Config`] names the first field that is out of range.
    pub fn validate(&self) -> Result<()> {
        let bad = |field, reason: String| Err(NeuralDictError::Config { field, reason });
        if !(1..=65_536).contains(&self.atoms) {
            return bad("atoms", format!("{} is not in 1..=65536", self.atoms));
        }
        for (field, value) in [
            ("sparsity", self.sparsity),
            ("chunks", self.chunks),
            ("batch", self.batch),
            ("kmeans_iterations", self.kmeans_iterations),
        ] {
            if value == 0 {
                return bad(field, "must be at least 1".to_owned());
            }
        }
        if self.kmeans_sample < self.atoms {
            return bad("kmeans_sample", format!("{} is less than train.atoms = {}", self.kmeans_sample, self.atoms));
        }
        if !(self.learning_rate.is_finite() && self.learning_rate > 0.0) {
            return bad("learning_rate", format!("{} is not a positive number", self.learning_rate));
        }
        if !(0.0..1.0).contains(&self.warmup) {
            return bad("warmup", format!("{} is not in [0, 1)", self.warmup));
        }
        Ok(())
    }

    /// Learning rate of step `step` (from 0) of `steps`.
    #[must_use]
    pub fn learning_rate_at(&self, step: usize, steps: usize) -> f64 {
        let warmup = (self.warmup * steps as f64).round();
        let at = step as f64;
        if at < warmup {
            return self.learning_rate * (at + 1.0) / (warmup + 1.0);
        }
        match self.schedule {
            Schedule::Constant => self.learning_rate,
            Schedule::Cosine => {
                let progress = (at - warmup) / (steps as f64 - warmup).max(1.0);
                self.learning_rate * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn defaults_are_valid_and_round_trip() {
        let config = TrainConfig::default();
        config.validate().unwrap();
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<TrainConfig>(&json).unwrap(), config);
        assert_eq!(serde_json::from_str::<TrainConfig>("{}").unwrap(), config);
    }

    #[test]
    fn unknown_fields_are_errors() {
        let error = serde_json::from_str::<TrainConfig>(r#"{"atms": 4}"#).unwrap_err();
        assert!(error.to_string().contains("atms"), "{error}");
    }

    #[test]
    fn each_limit_names_its_field() {
        type Change = fn(&mut TrainConfig);
        let break_it: [(&str, Change); 9] = [
            ("atoms", |c| c.atoms = 0),
            ("atoms", |c| c.atoms = 65_537),
            ("sparsity", |c| c.sparsity = 0),
            ("chunks", |c| c.chunks = 0),
            ("batch", |c| c.batch = 0),
            ("kmeans_iterations", |c| c.kmeans_iterations = 0),
            ("kmeans_sample", |c| c.kmeans_sample = 10),
            ("learning_rate", |c| c.learning_rate = f64::NAN),
            ("warmup", |c| c.warmup = 1.0),
        ];
        for (field, change) in break_it {
            let mut config = TrainConfig::default();
            change(&mut config);
            let message = config.validate().unwrap_err().to_string();
            assert!(message.contains(&format!("train.{field}:")), "{message}");
        }
    }

    #[test]
    fn cosine_falls_from_the_full_rate_to_almost_zero() {
        let config = TrainConfig { learning_rate: 1.0, warmup: 0.1, ..TrainConfig::default() };
        let rates: Vec<f64> = (0..100).map(|step| config.learning_rate_at(step, 100)).collect();
        assert!(rates[0] > 0.0 && rates[..10].windows(2).all(|w| w[0] < w[1]));
        assert_eq!(rates[10], 1.0);
        assert!(rates[10..].windows(2).all(|w| w[0] > w[1]));
        assert!(rates[99] > 0.0 && rates[99] < 1e-3);
    }
}
