//! train-best: learns dictionaries with options beyond the paper. For each group, the new dictionary is kept if its held-out
//! error is lower than that of `train`; else `train`'s is taken. The result is a set of its own, for `csr-S@best`. The paper's
//! set does not change.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use kvcsr_cache::registry;
use kvcsr_codec::{DictionaryGroup, DictionarySet, Kind};
use serde_json::{Map, Value};

use crate::config::sections;
use crate::room::Room;
use crate::stage::{Declaration, Need, Output, Part, Run, Sliced, Stage, parameters_of};
use crate::stages::train::{self, DICTIONARIES, EPOCHS, GroupErrors, Plan, Variant, errors};

/// The entry of the set's provenance that says how many groups come from these options.
const CHOSEN: &str = "chosen";

/// See the module.
pub struct TrainBest;

static DECLARATION: Declaration = Declaration {
    name: "train-best",
    about: "Learn one dictionary per layer group with options beyond the paper, for csr-S@best",
    needs: &[Need::Stage("calibrate"), Need::Stage("merge"), Need::Stage("train")],
    makes: &[Output::dictionaries(registry::BEST_DICTIONARIES, DICTIONARIES), Output::rows(EPOCHS)],
    sliced: Some(&TrainBest),
    ..Declaration::EMPTY
};

impl Stage for TrainBest {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn plan(&self, run: &Run) -> String {
        let sections::TrainBest { keys, values, .. } = &run.config.train_best;
        format!("the same with options beyond the paper: keys {keys}, values {values}")
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        let mut parameters = train::parameters(run)?;
        parameters.extend(parameters_of(&run.config.train_best)?);
        Ok(parameters)
    }

    fn needs_room(&self, run: &Run) -> Result<Room> {
        plan(run)?.needs_room(run)
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        plan(run)?.make(run, dir)?;
        choose(&run.stage_dir("train"), dir)
    }

    fn summary(&self, run: &Run, dir: &Path) -> Result<Vec<String>> {
        let (tried, paper) = (errors(dir)?, errors(&run.stage_dir("train"))?);
        let line = |kind: Kind| {
            let pairs: Vec<(f64, f64)> = paper
                .iter()
                .filter(|group| group.kind == kind)
                .filter_map(|p| Some((p.last, tried.iter().find(|t| t.group == p.group)?.last)))
                .collect();
            let mean = |of: fn(&(f64, f64)) -> f64| pairs.iter().map(of).sum::<f64>() / pairs.len().max(1) as f64;
            format!(
                "{kind}s: held-out relative error {:.4} (NeuralDict), {:.4} ({}), {:.4} (the better of each group); {} of {} groups better",
                mean(|p| p.0),
                mean(|p| p.1),
                options(run, kind),
                mean(|p| p.0.min(p.1)),
                pairs.iter().filter(|(paper, tried)| tried < paper).count(),
                pairs.len()
            )
        };
        Ok(Kind::ALL.map(line).into())
    }
}

impl Sliced for TrainBest {
    fn units(&self, run: &Run) -> Result<usize> {
        train::most_groups(run)
    }

    fn make_part(&self, run: &Run, part: Part, dir: &Path) -> Result<()> {
        plan(run)?.make_part(run, part, dir)
    }

    fn gather(&self, run: &Run, slices: &[PathBuf], dir: &Path) -> Result<()> {
        train::gather(run, slices, dir)
    }
}

fn plan(run: &Run) -> Result<Plan> {
    let settings = &run.config.train_best;
    let variant = |kind: Kind| -> Result<Variant> {
        let mut variant = Variant::of(run, kind).with(options(run, kind), "train_best")?;
        variant.config.epochs = settings.epochs;
        Ok(variant)
    };
    let (keys, values) = (variant(Kind::Key)?, variant(Kind::Value)?);
    ensure!(
        !(keys.weighted || values.weighted) || run.config.calibrate.importance,
        "train_best: `attention` needs calibrate.importance = true, which records the weights"
    );
    let method = format!("Algorithm 1, or keys {} and values {} where better", settings.keys, settings.values);
    Ok(Plan { stage: DECLARATION.name, method, keys, values, keep_start: false })
}

