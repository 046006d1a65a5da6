//! calibrate: keys (before position embedding) and values of every layer, over the calibration
//! text and over held-out text (Algorithm 1, step 1).

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use kvcsr_codec::{Kind, ShardHeader, ShardWriter};
use kvcsr_model::{Decoder, Tokenizer};
use serde_json::{Map, Value, json};

use crate::stage::{Run, Stage, parameters_of};
use crate::stages::{PREFILL_CHUNK, corpus, open_model, shard_name, text_and_model_inputs};
use crate::text::Part;
use crate::ui;

/// See the module.
pub struct Calibrate;

impl Stage for Calibrate {
    fn name(&self) -> &'static str {
        "calibrate"
    }

    fn version(&self) -> u32 {
        1
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        let mut parameters = parameters_of(&run.config.calibrate)?;
        parameters.insert("seed".into(), run.config.seed.into());
        parameters.insert("model".into(), run.config.model.clone().into());
        parameters.insert("corpora".into(), json!(run.config.corpora));
        Ok(parameters)
    }

    fn inputs(&self, run: &Run) -> Result<Map<String, Value>> {
        text_and_model_inputs(run)
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        let (decoder, tokenizer) = open_model(run)?;
        let settings = &run.config.calibrate;
        for (side, folder, tokens) in
            [(Part::Calibration, "calibration", settings.tokens), (Part::Heldout, "heldout", settings.heldout_tokens)]
        {
            record(run, &decoder, &tokenizer, side, tokens, &dir.join(folder))?;
        }
        Ok(())
    }

    fn summary(&self, _run: &Run, dir: &Path) -> Result<Vec<String>> {
        let files = std::fs::read_dir(dir.join("calibration"))?.count();
        let mut bytes = 0;
        for folder in ["calibration", "heldout"] {
            for entry in std::fs::read_dir(dir.join(folder))? {
                bytes += entry?.metadata()?.len();
            }
        }
        Ok(vec![format!("{files} shards of keys and values, {:.0} MB with the held-out ones", bytes as f64 / 1e6)])
    }
}

/// Runs the model over `tokens` tokens, shared evenly by the corpora, and writes one shard per layer and kind.
fn record(run: &Run, decoder: &Decoder, tokenizer: &Tokenizer, side: Part, tokens: usize, dir: &Path) -> Result<()> {
    let length = run.config.calibrate.sequence;
    let corpora = &run.config.corpora;
    let per_corpus = tokens.div_ceil(length * corpora.len());
    let geometry = decoder.geometry();
    let total = per_corpus * corpora.len() * length;
    std::fs::create_dir_all(dir)?;
    let mut writers = Vec::with_capacity(geometry.layers);
    for layer in 0..geometry.layers {
        let writer = |kind: Kind| {
            ShardWriter::create(
                dir.join(shard_name(layer, kind)),
                ShardHeader {
                    layer,
                    kind,
                    tokens: total,
                    heads: geometry.kv_heads,
                    head_dim: geometry.head_dim,
                    extra: BTreeMap::from([
                        ("model".to_owned(), run.config.model.clone()),
                        ("corpora".to_owned(), corpora.join(" ")),
                    ]),
                },
            )
        };
        writers.push((writer(Kind::Key)?, writer(Kind::Value)?));
    }
    let bar = ui::bar("calibrate", total as u64, "tokens");
    for id in corpora {
        bar.set_message(format!("{id}, {}", if side == Part::Heldout { "held out" } else { "calibration" }));
        for ids in corpus(run, tokenizer, id, side, length, per_corpus)? {
            let snapshot = decoder.prefill(&ids, PREFILL_CHUNK)?;
            for ((keys, values), (k, v)) in writers.iter_mut().zip(snapshot.keys.iter().zip(&snapshot.values)) {
                // (1, Hkv, T, D) -> (T, Hkv, D)
                keys.append(&k.squeeze(0)?.transpose(0, 1)?.flatten_all()?.to_vec1::<f32>()?)?;
                values.append(&v.squeeze(0)?.transpose(0, 1)?.flatten_all()?.to_vec1::<f32>()?)?;
            }
            bar.inc(ids.len() as u64);
        }
    }
    for (keys, values) in writers {
        keys.finish()?;
        values.finish()?;
    }
    bar.finish();
    Ok(())
}
