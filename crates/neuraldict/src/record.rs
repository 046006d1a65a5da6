//! Reports of a training run: progress during the run, one record per epoch, and the result.

use kvcsr_codec::Dictionary;
use serde::{Deserialize, Serialize};

/// Events of a run, in the order of time.
#[derive(Debug)]
pub enum Progress<'a> {
    /// An interrupted run continues from its checkpoint.
    Resumed {
        /// The group's name.
        group: &'a str,
        /// The next epoch, from 1.
        epoch: usize,
        /// The next batch in that epoch, from 0.
        batch: usize,
    },
    /// One assignment of k-means.
    KMeans {
        /// The group's name.
        group: &'a str,
        /// From 0.
        iteration: usize,
        /// Maximum number of iterations.
        iterations: usize,
        /// Sum of squared distances to the centroids.
        inertia: f64,
    },
    /// One step of the optimiser.
    Batch {
        /// The group's name.
        group: &'a str,
        /// From 1.
        epoch: usize,
        /// From 0.
        batch: usize,
        /// Batches in an epoch.
        batches: usize,
        /// Mean squared error per vector of this batch, before the step.
        mse: f64,
    },
    /// An epoch has ended and was evaluated. Epoch 0 is the initialisation.
    Epoch {
        /// The group's name.
        group: &'a str,
        /// Its record.
        record: &'a EpochRecord,
    },
}

/// Measurements of one epoch. "Per vector" means per chunk of a head vector. Errors are squared l2 norms.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochRecord {
    /// 0 for the initialisation, then from 1.
    pub epoch: usize,
    /// Mean of `||x - x^||^2` over the training vectors. Each vector is measured just before the step of its batch, with
    /// unrounded coefficients. In epoch 0 it is measured over a seeded sample of the vectors, with coefficients rounded to f16.
    pub mse: f64,
    /// `L_div` of the dictionary at the end of the epoch.
    pub diversity: f64,
    /// Mean of `beta` over the epoch's batches. 0 in epoch 0.
    pub beta: f64,
    /// `sum ||x - x^||^2 / sum ||x||^2` over the vectors that `mse` was measured on.
    pub train_relative: f64,
    /// The same over the held-out vectors, with the dictionary at the end of the epoch and coefficients rounded to f16.
    pub heldout_relative: f64,
    /// Mean of `||x - x^||^2` over the held-out vectors, measured in the same way.
    pub heldout_mse: f64,
    /// Number of atoms that no vector behind `mse` picked.
    pub dead_atoms: usize,
    /// Entropy of the picks over the atoms, in bits. It is `log2 N` if all atoms are used equally often.
    pub usage_entropy: f64,
    /// Number of dead atoms that were replaced at the end of the epoch.
    #[serde(default)]
    pub replaced_atoms: usize,
    /// Learning rate of the epoch's last step. 0 in epoch 0.
    pub learning_rate: f64,
    /// Wall time in seconds, including evaluation.
    pub seconds: f64,
}

/// A trained group.
#[derive(Debug, Clone)]
pub struct Trained {
    /// The initialisation: centroids after ReNorm, or the other start given by [`TrainConfig::start`](crate::TrainConfig::start).
    pub kmeans: Dictionary,
    /// The dictionary after the last epoch, or after the best epoch if
    /// [`TrainConfig::patience`](crate::TrainConfig::patience) is set.
    pub dictionary: Dictionary,
    /// One record per epoch, starting with epoch 0.
    pub epochs: Vec<EpochRecord>,
    /// Held-out relative squared error of `kmeans`.
    pub kmeans_heldout_relative: f64,
    /// Held-out relative squared error of `dictionary`.
    pub heldout_relative: f64,
    /// The epoch with the smallest relative error on held-out vectors. Its dictionary is kept only with
    /// [`TrainConfig::patience`](crate::TrainConfig::patience), because Algorithm 1 has no early stopping.
    pub best_epoch: usize,
    /// Relative error on held-out vectors, with the squared error and the squared norm of each vector weighted. Only if weights
    /// were given.
    pub heldout_weighted: Option<f64>,
}

/// How often each atom was picked with a nonzero coefficient.
#[derive(Debug, Clone)]
pub(crate) struct Usage(pub(crate) Vec<u64>);

impl Usage {
    pub(crate) fn new(atoms: usize) -> Self {
        Self(vec![0; atoms])
    }

    pub(crate) fn count(&mut self, indices: &[u16], coefficients: &[f32]) {
        for (&index, &coefficient) in indices.iter().zip(coefficients) {
            if coefficient != 0.0 {
                self.0[usize::from(index)] += 1;
            }
        }
    }

    /// Numbers of the atoms that were never picked.
    pub(crate) fn unused(&self) -> Vec<usize> {
        self.0.iter().enumerate().filter(|&(_, &count)| count == 0).map(|(atom, _)| atom).collect()
    }

    pub(crate) fn dead(&self) -> usize {
        self.0.iter().filter(|&&count| count == 0).count()
    }

    /// The entropy in bits, or 0 if nothing was counted.
    pub(crate) fn entropy(&self) -> f64 {
        let total = self.0.iter().sum::<u64>() as f64;
        self.0
            .iter()
            .filter(|&&count| count > 0)
            .map(|&count| {
                let share = count as f64 / total;
                -share * share.log2()
            })
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_counts_picks_but_not_zero_coefficients() {
        let mut usage = Usage::new(4);
        assert_eq!((usage.dead(), usage.entropy()), (4, 0.0));
        usage.count(&[0, 1, 3, 0], &[1.0, -2.0, 0.0, 0.5]);
        usage.count(&[1, 0], &[1.0, 0.0]);
        assert_eq!(usage.dead(), 2);
        assert!((usage.entropy() - 1.0).abs() < 1e-12);
    }
}
