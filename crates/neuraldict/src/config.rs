//! The training parameters, their defaults and their limits.

use kvcsr_codec::GRAM_BUDGET;
use serde::{Deserialize, Serialize};

use crate::error::{NeuralDictError, Result};

mod choices;

pub use choices::{
    DeadAtoms, Diversity, GradientPath, Optimiser, Pursuit, Reduction, Schedule, Selection, Start, Trainer,
};

/// Bytes that libtorch and its allocator took in measurements besides the tensors, plus a margin.
const LIBRARY_BYTES: u64 = 192 << 20;

/// Parameters for the training of one dictionary (section 3 of the paper).
///
/// Unknown fields are errors. Missing fields take the defaults, which suit keys of a small model (`head_dim` 64) on a few
/// CPU cores. For values, use `chunks = 2` and half the sparsity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Offline size `N`: atoms of the dictionary, 1 to 65,536. Default 1024.
    pub atoms: usize,
    /// MP level `s` during training and in the reported errors. Default 8.
    pub sparsity: usize,
    /// Number of equal contiguous chunks per head vector, `s_n`. They share the dictionary. Default 1.
    pub chunks: usize,
    /// Passes `E` over the training vectors after k-means. With 0 the result is the k-means dictionary. Default 8.
    pub epochs: usize,
    /// Maximum number of vectors (chunks) per step. An epoch is split into batches of nearly equal size. Default 4096.
    pub batch: usize,
    /// Adam's step for one entry of an atom. Default 0.02. The entries of a unit atom are about `1/sqrt(width)`, so the
    /// default first turns an atom by up to ten degrees per step. On a middle layer, with the cosine schedule, the final
    /// errors of 0.01 to 0.04 are within 5 % of each other; 0.001 needs several times as many epochs.
    pub learning_rate: f64,
    /// Update rule. Default Adam.
    pub optimiser: Optimiser,
    /// Learning rate schedule of the run. Default cosine.
    pub schedule: Schedule,
    /// Fraction of all steps, in [0, 1), over which the rate rises linearly from zero. Default 0.
    pub warmup: f64,
    /// How `L_MSE` combines the vectors of a batch. Default sum, as the paper writes it.
    pub reduction: Reduction,
    /// Path of the gradient. Default: through the coefficients.
    pub gradient: GradientPath,
    /// Implementation of matching pursuit. Default auto.
    pub selection: Selection,
    /// Maximum number of Lloyd iterations of the k-means initialisation. Default 10.
    pub kmeans_iterations: usize,
    /// Maximum number of vectors for k-means, drawn with the seed. At least `atoms`. Default 65,536.
    pub kmeans_sample: usize,
    /// Seed of every random draw: k-means sample, k-means++ and order of the batches. Default 0.
    pub seed: u64,
    /// `auto` (CUDA if libtorch finds it), `cpu`, or `cuda:N`. Default auto.
    pub device: String,
    /// How atoms are updated. Default NeuralDict, the method of the paper. Other trainers are beyond the paper. So are all
    /// fields below, which are off by default.
    pub trainer: Trainer,
    /// Algorithm that picks atoms in training. Default matching pursuit.
    pub pursuit: Pursuit,
    /// Atoms before the first step. Default k-means.
    pub start: Start,
    /// Whether `L_div` is in the loss. Default adaptive.
    pub diversity: Diversity,
    /// Removes from the gradient its component along each atom, which ReNorm would undo. Default false.
    pub tangent: bool,
    /// What happens to atoms that are never picked. Default keep.
    pub dead_atoms: DeadAtoms,
    /// Fraction of all steps, in [0, 1), over which the training sparsity rises from 1 to `sparsity`. Default 0: the sparsity
    /// is always `sparsity`.
    pub curriculum: f64,
    /// Stops after this many epochs without a smaller held-out error, and returns the atoms of the best epoch. 0 runs all
    /// epochs and returns the last atoms. If the held-out vectors choose the epoch, the error reported on them is too
    /// optimistic. Default 0.
    pub patience: usize,
    /// Maximum number of training vectors, drawn with the seed. 0 uses all. Default 0.
    pub vectors: usize,
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
            trainer: Trainer::NeuralDict,
            pursuit: Pursuit::Mp,
            start: Start::KMeans,
            diversity: Diversity::Adaptive,
            tangent: false,
            dead_atoms: DeadAtoms::Keep,
            curriculum: 0.0,
            patience: 0,
            vectors: 0,
        }
    }
}

impl TrainConfig {
    /// The settings of Lexico's public trainer (Kim et al., ICML 2025), with the size, data and seed of this configuration:
    /// random start, batches of 64, and atoms picked by OMP. The gradient is that of the mean error, reaches the atoms only
    /// and is tangent to them. Adam's rate falls from 1e-4 along a cosine for 20 epochs.
    ///
    /// There is one difference to the original. Atoms are scaled to unit length after each step, not before the next one.
    /// Atoms then have unit length after the last step too.
    #[must_use]
    pub fn lexico(self) -> Self {
        Self {
            trainer: Trainer::NeuralDict,
            epochs: 20,
            batch: 64,
            learning_rate: 1e-4,
            schedule: Schedule::Cosine,
            warmup: 0.0,
            reduction: Reduction::Mean,
            gradient: GradientPath::Atoms,
            pursuit: Pursuit::Omp,
            start: Start::Random,
            diversity: Diversity::Off,
            tangent: true,
            dead_atoms: DeadAtoms::Keep,
            curriculum: 0.0,
            ..self
        }
    }

