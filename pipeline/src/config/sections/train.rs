//! The section `[train]`.

use anyhow::{Result, bail};
use kvcsr_codec::Kind;
use kvcsr_neuraldict::TrainConfig;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::config::check;

/// The section `[train]`: the trainer's own configuration, and what the stage adds to it. `profiles/defaults.toml` explains
/// every parameter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// `sparsity` is the level that a vector's chunks share. Chunks, seed and device come from elsewhere: [`Settings::of`].
    #[serde(flatten, serialize_with = "own_parameters")]
    pub trainer: TrainConfig,
    /// Seed of training alone: texts and documents do not depend on it. 0: the run's seed.
    pub seed: u64,
    pub key_chunks: usize,
    pub value_chunks: usize,
    pub weighting: Weighting,
    pub checkpoint_seconds: f64,
    pub memory_gb: f64,
}

/// How much each vector counts in the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weighting {
    /// All vectors count equally, as in the paper.
    None,
    /// A vector counts by the attention that it gets, as calibrate recorded it.
    Attention,
}

/// The trainer's parameters without chunks, seed and device: keys and values have different numbers of chunks, the seed may be the
/// run's, and the device is the run's.
fn own_parameters<S: Serializer>(config: &TrainConfig, serializer: S) -> Result<S::Ok, S::Error> {
    let mut parameters: Map<String, Value> =
        serde_json::to_value(config).and_then(serde_json::from_value).map_err(serde::ser::Error::custom)?;
    for name in ["chunks", "seed", "device"] {
        parameters.remove(name);
    }
    parameters.serialize(serializer)
}

impl Settings {
    /// Chunks of one kind's vectors.
    pub fn chunks(&self, kind: Kind) -> usize {
        match kind {
            Kind::Key => self.key_chunks,
            Kind::Value => self.value_chunks,
        }
    }

    /// The seed of training in a run of this seed.
    pub fn seed_in(&self, run_seed: u64) -> u64 {
        if self.seed == 0 { run_seed } else { self.seed }
    }

    /// The trainer's configuration for one kind in a run with this seed. The chunks share the level evenly.
    pub fn of(&self, kind: Kind, run_seed: u64, device: &str) -> TrainConfig {
        let chunks = self.chunks(kind);
        let seed = self.seed_in(run_seed);
        let trainer = self.trainer.clone();
        TrainConfig { sparsity: trainer.sparsity / chunks, chunks, seed, device: device.to_owned(), ..trainer }
            .resolved()
    }

    /// Checks what can be checked before training.
    pub fn check(&self) -> Result<()> {
        let TrainConfig { atoms, sparsity, batch, .. } = self.trainer;
        let (key_chunks, value_chunks) = (self.key_chunks, self.value_chunks);
        check::positive(
            "train",
            &[
                ("atoms", atoms),
                ("sparsity", sparsity),
                ("key_chunks", key_chunks),
                ("value_chunks", value_chunks),
                ("batch", batch),
            ],
        )?;
        for (name, chunks) in [("train.key_chunks", key_chunks), ("train.value_chunks", value_chunks)] {
            if !sparsity.is_multiple_of(chunks) {
                bail!("train.sparsity = {sparsity} cannot be shared evenly by {name} = {chunks}");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::defaults;

    #[test]
    fn the_defaults_are_the_trainers_own() {
        assert_eq!(defaults().train.trainer, TrainConfig::default());
    }

    #[test]
    fn a_seed_of_training_alone_takes_the_place_of_the_runs() {
        let mut settings = defaults().train;
        assert_eq!(settings.of(Kind::Key, 20, "cpu").seed, 20);
        settings.seed = 7;
        assert_eq!(settings.of(Kind::Key, 20, "cpu").seed, 7);
    }
}
