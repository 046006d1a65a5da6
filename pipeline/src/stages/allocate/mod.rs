//! allocate: measures what each layer's keys and values cost in KL, and finds the levels that spend a budget of atoms best.
//!
//! The context of calibration texts is restored from codes, with every layer's keys and values at one of two levels, in the
//! weighings of a design (`design`). Then the continuation is scored. Costs and reconstruction errors give a model of KL at any
//! levels, and the allocator finds the best levels in this model. The resulting budgets are tried as real caches on further
//! calibration texts, beside CSR's even levels, and the best is kept. Rows stream to disk as they are made; a killed run
//! continues with the first missing row.

mod design;
mod measure;
mod restored;
mod trial;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use kvcsr_cache::{Budget, Budgets, allocate};
use kvcsr_codec::{DictionarySet, Kind};
use kvcsr_eval::heldout::HeldoutText;
use kvcsr_model::Tokenizer;
use kvcsr_report::files;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use self::design::{Cost, Slot};
use self::measure::{ERRORS, ErrorRow, WEIGHINGS, WeighingRow, measure};
use self::trial::{Candidate, CheckRow, PART, UNIFORM};
use crate::atomic;
use crate::config::{Config, check, sections};
use crate::room::{Amount, Room};
use crate::stage::{Artefact, Declaration, Need, Output, Run, Stage};
use crate::stages::inputs::{corpus, open_model, text_parameters};
use crate::stages::provenance::Owner;
use crate::stages::sizes::Sizes;
use crate::stages::train::DICTIONARIES;
use crate::text::Side;

/// File of the budgets by level.
pub const BUDGETS: &str = "budgets.json";
/// File of the costs by layer and kind.
const COSTS: &str = "costs.jsonl";
/// File of the KL of the budgets on the texts that they were tried on.
const CHECKS: &str = "checks.jsonl";

/// See the module.
pub struct Allocate;

/// The cost of one slot, with the measurements behind it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct CostRow {
    power: String,
    layer: usize,
    kind: Kind,
    error_low: f64,
    error_high: f64,
    kl_fall: f64,
    standard_error: f64,
    cost_measured: f64,
    cost: f64,
}

static DECLARATION: Declaration = Declaration {
    name: "allocate",
    about: "Measure what each layer's keys and values cost in KL, and spend atoms where they lower it most, for csr-S+budget",
    version: 3,
    needs: &[Need::Model, Need::Corpora, Need::Stage("train")],
    makes: &[Output { file: BUDGETS, artefact: Artefact::Budgets }],
    ..Declaration::EMPTY
};

impl Stage for Allocate {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn check(&self, config: &Config) -> Result<()> {
        let sections::Allocate { context, documents, check_documents, continuation, design, levels, .. } =
            &config.allocate;
        check::positive(
            "allocate",
            &[("context", *context), ("documents", *documents), ("check_documents", *check_documents)],
        )?;
        check::continuation("allocate", *continuation)?;
        if levels.is_empty() || !levels.iter().all(|level| (1..=255).contains(level)) || !levels.is_sorted() {
            bail!("allocate.levels must be a rising list of levels from 1 to 255, found {levels:?}");
        }
        let (keys, values) = (config.train.key_chunks, config.train.value_chunks);
        if !design.iter().all(|level| level.is_multiple_of(keys) && level.is_multiple_of(values)) {
            bail!(
                "allocate.design must be multiples of train.key_chunks = {keys} and train.value_chunks = {values}, found {design:?}"
            );
        }
        let [low, high] = design;
        if low >= high || !design.iter().all(|level| levels.contains(level)) {
            bail!("allocate.design must be two rising levels of allocate.levels ({levels:?}), found {design:?}");
        }
        Ok(())
    }

    fn plan(&self, _run: &Run) -> String {
        "what each layer's keys and values cost in KL, and levels that spend atoms accordingly".to_owned()
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        text_parameters(run, &run.config.allocate)
    }