    /// The configuration that training uses. If the trainer implies other settings, these settings replace the fields.
    #[must_use]
    pub fn resolved(self) -> Self {
        match self.trainer {
            Trainer::Lexico => self.lexico(),
            Trainer::NeuralDict | Trainer::Mod => self,
        }
    }

    /// Training sparsity in step `step` (from 0) of `steps`. It rises from 1 to `sparsity` in equal parts over the curriculum.
    /// After the curriculum it is `sparsity`.
    #[must_use]
    pub fn sparsity_at(&self, step: usize, steps: usize) -> usize {
        let rising = self.curriculum * steps as f64;
        if step as f64 >= rising {
            return self.sparsity;
        }
        (1 + (step as f64 / rising * self.sparsity as f64) as usize).min(self.sparsity)
    }

    /// Upper bound of the bytes that training holds for `vectors` vectors of `width` channels. Mapped shards are not included,
    /// because the system may remove them from memory at any time.
    #[must_use]
    pub fn memory_bytes(&self, vectors: usize, width: usize) -> u64 {
        let (n, d, b) = (self.atoms as u64, width as u64, self.batch as u64);
        let kmeans = self.kmeans_sample as u64 * d * 4 * 4;
        let order = vectors as u64 * 4 * 2;
        let dictionary = n * d * 4 * 12;
        let gram = (n * n * 4).min(GRAM_BUDGET as u64);
        let correlations = match self.pursuit {
            Pursuit::Mp => 0,
            Pursuit::Omp => b * n * 4 * 3,
        };
        let closed = match self.trainer {
            Trainer::NeuralDict | Trainer::Lexico => 0,
            Trainer::Mod => n * n * 4 * 6,
        };
        let batch = b * d * 4 * (8 + 4 * self.sparsity as u64);
        kmeans.max(batch + gram + correlations + closed) + order + dictionary + LIBRARY_BYTES
    }

    /// The same bound for `groups` groups that are trained in parallel. It counts libtorch only once.
    #[must_use]
    pub fn memory_bytes_of(groups: usize, of_one: u64) -> u64 {
        groups as u64 * of_one.saturating_sub(LIBRARY_BYTES) + LIBRARY_BYTES
    }

    /// Checks every field on its own. Training checks whether the device exists and whether there is enough data.
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
        for (field, share) in [("warmup", self.warmup), ("curriculum", self.curriculum)] {
            if !(0.0..1.0).contains(&share) {
                return bad(field, format!("{share} is not in [0, 1)"));
            }
        }
        if (1..self.atoms).contains(&self.vectors) {
            return bad("vectors", format!("{} is less than train.atoms = {}", self.vectors, self.atoms));
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
        let break_it: [(&str, Change); 11] = [
            ("atoms", |c| c.atoms = 0),
            ("atoms", |c| c.atoms = 65_537),
            ("sparsity", |c| c.sparsity = 0),
            ("chunks", |c| c.chunks = 0),
            ("batch", |c| c.batch = 0),
            ("kmeans_iterations", |c| c.kmeans_iterations = 0),
            ("kmeans_sample", |c| c.kmeans_sample = 10),
            ("learning_rate", |c| c.learning_rate = f64::NAN),
            ("warmup", |c| c.warmup = 1.0),
            ("curriculum", |c| c.curriculum = -0.1),
            ("vectors", |c| c.vectors = 10),
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

    #[test]
    fn the_curriculum_rises_in_equal_parts_and_ends_at_the_sparsity() {
        let config = TrainConfig { sparsity: 4, curriculum: 0.5, ..TrainConfig::default() };
        let levels: Vec<usize> = (0..16).map(|step| config.sparsity_at(step, 16)).collect();
        assert_eq!(levels, [1, 1, 2, 2, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4]);
        assert!((0..16).all(|step| TrainConfig::default().sparsity_at(step, 16) == 8));
    }

    #[test]
    fn the_peers_settings_keep_size_data_and_seed() {
        let config =
            TrainConfig { atoms: 300, sparsity: 5, seed: 9, chunks: 2, vectors: 900, ..TrainConfig::default() };
        let peer = config.lexico();
        peer.validate().unwrap();
        assert_eq!((peer.atoms, peer.sparsity, peer.seed, peer.chunks, peer.vectors), (300, 5, 9, 2, 900));
        assert_eq!((peer.epochs, peer.batch, peer.learning_rate), (20, 64, 1e-4));
        assert_eq!((peer.pursuit, peer.start, peer.diversity), (Pursuit::Omp, Start::Random, Diversity::Off));
    }
}
