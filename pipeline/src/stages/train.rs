//! train: one NeuralDict per layer group and kind (Algorithm 1, steps 2 to 4).

mod groups;
mod recipe;

use std::path::Path;

use anyhow::Result;
use kvcsr_codec::Kind;
use kvcsr_report::{EpochRow, files};
use serde_json::{Map, Value};

pub use self::groups::{GroupShards, Plan};
pub use self::recipe::Recipe;
use crate::stage::{Run, Stage, parameters_of};

/// File of the trained dictionaries.
pub const DICTIONARIES: &str = "dictionaries.safetensors";
/// File of the k-means centroids they started from: the ablation.
pub const KMEANS: &str = "kmeans.safetensors";
/// File of the loss curves, one JSON object per group and epoch.
pub const EPOCHS: &str = "epochs.jsonl";

/// See the module.
pub struct Train;

impl Stage for Train {
    fn name(&self) -> &'static str {
        "train"
    }

    fn version(&self) -> u32 {
        2
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        parameters(run)
    }

    fn inputs(&self, run: &Run) -> Result<Map<String, Value>> {
        inputs(run)
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        let plan = Plan {
            stage: self.name(),
            method: "NeuralDict, Algorithm 1".to_owned(),
            keys: Recipe::of(run, Kind::Key)?,
            values: Recipe::of(run, Kind::Value)?,
            keep_start: true,
        };
        plan.make(run, dir)
    }

    fn summary(&self, _run: &Run, dir: &Path) -> Result<Vec<String>> {
        let rows: Vec<EpochRow> = files::read_jsonl(&dir.join(EPOCHS))?;
        let mut lines = Vec::new();
        for kind in Kind::ALL {
            let of = |first: bool| {
                let mut errors = Vec::new();
                let last = rows.iter().map(|r| r.epoch).max().unwrap_or(0);
                for row in rows.iter().filter(|r| r.kind == kind) {
                    if row.epoch == if first { 0 } else { last } {
                        errors.push(row.heldout_relative);
                    }
                }
                errors
            };
            let (before, after) = (of(true), of(false));
            let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len().max(1) as f64;
            let better = before.iter().zip(&after).filter(|(b, a)| a < b).count();
            lines.push(format!(
                "{kind}s: held-out relative error {:.4} (k-means) -> {:.4} (NeuralDict), mean of {} groups; lower in {better}",
                mean(&before),
                mean(&after),
                after.len()
            ));
        }
        Ok(lines)
    }
}

/// What the result of training depends on.
pub fn parameters(run: &Run) -> Result<Map<String, Value>> {
    let mut parameters = parameters_of(&run.config.train)?;
    // How often and how many at once: no part of the result.
    parameters.remove("checkpoint_seconds");
    parameters.remove("memory_gb");
    parameters.insert("seed".into(), run.config.seed.into());
    parameters.insert("device".into(), run.config.device.clone().into());
    Ok(parameters)
}

/// The vectors and their groups.
pub fn inputs(run: &Run) -> Result<Map<String, Value>> {
    let mut inputs = Map::new();
    inputs.insert("calibrate".into(), run.finished("calibrate")?.digest.into());
    inputs.insert("merge".into(), run.finished("merge")?.digest.into());
    Ok(inputs)
}
