//! allocate: how much KL each layer's keys and values cost, and the levels that spend a budget of atoms best.
//!
//! One layer's keys or values of a text's context are restored from their codes at a few levels, everything else being
//! exact, and the continuation is scored. Rows stream to disk as they are made; an unfinished run of the same recipe
//! goes on with the first one it lacks.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use candle_core::Tensor;
use kvcsr_cache::{
    Budget, Budgets, CacheError, LayerCache, Rotary, Scheme, SchemeContext, Sensitivity, allocate, registry,
};
use kvcsr_codec::{BitsPerChannel, CodecError, DictionarySet, Encoder, Kind, SparseCodes};
use kvcsr_longbench::heldout::{HeldoutText, Reference};
use kvcsr_longbench::predictions::remove_cut_line;
use kvcsr_model::{Decoder, Tokenizer};
use kvcsr_report::files;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::stage::{Run, Stage, parameters_of, write_atomically};
use crate::stages::provenance::Owner;
use crate::stages::train::DICTIONARIES;
use crate::stages::{PREFILL_CHUNK, corpus, open_model, text_and_model_inputs};
use crate::text::Part;
use crate::ui;

/// File of the budgets by level.
pub const BUDGETS: &str = "budgets.json";
/// File of the rows per text, layer, kind and level.
pub const SENSITIVITY: &str = "sensitivity.jsonl";

/// See the module.
pub struct Allocate;

/// What coding one layer's vectors of one kind cost on one text.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct SensitivityRow {
    id: String,
    layer: usize,
    kind: Kind,
    level: usize,
    scored: usize,
    kl_sum: f64,
}

impl Stage for Allocate {
    fn name(&self) -> &'static str {
        "allocate"
    }

    fn version(&self) -> u32 {
        1
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        let mut parameters = parameters_of(&run.config.allocate)?;
        parameters.insert("corpora".into(), json!(run.config.corpora));
        parameters.insert("seed".into(), run.config.seed.into());
        parameters.insert("heldout_fraction".into(), run.config.calibrate.heldout_fraction.into());
        Ok(parameters)
    }

    fn inputs(&self, run: &Run) -> Result<Map<String, Value>> {
        let mut inputs = text_and_model_inputs(run)?;
        inputs.insert("train".into(), run.finished("train")?.digest.into());
        Ok(inputs)
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        let (decoder, tokenizer) = open_model(run)?;
        let owner = Owner::of(run, decoder.geometry())?;
        let set = owner.load(&run.stage_dir("train").join(DICTIONARIES))?;
        let path = dir.join(SENSITIVITY);
        measure(run, &decoder, &tokenizer, &set, &path)?;
        let rows: Vec<SensitivityRow> = files::read_jsonl(&path)?;
        let sensitivities = sensitivities(&rows, &set);
        let settings = &run.config.allocate;
        let mut budgets = Budgets::new();
        for &level in &settings.budgets {
            let budget = allocate(&sensitivities, level, settings.most)
                .map_err(|reason| anyhow::anyhow!("allocate.budgets, level {level}: {reason}"))?;
            budgets.insert(level, budget);
        }
        write_atomically(&dir.join(BUDGETS), serde_json::to_string_pretty(&budgets)?.as_bytes())
    }

    fn summary(&self, _run: &Run, dir: &Path) -> Result<Vec<String>> {
        let line = |(level, budget): (&usize, &Budget)| {
            let mean = |levels: &[usize]| levels.iter().sum::<usize>() as f64 / levels.len().max(1) as f64;
            let range = |levels: &[usize]| {
                let (low, high) = (levels.iter().min().unwrap_or(&0), levels.iter().max().unwrap_or(&0));
                format!("{:.1} ({low} to {high})", mean(levels))
            };
            format!("csr-{level}+budget: atoms per key {}, per value {}", range(&budget.keys), range(&budget.values))
        };
        Ok(read(dir)?.iter().map(line).collect())
    }
}

