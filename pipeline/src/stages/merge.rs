//! merge: measures how alike the layers' spaces are, and finds which layers share a dictionary (Algorithm 1, step 2).

use std::path::Path;

use anyhow::Result;
use kvcsr_codec::Kind;
use kvcsr_neuraldict::LayerGroups;
use kvcsr_neuraldict::divergence::{LayerSample, divergence_matrix, noise_floor};
use kvcsr_report::{DivergenceRow, files};
use serde_json::{Map, Value};

use crate::atomic;
use crate::config::sections::{self, Target};
use crate::config::{Config, check};
use crate::stage::{Declaration, Need, Output, Run, Stage, parameters_of};
use crate::stages::inputs::{layers, open_shard};
use crate::text::Side;
use crate::ui;

/// File of the groups: for keys and for values a list of lists of layers.
pub const GROUPS: &str = "groups.json";
/// File of the divergences, one JSON object per kind and pair of layers; for a layer with itself, the divergence of its two halves.
pub const DIVERGENCE: &str = "divergence.jsonl";

/// See the module.
pub struct Merge;

static DECLARATION: Declaration = Declaration {
    name: "merge",
    about: "Measure how alike the layers are, and group those that share a dictionary",
    version: 2,
    needs: &[Need::Stage("calibrate")],
    makes: &[Output::rows(GROUPS), Output::rows(DIVERGENCE)],
    ..Declaration::EMPTY
};

impl Stage for Merge {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn check(&self, config: &Config) -> Result<()> {
        check::positive("merge", &[("sample", config.merge.sample), ("bins", config.merge.bins)])
    }

    fn plan(&self, _run: &Run) -> String {
        "divergence between layers, and groups of layers that share a dictionary".to_owned()
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        let mut parameters = parameters_of(&run.config.merge)?;
        parameters.insert("seed".into(), run.config.seed.into());
        Ok(parameters)
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        kvcsr_neuraldict::set_threads(1);
        let settings = &run.config.merge;
        let layers = layers(run)?;
        let bar = ui::bar("merge", 2 * layers as u64, "layers");
        let mut rows = Vec::new();
        let mut groups = Vec::new();
        for kind in Kind::ALL {
            bar.set_message(format!("{kind}s"));
            let mut samples = Vec::with_capacity(layers);
            for layer in 0..layers {
                let shard = open_shard(run, Side::Calibration, layer, kind)?;
                samples.push(LayerSample::draw(&shard, settings.sample, run.config.seed)?);
                bar.inc(1);
            }
            let matrix = divergence_matrix(&samples, settings.bins)?;
            let floors = samples.iter().map(|s| noise_floor(s, settings.bins)).collect::<Result<Vec<f64>, _>>()?;
            let (least, most) = floors.iter().fold((f64::MAX, 0f64), |(least, most), &f| (least.min(f), most.max(f)));
            ui::line(
                "merge",
                &format!(
                    "{kind}s: two halves of one layer differ by {least:.3} to {most:.3} nats; a threshold below that is only noise"
                ),
            );
            let found = grouped(settings, kind, &matrix, layers);
            for a in 0..layers {
                let group = found.iter().position(|g| g.contains(&a)).unwrap_or(a);
                rows.extend((0..layers).map(|b| {
                    let divergence = if a == b { floors[a] } else { matrix[a * layers + b] };
                    DivergenceRow { kind, layer: a, other: b, group, divergence }
                }));
            }
            groups.push(found);
        }
        bar.finish();
        let values = groups.pop().unwrap_or_default();
        let groups = LayerGroups::new(groups.pop().unwrap_or_default(), values)?;
        files::write_jsonl(&dir.join(DIVERGENCE), &rows)?;
        atomic::write_json(&dir.join(GROUPS), &groups)
    }

    fn summary(&self, _run: &Run, dir: &Path) -> Result<Vec<String>> {
        let groups = read(dir)?;
        let count = |kind| groups.of(kind).len();
        Ok(vec![format!(
            "{} layers in {} groups of keys and {} of values",
            groups.layers(),
            count(Kind::Key),
            count(Kind::Value)
        )])
    }
}

/// The partition of one kind: for a target number of groups if one is given, else by thresholds.
fn grouped(settings: &sections::Merge, kind: Kind, matrix: &[f64], layers: usize) -> Vec<Vec<usize>> {
    let (target, delta_1, delta_2) = match kind {
        Kind::Key => (settings.key_groups, settings.key_delta_1, settings.key_delta_2),
        Kind::Value => (settings.value_groups, settings.value_delta_1, settings.value_delta_2),
    };
    if target > 0 {
        let (found, threshold) = for_target(matrix, layers, target, settings.target);
        ui::line("merge", &format!("{kind}s: {} groups at {threshold}", found.len()));
        return found;
    }
    LayerGroups::greedy(matrix, layers, delta_1, delta_2)
}

/// At most `groups` groups, and the threshold that gives them, in words.
pub fn for_target(matrix: &[f64], layers: usize, groups: usize, by: Target) -> (Vec<Vec<usize>>, String) {
    match by {
        Target::Delta1 => {
            let delta = LayerGroups::threshold_for(matrix, layers, groups);
            (LayerGroups::greedy(matrix, layers, delta, f64::INFINITY), format!("delta_1 = {delta:.4}"))
        }
        Target::Delta2 => {
            let delta = LayerGroups::sum_threshold_for(matrix, layers, groups);
            (LayerGroups::greedy(matrix, layers, f64::INFINITY, delta), format!("delta_2 = {delta:.4}"))
        }
    }
}

/// The groups of a finished stage.
pub fn read(dir: &Path) -> Result<LayerGroups> {
    atomic::read_json(&dir.join(GROUPS))
}
