//! The stages, in order, one file each.

pub mod ablate;
pub mod allocate;
pub mod calibrate;
pub mod calibrate_peers;
pub mod compare;
pub mod dictionaries;
pub mod evaluate;
mod importance;
pub mod longbench;
pub mod merge;
pub mod provenance;
pub mod report;
pub mod scores;
pub mod suite;
pub mod train;
pub mod train_best;
pub mod train_rope;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kvcsr_codec::{Kind, Shard};
use kvcsr_eval::longbench::predictions::remove_cut_line;
use kvcsr_model::{Decoder, Tokenizer};
use kvcsr_report::files;
use serde_json::{Map, Value, json};

use crate::models::{self, Opened};
use crate::sources::{SourceKind, Sources};
use crate::stage::{Run, parameters_of};
use crate::text::{self, Part};

/// Tokens per forward call of an exact prefill: bounds the memory of its activations.
pub const PREFILL_CHUNK: usize = 512;

/// The model of the configuration, fetched before.
pub fn open_model(run: &Run) -> Result<(Decoder, Tokenizer)> {
    let model = Opened::of(run)?;
    Ok((model.decoder(&run.config.device, &run.config.dtype)?, model.tokenizer()?))
}

/// Token sequences of one corpus and side of the split.
pub fn corpus(
    run: &Run,
    tokenizer: &Tokenizer,
    id: &str,
    side: Part,
    length: usize,
    count: usize,
) -> Result<Vec<Vec<u32>>> {
    let sources = Sources::load(&run.paths.root)?;
    let source = sources.get(id, SourceKind::Text)?;
    let path = source.fetched(&run.paths)?;
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let rule =
        source.documents.as_ref().with_context(|| format!("data/sources.toml: text `{id}` has no `documents` rule"))?;
    let all = text::documents(&text, rule);
    let picked = text::shuffled(&all, side, run.config.seed, run.config.calibrate.heldout_fraction);
    text::sequences(id, &picked, tokenizer, length, count)
}

/// The rows that an unfinished run left in a stage's file, none where there is no file; a last line that was cut off is removed.
pub fn rows_left<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    remove_cut_line(path)?;
    Ok(files::read_jsonl(path)?)
}

/// The parameters of a stage that reads texts: its section of the configuration, and what says which texts are read.
pub fn text_parameters(run: &Run, section: &impl serde::Serialize) -> Result<Map<String, Value>> {
    let mut parameters = parameters_of(section)?;
    parameters.insert("corpora".into(), json!(run.config.corpora));
    parameters.insert("seed".into(), run.config.seed.into());
    parameters.insert("heldout_fraction".into(), run.config.calibrate.heldout_fraction.into());
    Ok(parameters)
}

/// What identifies every corpus and the model, as named inputs of a stage.
pub fn text_and_model_inputs(run: &Run) -> Result<Map<String, Value>> {
    let sources = Sources::load(&run.paths.root)?;
    let mut inputs = Map::new();
    inputs.insert("model".into(), models::digest(run)?.into());
    for id in &run.config.corpora {
        inputs.insert(id.clone(), sources.get(id, SourceKind::Text)?.sha256.clone().into());
    }
    Ok(inputs)
}

/// `layer-07-keys.safetensors`.
pub fn shard_name(layer: usize, kind: Kind) -> String {
    format!("layer-{layer:02}-{kind}s.safetensors")
}

/// Layers of the model, as the calibrate stage recorded them.
pub fn layers(run: &Run) -> Result<usize> {
    let outputs = run.finished("calibrate")?.outputs;
    Ok(outputs.iter().filter(|o| o.file.starts_with("calibration/")).count() / 2)
}

/// What calibrate recorded of the attention that one layer's vectors get, `(T, Hkv, 1)`.
pub fn open_weights(run: &Run, side: Part, layer: usize, kind: Kind) -> Result<Shard> {
    let folder = match side {
        Part::Calibration => "importance",
        Part::Heldout => "importance-heldout",
    };
    let path = run.stage_dir("calibrate").join(folder).join(shard_name(layer, kind));
    Shard::open(&path).context("no recorded attention: run calibrate with calibrate.importance = true")
}

/// One layer's vectors as the calibrate stage left them.
pub fn open_shard(run: &Run, side: Part, layer: usize, kind: Kind) -> Result<Shard> {
    let folder = match side {
        Part::Calibration => "calibration",
        Part::Heldout => "heldout",
    };
    let path: PathBuf = run.stage_dir("calibrate").join(folder).join(shard_name(layer, kind));
    Ok(Shard::open(&path)?)
}