    fn needs_room(&self, run: &Run) -> Result<Room> {
        let (sizes, settings) = (Sizes::of(run)?, &run.config.allocate);
        let tokens = settings.context + settings.continuation;
        let memory = sizes.with_prefill(tokens, 2) + sizes.distributions(settings.continuation);
        Ok(Room { memory: Amount { bytes: memory, lower: "allocate.context" }, ..Room::default() })
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        let (decoder, tokenizer) = open_model(run)?;
        let geometry = decoder.geometry();
        let set = Owner::of(run, geometry)?.load(&run.stage_dir("train").join(DICTIONARIES))?;
        let texts = Texts::new(run, &tokenizer)?;
        measure(run, &set, &decoder, &texts.measured, dir)?;
        let settings = &run.config.allocate;
        let slots = slots(&set, &files::read_jsonl::<ErrorRow>(&dir.join(ERRORS))?);
        let kl = mean_kl(
            &files::read_jsonl::<WeighingRow>(&dir.join(WEIGHINGS))?,
            texts.measured.len(),
            design::weighings(slots.len()),
        );
        let mut candidates = Vec::new();
        for &level in &settings.budgets {
            candidates.push(Candidate { level, name: UNIFORM, budget: even(level, geometry.layers) });
        }
        let mut rows = Vec::new();
        for (name, power) in trial::POWERS {
            let costs = design::costs(&slots, &kl, settings.design, power);
            rows.extend(cost_rows(name, &slots, &costs, settings.design));
            let losses = design::sensitivities(&slots, &costs, power);
            for &level in &settings.budgets {
                let (first, last) = (settings.levels[0], settings.levels[settings.levels.len() - 1]);
                let budget = allocate(&losses, level, first.max(level / 2)..=last.min(2 * level))
                    .map_err(|reason| anyhow::anyhow!("allocate.budgets, level {level}: {reason}"))?;
                candidates.push(Candidate { level, name, budget });
            }
        }
        candidates.sort_by_key(|candidate| candidate.level);
        files::write_jsonl(&dir.join(COSTS), &rows)?;
        let path = dir.join(CHECKS);
        trial::run(set, &decoder, &texts.checked, &candidates, &path)?;
        let budgets = trial::best(&candidates, &files::read_jsonl::<CheckRow>(&path)?);
        atomic::write_json(&dir.join(BUDGETS), &budgets)
    }

    fn summary(&self, _run: &Run, dir: &Path) -> Result<Vec<String>> {
        let checks: Vec<CheckRow> = files::read_jsonl(&dir.join(CHECKS))?;
        let line = |(level, budget): (&usize, &Budget)| {
            let mean = |levels: &[usize]| levels.iter().sum::<usize>() as f64 / levels.len().max(1) as f64;
            let range = |levels: &[usize]| {
                let (low, high) = (levels.iter().min().unwrap_or(&0), levels.iter().max().unwrap_or(&0));
                format!("{:.1} ({low} to {high})", mean(levels))
            };
            let tried: Vec<String> =
                trial::means(*level, &checks).iter().map(|(name, kl)| format!("{name} {kl:.4}")).collect();
            format!(
                "csr-{level}{PART}: atoms per key {}, per value {}; KL in the trial: {}",
                range(&budget.keys),
                range(&budget.values),
                tried.join(", ")
            )
        };
        Ok(read(dir)?.iter().map(line).collect())
    }
}

/// The budgets of a finished stage; none if it has not been run.
pub fn read(dir: &Path) -> Result<Budgets> {
    let path = dir.join(BUDGETS);
    match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).with_context(|| path.display().to_string()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Budgets::new()),
        Err(e) => Err(e).with_context(|| path.display().to_string()),
    }
}

/// The cost of a layer's keys or values per unit of relative squared error, in nats per token, by layer and kind. It is the mean
/// slope between the two errors of the design.
pub fn slopes(dir: &Path) -> Result<BTreeMap<(usize, Kind), f64>> {
    let (name, power) = trial::POWERS[0];
    let rows: Vec<CostRow> = files::read_jsonl(&dir.join(COSTS))?;
    let slope = |row: &CostRow| {
        let (low, high) = (row.error_low, row.error_high);
        row.cost * (low.powf(power) - high.powf(power)) / (low - high)
    };
    Ok(rows.iter().filter(|row| row.power == name).map(|row| ((row.layer, row.kind), slope(row))).collect())
}

/// The calibration texts of this stage, corpus by corpus.
struct Texts {
    /// The texts that costs are measured on.
    measured: Vec<(String, HeldoutText)>,
    /// The texts that budgets are tried on.
    checked: Vec<(String, HeldoutText)>,
}

impl Texts {
    fn new(run: &Run, tokenizer: &Tokenizer) -> Result<Self> {
        let settings = &run.config.allocate;
        let length = settings.context + settings.continuation;
        let count = settings.documents + settings.check_documents;
        let (mut measured, mut checked) = (Vec::new(), Vec::new());
        for corpus_id in &run.config.corpora {
            let sequences = corpus(run, tokenizer, corpus_id, Side::Calibration, length, count)?;
            for (i, ids) in sequences.into_iter().enumerate() {
                let text = (format!("{corpus_id}-{i:03}"), HeldoutText { ids, context: settings.context });
                if i < settings.documents { measured.push(text) } else { checked.push(text) }
            }
        }
        Ok(Self { measured, checked })
    }
}

