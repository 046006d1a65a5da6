//! The configuration of a trainer: a profile's parameters, and options by name.

use anyhow::{Result, bail};
use kvcsr_codec::Kind;
use kvcsr_neuraldict::{DeadAtoms, GradientPath, Pursuit, Start, TrainConfig, Trainer};

use crate::config::sections::train::Weighting;
use crate::stage::Run;

/// A variant of training: how one kind's dictionaries are trained.
#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    pub config: TrainConfig,
    /// Whether vectors count by the attention they get.
    pub weighted: bool,
}

/// A name and what it changes.
type Choice = (&'static str, fn(&mut Variant));

/// The options that can be given by name, alone or joined by `+`.
const OPTIONS: [Choice; 10] = [
    ("neuraldict", |_| {}),
    ("kmeans", |r| r.config.epochs = 0),
    ("sample", |r| (r.config.start, r.config.epochs) = (Start::Sample, 0)),
    ("gradient=atoms", |r| r.config.gradient = GradientPath::Atoms),
    ("mod", |r| r.config.trainer = Trainer::Mod),
    ("omp", |r| r.config.pursuit = Pursuit::Omp),
    ("replace", |r| r.config.dead_atoms = DeadAtoms::Replace),
    ("curriculum", |r| r.config.curriculum = 0.5),
    ("attention", |r| r.weighted = true),
    ("lexico", |r| r.config = r.config.clone().lexico()),
];

impl Variant {
    /// What `[train]` of the run's profile says.
    pub fn of(run: &Run, kind: Kind) -> Self {
        let settings = &run.config.train;
        let config = settings.of(kind, run.config.seed, &run.config.device);
        Self { config, weighted: settings.weighting == Weighting::Attention }
    }

    /// The same sizes, data and seed, trained as the paper does.
    pub fn of_the_paper(self) -> Self {
        let TrainConfig {
            gradient, trainer, pursuit, start, diversity, tangent, dead_atoms, curriculum, patience, ..
        } = TrainConfig::default();
        let config = TrainConfig {
            gradient,
            trainer,
            pursuit,
            start,
            diversity,
            tangent,
            dead_atoms,
            curriculum,
            patience,
            ..self.config
        };
        Self { config, weighted: false }
    }

    /// Applies options by name, such as `mod+omp`. `parameter` is the parameter that gives them, for errors.
    pub fn with(mut self, options: &str, parameter: &str) -> Result<Self> {
        for word in options.split('+') {
            match OPTIONS.iter().find(|(name, _)| *name == word) {
                Some((_, apply)) => apply(&mut self),
                None => {
                    let known: Vec<&str> = OPTIONS.iter().map(|(name, _)| *name).collect();
                    bail!("{parameter}: `{word}` is unknown; known, joined by +: {}", known.join(", "))
                }
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn options_join_and_an_unknown_one_is_named() {
        let plain = Variant { config: TrainConfig::default(), weighted: false };
        assert_eq!(plain.clone().with("neuraldict", "x").unwrap(), plain);
        let all = plain.clone().with("mod+omp+replace+attention", "x").unwrap();
        let expected = TrainConfig {
            trainer: Trainer::Mod,
            pursuit: Pursuit::Omp,
            dead_atoms: DeadAtoms::Replace,
            ..TrainConfig::default()
        };
        assert_eq!((all.config.clone(), all.weighted), (expected, true));
        assert_eq!(all.of_the_paper(), plain);
        let error = plain.with("mod+best", "train_best.options").unwrap_err().to_string();
        assert!(error.contains("train_best.options: `best`") && error.contains("replace"), "{error}");
    }
}
