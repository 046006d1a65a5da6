//! train-best: the dictionaries of `train` learned with the options beyond the paper that win, as a set of their own for
//! `csr-S@best`. The paper's set stays as it is.

use std::path::Path;

use anyhow::{Result, ensure};
use kvcsr_codec::Kind;
use kvcsr_report::{EpochRow, files};
use serde_json::{Map, Value};

use crate::stage::{Run, Stage};
use crate::stages::train::{self, EPOCHS, Plan, Recipe};

/// See the module.
pub struct TrainBest;

impl Stage for TrainBest {
    fn name(&self) -> &'static str {
        "train-best"
    }

    fn version(&self) -> u32 {
        1
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        let mut parameters = train::parameters(run)?;
        parameters.extend(crate::stage::parameters_of(&run.config.train_best)?);
        Ok(parameters)
    }

    fn inputs(&self, run: &Run) -> Result<Map<String, Value>> {
        train::inputs(run)
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        let settings = &run.config.train_best;
        let recipe = |kind: Kind| -> Result<Recipe> {
            let mut recipe = Recipe::of(run, kind)?.with(options(run, kind), "train_best")?;
            recipe.config.epochs = settings.epochs;
            Ok(recipe)
        };
        let (keys, values) = (recipe(Kind::Key)?, recipe(Kind::Value)?);
        ensure!(
            !(keys.weighted || values.weighted) || run.config.calibrate.importance,
            "train_best: `attention` needs calibrate.importance = true, which records the weights"
        );
        let method = format!("NeuralDict beyond the paper: keys {}, values {}", settings.keys, settings.values);
        Plan { stage: self.name(), method, keys, values, keep_start: false }.make(run, dir)
    }

    fn summary(&self, run: &Run, dir: &Path) -> Result<Vec<String>> {
        let best: Vec<EpochRow> = files::read_jsonl(&dir.join(EPOCHS))?;
        let paper: Vec<EpochRow> = files::read_jsonl(&run.stage_dir("train").join(EPOCHS)).unwrap_or_default();
        let line = |kind: Kind| {
            let (before, after) = (last(&paper, kind), last(&best, kind));
            let mean = |rows: &[(&str, f64)]| rows.iter().map(|row| row.1).sum::<f64>() / rows.len().max(1) as f64;
            let lower =
                after.iter().filter(|row| before.iter().any(|other| other.0 == row.0 && row.1 < other.1)).count();
            format!(
                "{kind}s: held-out relative error {:.4} (NeuralDict) -> {:.4} ({}), mean of {} groups; lower in {lower}",
                mean(&before),
                mean(&after),
                options(run, kind),
                after.len()
            )
        };
        Ok(Kind::ALL.map(line).into())
    }
}

fn options(run: &Run, kind: Kind) -> &str {
    match kind {
        Kind::Key => &run.config.train_best.keys,
        Kind::Value => &run.config.train_best.values,
    }
}

/// Each group's error after its last epoch.
fn last(rows: &[EpochRow], kind: Kind) -> Vec<(&str, f64)> {
    let mut found: Vec<(&str, f64)> = Vec::new();
    for row in rows.iter().filter(|row| row.kind == kind) {
        match found.last_mut() {
            Some(group) if group.0 == row.group => group.1 = row.heldout_relative,
            _ => found.push((&row.group, row.heldout_relative)),
        }
    }
    found
}