/// Every slot with its mean errors: layer by layer, keys before values, as the design numbers them.
fn slots(set: &DictionarySet, rows: &[ErrorRow]) -> Vec<Slot> {
    let mut found: BTreeMap<(usize, Kind), BTreeMap<usize, Vec<f64>>> = BTreeMap::new();
    for row in rows {
        found.entry((row.layer, row.kind)).or_default().entry(row.level).or_default().push(row.relative);
    }
    let mut slots = Vec::new();
    for layer in 0..found.keys().map(|(layer, _)| layer + 1).max().unwrap_or(0) {
        for kind in Kind::ALL {
            let chunks =
                set.groups.iter().find(|g| g.kind == kind && g.layers.contains(&layer)).map_or(1, |group| group.chunks);
            let mean = |errors: &Vec<f64>| errors.iter().sum::<f64>() / errors.len() as f64;
            let levels = found.get(&(layer, kind)).into_iter().flatten();
            slots.push(Slot { layer, kind, chunks, errors: levels.map(|(&level, e)| (level, mean(e))).collect() });
        }
    }
    slots
}

/// Mean KL per token by text and weighing.
fn mean_kl(rows: &[WeighingRow], texts: usize, weighings: usize) -> Vec<Vec<f64>> {
    let mut kl = vec![vec![0.0; weighings]; texts];
    for row in rows {
        kl[row.text][row.weighing] = row.kl_sum / row.scored.max(1) as f64;
    }
    kl
}

fn cost_rows(power: &'static str, slots: &[Slot], costs: &[Cost], [low, high]: [usize; 2]) -> Vec<CostRow> {
    let row = |(slot, cost): (&Slot, &Cost)| CostRow {
        power: power.to_owned(),
        layer: slot.layer,
        kind: slot.kind,
        error_low: slot.error(low),
        error_high: slot.error(high),
        kl_fall: cost.fall,
        standard_error: cost.standard_error,
        cost_measured: cost.raw,
        cost: cost.per_error,
    };
    slots.iter().zip(costs).map(row).collect()
}

/// CSR's own levels: the same everywhere.
fn even(level: usize, layers: usize) -> Budget {
    Budget { keys: vec![level; layers], values: vec![level; layers] }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use super::*;

    #[test]
    fn rows_become_slots_in_the_order_of_the_design_and_budgets_survive_their_file() {
        let dictionary = Arc::new(kvcsr_codec::Dictionary::new(2, vec![1.0, 0.0]).unwrap());
        let group = |kind, chunks| kvcsr_codec::DictionaryGroup {
            kind,
            layers: vec![0, 1],
            chunks,
            sparsity: 1,
            dictionary: dictionary.clone(),
        };
        let groups = vec![group(Kind::Value, 2), group(Kind::Key, 1)];
        let set = DictionarySet { head_dim: 2, groups, provenance: Default::default() };
        let mut rows = Vec::new();
        for text in 0..2 {
            for layer in [1, 0] {
                for (kind, levels) in [(Kind::Value, &[2, 4][..]), (Kind::Key, &[2, 3, 4])] {
                    rows.extend(levels.iter().map(|&level| {
                        let relative = (text + layer) as f64 / 10.0 + 1.0 / level as f64;
                        ErrorRow { text, layer, kind, level, relative }
                    }));
                }
            }
        }
        let slots = slots(&set, &rows);
        let order: Vec<_> = slots.iter().map(|slot| (slot.layer, slot.kind, slot.chunks)).collect();
        assert_eq!(order, [(0, Kind::Key, 1), (0, Kind::Value, 2), (1, Kind::Key, 1), (1, Kind::Value, 2)]);
        assert_eq!(slots[3].errors.len(), 2);
        assert!((slots[2].error(4) - 0.4).abs() < 1e-12, "the mean over texts");
        let row = |text, weighing, kl_sum| WeighingRow { text, id: String::new(), weighing, scored: 4, kl_sum };
        assert_eq!(mean_kl(&[row(1, 0, 2.0), row(0, 1, 4.0)], 2, 2), [[0.0, 1.0], [0.5, 0.0]]);

        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).unwrap().is_empty());
        let budgets = Budgets::from([(3, even(3, 2))]);
        std::fs::write(dir.path().join(BUDGETS), serde_json::to_string(&budgets).unwrap()).unwrap();
        assert_eq!(read(dir.path()).unwrap(), budgets);
        std::fs::write(dir.path().join(BUDGETS), "{\"3\": 4}").unwrap();
        assert!(format!("{:#}", read(dir.path()).unwrap_err()).contains(BUDGETS));
    }
}