fn options(run: &Run, kind: Kind) -> &str {
    match kind {
        Kind::Key => &run.config.train_best.keys,
        Kind::Value => &run.config.train_best.values,
    }
}

/// Replaces those groups of the set in `dir` whose held-out error is not lower, by the groups of the set in `paper`.
fn choose(paper: &Path, dir: &Path) -> Result<()> {
    let (path, theirs) = (dir.join(DICTIONARIES), DictionarySet::load(paper.join(DICTIONARIES))?);
    let mut set = DictionarySet::load(&path)?;
    let (tried, before) = (errors(dir)?, errors(paper)?);
    let (mut losses, mut kept) = (Vec::with_capacity(set.groups.len()), 0);
    for group in &mut set.groups {
        let same = |error: &&GroupErrors| error.kind == group.kind && error.layers == group.layers;
        let of = |errors: &[GroupErrors]| errors.iter().find(same).map(|error| error.last);
        let (own, other) = (of(&tried).context("a group has no epochs")?, of(&before));
        let paper_group = |g: &&DictionaryGroup| g.kind == group.kind && g.layers == group.layers;
        match (other, theirs.groups.iter().find(paper_group)) {
            (Some(other), Some(better)) if other <= own => {
                losses.push(other);
                *group = better.clone();
            }
            _ => {
                losses.push(own);
                kept += 1;
            }
        }
    }
    set.provenance.insert("heldout_relative".into(), serde_json::to_string(&losses)?);
    set.provenance.insert(CHOSEN.into(), format!("{kept} of {} groups; the others are those of train", losses.len()));
    Ok(set.save(&path)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use kvcsr_codec::Dictionary;
    use kvcsr_report::{EpochRow, files};

    use super::*;

    #[test]
    fn each_group_is_the_better_of_the_two() {
        let home = tempfile::tempdir().unwrap();
        let save = |name: &str, atom: Vec<f32>, ends: [f64; 2]| {
            let dir = home.path().join(name);
            std::fs::create_dir(&dir).unwrap();
            let dictionary = Arc::new(Dictionary::new(2, atom).unwrap());
            let group = |layer| DictionaryGroup {
                kind: Kind::Key,
                layers: vec![layer],
                chunks: 1,
                sparsity: 1,
                dictionary: dictionary.clone(),
            };
            let groups = vec![group(0), group(1)];
            DictionarySet { head_dim: 2, groups, provenance: Default::default() }.save(dir.join(DICTIONARIES)).unwrap();
            let row = |layer: usize, epoch, heldout_relative| EpochRow {
                group: format!("keys-{layer:02}"),
                kind: Kind::Key,
                layers: vec![layer],
                epoch,
                mse: 1.0,
                diversity: 0.0,
                beta: 0.0,
                train_relative: 0.5,
                heldout_relative,
                dead_atoms: 0,
                usage_entropy: 1.0,
                seconds: 1.0,
            };
            let rows: Vec<EpochRow> =
                (0..2).flat_map(|layer| [row(layer, 0, 0.9), row(layer, 1, ends[layer])]).collect();
            files::write_jsonl(&dir.join(EPOCHS), &rows).unwrap();
            dir
        };
        let paper = save("train", vec![1.0, 0.0], [0.3, 0.2]);
        let dir = save("train-best", vec![0.0, 1.0], [0.25, 0.2]);
        choose(&paper, &dir).unwrap();
        let set = DictionarySet::load(dir.join(DICTIONARIES)).unwrap();
        assert_eq!(set.groups[0].dictionary.atoms(), [0.0, 1.0]);
        assert_eq!(set.groups[1].dictionary.atoms(), [1.0, 0.0], "a tie is the paper's");
        assert_eq!(set.provenance["heldout_relative"], "[0.25,0.2]");
        assert!(set.provenance[CHOSEN].starts_with("1 of 2"));
    }
}
