//! What a training run reports: progress while it runs, one record per epoch, and the result.

use kvcsr_codec::Dictionary;
use serde::{Deserialize, Serialize};

/// Events of a run, in order of time.
#[derive(Debug)]
pub enum Progress<'a> {
    /// An interrupted run goes on from its checkpoint.
    Resumed {
        /// The group's name.
        group: &'a str,
        /// The epoch, from 1, and the batch in it, from 0, that come next.
        epoch: usize,
        /// See `epoch`.
        batch: usize,
    },
    /// One assignment of k-means.
    KMeans {
        /// The group's name.
        group: &'a str,
        /// From 0.
        iteration: usize,
        /// Most iterations there will be.
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
    /// An epoch has ended and been evaluated; epoch 0 is the k-means initialisation.
    Epoch {
        /// The group's name.
        group: &'a str,
        /// Its record.
        record: &'a EpochRecord,
    },
}

/// Measurements of one epoch. "Per vector" counts chunks of the head vector; errors are squared l2
/// norms.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochRecord {
    /// 0 for the k-means initialisation, then from 1.
    pub epoch: usize,
    /// Mean over the training vectors of `||x - x^||^2`, each measured just before its batch's
    /// step, with unrounded coefficients. Epoch 0: over a seeded sample of them.
    pub mse: f64,
    /// `L_div` of the dictionary at the end of the epoch.
    pub diversity: f64,
    /// Mean of `beta` over the epoch's batches; 0 in epoch 0.
    pub beta: f64,
    /// `sum ||x - x^||^2 / sum ||x||^2` over the vectors behind `mse`.
    pub train_relative: f64,
    /// The same over the held-out vectors, with the dictionary at the end of the epoch and
    /// coefficients rounded to f16.
    pub heldout_relative: f64,
    /// Mean over the held-out vectors of `||x - x^||^2`, likewise.
    pub heldout_mse: f64,
    /// Atoms that no vector behind `mse` picked.
    pub dead_atoms: usize,
    /// Entropy of the picks over the atoms, in bits: `log2 N` if all are used alike.
    pub usage_entropy: f64,
    /// Dead atoms that were moved at the end of the epoch.
    #[serde(default)]
    pub replaced_atoms: usize,
    /// Learning rate of the epoch's last step; 0 in epoch 0.
    pub learning_rate: f64,
    /// Wall time in seconds, evaluation included.
    pub seconds: f64,
}

/// A trained group.
#[derive(Debug, Clone)]
pub struct Trained {
    /// The initialisation: centroids after ReNorm (or what [`TrainConfig::start`](crate::TrainConfig::start) says).
    pub kmeans: Dictionary,
    /// The dictionary after the last epoch; with
    /// [`TrainConfig::patience`](crate::TrainConfig::patience), after the best one.
    pub dictionary: Dictionary,
    /// One record per epoch, beginning with epoch 0.
    pub epochs: Vec<EpochRecord>,
    /// Held-out relative squared error of `kmeans`.
    pub kmeans_heldout_relative: f64,
    /// Held-out relative squared error of `dictionary`.
    pub heldout_relative: f64,
    /// Epoch with the least held-out relative error. Its dictionary is only kept with
    /// [`TrainConfig::patience`](crate::TrainConfig::patience): Algorithm 1 has no early stopping.
    pub best_epoch: usize,
    /// Held-out relative error with each vector's squared error and norm weighted, where weights
    /// were given.
    pub heldout_weighted: Option<f64>,
}

/// How often each atom was picked with a coefficient other than zero.
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

    /// Numbers of the atoms never picked.
    pub(crate) fn unused(&self) -> Vec<usize> {
        self.0.iter().enumerate().filter(|&(_, &count)| count == 0).map(|(atom, _)| atom).collect()
    }

    pub(crate) fn dead(&self) -> usize {
        self.0.iter().filter(|&&count| count == 0).count()
    }

    /// In bits; 0 if nothing was counted.
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