/// The budgets of a finished stage; none where it has not been run.
pub fn read(dir: &Path) -> Result<Budgets> {
    let path = dir.join(BUDGETS);
    match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).with_context(|| path.display().to_string()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Budgets::new()),
        Err(e) => Err(e).with_context(|| path.display().to_string()),
    }
}

/// Appends a row for every text, layer, kind and level that `path` lacks.
fn measure(run: &Run, decoder: &Decoder, tokenizer: &Tokenizer, set: &DictionarySet, path: &Path) -> Result<()> {
    let settings = &run.config.allocate;
    let geometry = decoder.geometry();
    let dense = registry::build("dense", &SchemeContext::new(geometry))?;
    let encoders: Vec<Arc<Encoder>> =
        set.groups.iter().map(|group| Arc::new(Encoder::new(group.dictionary.clone()))).collect();
    let done = finished(path)?;
    let mut out = OpenOptions::new().create(true).append(true).open(path)?;
    let texts = run.config.corpora.len() * settings.documents;
    let bar = ui::bar("allocate", (texts * 2 * geometry.layers * settings.levels.len()) as u64, "probes");
    for corpus_id in &run.config.corpora {
        let length = settings.context + settings.continuation;
        let sequences = corpus(run, tokenizer, corpus_id, Part::Calibration, length, settings.documents)?;
        for (i, ids) in sequences.into_iter().enumerate() {
            let id = format!("{corpus_id}-{i:03}");
            let mut reference = None;
            for (group, encoder) in set.groups.iter().zip(&encoders) {
                for (&layer, &level) in group.layers.iter().flat_map(|l| settings.levels.iter().map(move |s| (l, s))) {
                    bar.inc(1);
                    if done.contains(&(id.clone(), layer, group.kind, level)) {
                        continue;
                    }
                    let reference = match &mut reference {
                        Some(reference) => reference,
                        none => {
                            let text = HeldoutText { ids: ids.clone(), context: settings.context };
                            none.insert(Reference::new(&decoder, &text, PREFILL_CHUNK, dense.as_ref())?)
                        }
                    };
                    bar.set_message(format!("{id}: layer {layer}, {}s at {level}", group.kind));
                    let sparsity = (level / group.chunks).max(1);
                    let probe = Probe { layer, kind: group.kind, encoder, sparsity, dense: dense.as_ref() };
                    let score = reference.score(&decoder, &probe)?;
                    let row = SensitivityRow {
                        id: id.clone(),
                        layer,
                        kind: group.kind,
                        level,
                        scored: score.scored,
                        kl_sum: score.kl_sum,
                    };
                    writeln!(out, "{}", serde_json::to_string(&row)?)?;
                    out.flush()?;
                }
            }
        }
    }
    out.sync_all()?;
    bar.finish();
    Ok(())
}

fn finished(path: &Path) -> Result<HashSet<(String, usize, Kind, usize)>> {
    if !path.exists() {
        return Ok(HashSet::new());
    }
    remove_cut_line(path)?;
    let rows: Vec<SensitivityRow> = files::read_jsonl(path)?;
    Ok(rows.into_iter().map(|row| (row.id, row.layer, row.kind, row.level)).collect())
}

/// Mean KL per token of every layer, kind and level.
fn sensitivities(rows: &[SensitivityRow], set: &DictionarySet) -> Vec<Sensitivity> {
    let mut all: Vec<Sensitivity> = Vec::new();
    for group in &set.groups {
        for &layer in &group.layers {
            let of_slot = || rows.iter().filter(|row| (row.layer, row.kind) == (layer, group.kind));
            let mut levels: Vec<usize> = of_slot().map(|row| row.level).collect();
            levels.sort_unstable();
            levels.dedup();
            let mean = |level: usize| {
                let (kl, scored) = of_slot()
                    .filter(|row| row.level == level)
                    .fold((0.0, 0), |(kl, scored), row| (kl + row.kl_sum, scored + row.scored));
                (level, kl / scored.max(1) as f64)
            };
            let measured = levels.into_iter().map(mean).collect();
            all.push(Sensitivity { layer, kind: group.kind, chunks: group.chunks, measured });
        }
    }
    all
}

