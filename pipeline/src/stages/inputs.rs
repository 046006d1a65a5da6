//! What several stages read: the model, the texts, and what `calibrate` recorded.

use std::path::PathBuf;

use anyhow::{Context, Result};
use kvcsr_codec::{Kind, Shard};
use kvcsr_model::{Decoder, Tokenizer};
use serde_json::{Map, Value, json};

use crate::models::Opened;
use crate::sources::{SourceKind, Sources};
use crate::stage::{Run, parameters_of};
use crate::text::{self, Side};

/// Tokens per forward call of an exact prefill: bounds the memory of its activations.
pub const PREFILL_CHUNK: usize = 512;

/// Opens the model of the configuration, which must have been fetched.
pub fn open_model(run: &Run) -> Result<(Decoder, Tokenizer)> {
    let model = Opened::of(&run.config.model, &run.paths)?;
    Ok((model.decoder(&run.config.device, &run.config.dtype)?, model.tokenizer()?))
}

/// Token sequences of one corpus and side of the split.
pub fn corpus(
    run: &Run,
    tokenizer: &Tokenizer,
    id: &str,
    side: Side,
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

/// The parameters of a stage that reads texts: its section of the configuration, and what says which texts are read.
pub fn text_parameters(run: &Run, section: &impl serde::Serialize) -> Result<Map<String, Value>> {
    let mut parameters = parameters_of(section)?;
    parameters.insert("corpora".into(), json!(run.config.corpora));
    parameters.insert("seed".into(), run.config.seed.into());
    parameters.insert("heldout_fraction".into(), run.config.calibrate.heldout_fraction.into());
    Ok(parameters)
}

/// `layer-07-keys.safetensors`.
pub fn shard_name(layer: usize, kind: Kind) -> String {
    format!("layer-{layer:02}-{kind}s.safetensors")
}

/// Number of layers of the model, as the calibrate stage recorded them.
pub fn layers(run: &Run) -> Result<usize> {
    let outputs = run.finished("calibrate")?.outputs;
    Ok(outputs.iter().filter(|o| o.file.starts_with("calibration/")).count() / 2)
}

/// Number of layers of the model, as its configuration says: for plans that are made before anything is recorded.
pub fn model_layers(run: &Run) -> Result<usize> {
    Ok(Opened::of(&run.config.model, &run.paths)?.arch()?.layers)
}

/// The attention that one layer's vectors get, as calibrate recorded it, `(T, Hkv, 1)`.
pub fn open_weights(run: &Run, side: Side, layer: usize, kind: Kind) -> Result<Shard> {
    let folder = match side {
        Side::Calibration => "importance",
        Side::Heldout => "importance-heldout",
    };
    let path = run.stage_dir("calibrate").join(folder).join(shard_name(layer, kind));
    Shard::open(&path).context("no recorded attention: run calibrate with calibrate.importance = true")
}

/// One layer's vectors, as the calibrate stage recorded them.
pub fn open_shard(run: &Run, side: Side, layer: usize, kind: Kind) -> Result<Shard> {
    let folder = match side {
        Side::Calibration => "calibration",
        Side::Heldout => "heldout",
    };
    let path: PathBuf = run.stage_dir("calibrate").join(folder).join(shard_name(layer, kind));
    Ok(Shard::open(&path)?)
}
