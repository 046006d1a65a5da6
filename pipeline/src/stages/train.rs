//! train: trains one NeuralDict per layer group and kind (Algorithm 1, steps 2 to 4).

mod groups;
mod variant;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use kvcsr_cache::registry;
use kvcsr_codec::Kind;
use kvcsr_neuraldict::TrainConfig;
use kvcsr_report::{EpochRow, files};
use serde_json::{Map, Value};

pub use self::groups::{DICTIONARIES, EPOCHS, GroupShards, KMEANS, Plan, gather, most_groups};
pub use self::variant::Variant;
use crate::config::Config;
use crate::config::sections::train::Weighting;
use crate::room::Room;
use crate::stage::{Declaration, Need, Output, Part, Run, Sliced, Stage, parameters_of};

/// See the module.
pub struct Train;

static DECLARATION: Declaration = Declaration {
    name: "train",
    about: "Learn one dictionary per layer group, for keys and for values",
    version: 2,
    needs: &[Need::Stage("calibrate"), Need::Stage("merge")],
    makes: &[
        Output::dictionaries(registry::DEFAULT_DICTIONARIES, DICTIONARIES),
        Output::dictionaries("kmeans", KMEANS),
        Output::rows(EPOCHS),
    ],
    sliced: Some(&Train),
    ..Declaration::EMPTY
};

impl Stage for Train {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn check(&self, config: &Config) -> Result<()> {
        config.train.check()?;
        if config.train.weighting == Weighting::Attention && !config.calibrate.importance {
            bail!("train.weighting = \"attention\" needs calibrate.importance = true, which records the weights");
        }
        Ok(())
    }

    fn plan(&self, run: &Run) -> String {
        let TrainConfig { atoms, epochs, .. } = run.config.train.trainer;
        format!("one dictionary of {atoms} atoms per group and kind, {epochs} epochs after k-means")
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        parameters(run)
    }

    fn needs_room(&self, run: &Run) -> Result<Room> {
        plan(run).needs_room(run)
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        plan(run).make(run, dir)
    }

    fn summary(&self, _run: &Run, dir: &Path) -> Result<Vec<String>> {
        let errors = errors(dir)?;
        let line = |kind: Kind| {
            let groups: Vec<&GroupErrors> = errors.iter().filter(|group| group.kind == kind).collect();
            let mean = |of: fn(&GroupErrors) -> f64| {
                groups.iter().map(|group| of(group)).sum::<f64>() / groups.len().max(1) as f64
            };
            format!(
                "{kind}s: held-out relative error {:.4} (k-means) -> {:.4} (NeuralDict), mean of {} groups; lower in {}",
                mean(|group| group.first),
                mean(|group| group.last),
                groups.len(),
                groups.iter().filter(|group| group.last < group.first).count()
            )
        };
        Ok(Kind::ALL.map(line).into())
    }
}

impl Sliced for Train {
    fn units(&self, run: &Run) -> Result<usize> {
        most_groups(run)
    }

    fn make_part(&self, run: &Run, part: Part, dir: &Path) -> Result<()> {
        plan(run).make_part(run, part, dir)
    }

    fn gather(&self, run: &Run, slices: &[PathBuf], dir: &Path) -> Result<()> {
        gather(run, slices, dir)
    }
}

fn plan(run: &Run) -> Plan {
    Plan {
        stage: DECLARATION.name,
        method: "NeuralDict, Algorithm 1".to_owned(),
        keys: Variant::of(run, Kind::Key),
        values: Variant::of(run, Kind::Value),
        keep_start: true,
    }
}

/// A group's held-out relative errors before training and after its last epoch.
pub struct GroupErrors {
    pub group: String,
    pub kind: Kind,
    pub layers: Vec<usize>,
    pub first: f64,
    pub last: f64,
}

/// The errors of every group of a finished stage. Its rows stand group by group.
pub fn errors(stage: &Path) -> Result<Vec<GroupErrors>> {
    let mut found: Vec<GroupErrors> = Vec::new();
    for EpochRow { group, kind, layers, heldout_relative: error, .. } in files::read_jsonl(&stage.join(EPOCHS))? {
        match found.last_mut() {
            Some(before) if before.group == group => before.last = error,
            _ => found.push(GroupErrors { group, kind, layers, first: error, last: error }),
        }
    }
    Ok(found)
}

/// The parameters that the result of training depends on.
pub fn parameters(run: &Run) -> Result<Map<String, Value>> {
    let mut parameters = parameters_of(&run.config.train)?;
    // How often checkpoints are written and how many groups train at once do not change the result.
    parameters.remove("checkpoint_seconds");
    parameters.remove("memory_gb");
    parameters.insert("seed".into(), run.config.train.seed_in(run.config.seed).into());
    parameters.insert("device".into(), run.config.device.clone().into());
    Ok(parameters)
}