/// Exact caches, but for one layer whose prompt's keys or values are restored from codes.
struct Probe<'a> {
    layer: usize,
    kind: Kind,
    encoder: &'a Encoder,
    /// Atoms per chunk.
    sparsity: usize,
    dense: &'a dyn Scheme,
}

impl Probe<'_> {
    fn restored(&self, x: &Tensor) -> Result<Tensor, CacheError> {
        let coded = |rows: &mut Vec<f32>| -> Result<(), CodecError> {
            let mut codes = SparseCodes::new(self.sparsity);
            codes.encode_append(self.encoder, rows)?;
            codes.decode_into(self.encoder.dictionary(), 0..codes.rows(), rows)
        };
        let mut rows = x.flatten_all()?.to_vec1::<f32>()?;
        coded(&mut rows).map_err(|source| CacheError::Codec { layer: self.layer, kind: self.kind, source })?;
        Ok(Tensor::from_vec(rows, x.dims(), x.device())?)
    }
}

impl Scheme for Probe<'_> {
    fn name(&self) -> &str {
        "probe"
    }

    fn empty(&self, layer: usize) -> Result<Box<dyn LayerCache>, CacheError> {
        self.dense.empty(layer)
    }

    fn after_prefill(
        &self,
        layer: usize,
        k: &Tensor,
        v: &Tensor,
        rotary: &Rotary,
    ) -> Result<Box<dyn LayerCache>, CacheError> {
        match self.kind {
            _ if layer != self.layer => self.dense.after_prefill(layer, k, v, rotary),
            Kind::Key => self.dense.after_prefill(layer, &self.restored(k)?, v, rotary),
            Kind::Value => self.dense.after_prefill(layer, k, &self.restored(v)?, rotary),
        }
    }

    fn nominal_bits(&self) -> BitsPerChannel {
        self.dense.nominal_bits()
    }

    fn shared_bytes(&self) -> usize {
        self.dense.shared_bytes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rows_of_several_texts_become_one_mean_per_level() {
        let dictionary = Arc::new(kvcsr_codec::Dictionary::new(2, vec![1.0, 0.0]).unwrap());
        let group = |kind, chunks| kvcsr_codec::DictionaryGroup {
            kind,
            layers: vec![0],
            chunks,
            sparsity: 1,
            dictionary: dictionary.clone(),
        };
        let groups = vec![group(Kind::Key, 1), group(Kind::Value, 2)];
        let set = DictionarySet { head_dim: 2, groups, provenance: Default::default() };
        let row = |id: &str, kind, level, scored, kl_sum| SensitivityRow {
            id: id.into(),
            layer: 0,
            kind,
            level,
            scored,
            kl_sum,
        };
        let rows = [
            row("a", Kind::Key, 8, 10, 1.0),
            row("b", Kind::Key, 8, 30, 1.0),
            row("a", Kind::Key, 4, 10, 2.0),
            row("a", Kind::Value, 4, 10, 0.1),
        ];
        let found = sensitivities(&rows, &set);
        assert_eq!(found[0].measured, [(4, 0.2), (8, 0.05)]);
        assert_eq!((found[1].chunks, &found[1].measured[..]), (2, &[(4, 0.01)][..]));
        // What costs more gets more of the two atoms' worth.
        let budget = allocate(&found, 3, 8).unwrap();
        assert_eq!((budget.keys[0], budget.values[0]), (4, 2));

        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).unwrap().is_empty());
        let budgets = Budgets::from([(3, budget)]);
        std::fs::write(dir.path().join(BUDGETS), serde_json::to_string(&budgets).unwrap()).unwrap();
        assert_eq!(read(dir.path()).unwrap(), budgets);
        std::fs::write(dir.path().join(BUDGETS), "{\"3\": 4}").unwrap();
        assert!(format!("{:#}", read(dir.path()).unwrap_err()).contains(BUDGETS));
    }
}
