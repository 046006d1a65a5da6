//! calibrate: records keys (before position embedding) and values of every layer, over calibration
//! text and over held-out text (Algorithm 1, step 1); and, beyond the paper, how much attention each
//! of them gets.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use kvcsr_codec::{Kind, ShardHeader, ShardWriter};
use kvcsr_model::{Decoder, Tokenizer};
use serde_json::{Map, Value, json};

use crate::config::{Config, check, sections};
use crate::room::{Amount, Room};
use crate::stage::{Declaration, Need, Output, Run, Stage, parameters_of, remove_file};
use crate::stages::importance::Observed;
use crate::stages::inputs::{PREFILL_CHUNK, corpus, open_model, shard_name};
use crate::stages::sizes::{Sizes, product};
use crate::text::Side;
use crate::{atomic, ui};

/// See the module.
pub struct Calibrate;

static DECLARATION: Declaration = Declaration {
    name: "calibrate",
    about: "Record keys and values of every layer over calibration and held-out text",
    version: 2,
    needs: &[Need::Model, Need::Corpora],
    makes: &[Output::rows("calibration/"), Output::rows("heldout/")],
    ..Declaration::EMPTY
};

impl Stage for Calibrate {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn check(&self, config: &Config) -> Result<()> {
        let sections::Calibrate { tokens, heldout_tokens, heldout_fraction, sequence, .. } = config.calibrate;
        check::positive(
            "calibrate",
            &[("tokens", tokens), ("heldout_tokens", heldout_tokens), ("sequence", sequence)],
        )?;
        if !(0.01..=0.9).contains(&heldout_fraction) {
            bail!("calibrate.heldout_fraction must lie in 0.01..0.9, found {heldout_fraction}");
        }
        Ok(())
    }

    fn fits(&self, config: &Config, positions: usize) -> Result<()> {
        let sequence = config.calibrate.sequence;
        if sequence > positions {
            bail!("calibrate.sequence = {sequence}: the model has {positions} positions");
        }
        Ok(())
    }

    fn plan(&self, run: &Run) -> String {
        let sections::Calibrate { tokens, heldout_tokens, .. } = run.config.calibrate;
        format!("keys and values of {tokens} tokens, and of {heldout_tokens} held-out ones")
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        let mut parameters = parameters_of(&run.config.calibrate)?;
        parameters.insert("seed".into(), run.config.seed.into());
        parameters.insert("model".into(), run.config.model.clone().into());
        parameters.insert("corpora".into(), json!(run.config.corpora));
        Ok(parameters)
    }

    fn needs_room(&self, run: &Run) -> Result<Room> {
        let (sizes, settings) = (Sizes::of(run)?, &run.config.calibrate);
        // The keys and values of each layer, the same joined, and the cache.
        let memory = sizes.with_prefill(settings.sequence, 3);
        let (layers, heads, head_dim) = sizes.shape();
        // Keys and values in f16, and a weight for each head vector.
        let each = 4 * product(&[layers, heads, head_dim + usize::from(settings.importance)]);
        let recorded = |tokens| (per_corpus(run, tokens) * run.config.corpora.len() * settings.sequence) as u64;
        let disk = each * (recorded(settings.tokens) + recorded(settings.heldout_tokens));
        Ok(Room {
            memory: Amount { bytes: memory, lower: "calibrate.sequence" },
            disk: Amount { bytes: disk, lower: "calibrate.tokens" },
        })
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        let (decoder, tokenizer) = open_model(run)?;
        let settings = &run.config.calibrate;
        record(run, &decoder, &tokenizer, Side::Calibration, settings.tokens, dir)?;
        record(run, &decoder, &tokenizer, Side::Heldout, settings.heldout_tokens, dir)?;
        [Side::Calibration, Side::Heldout].iter().try_for_each(|side| remove_file(&dir.join(progress_file(*side))))
    }

    fn summary(&self, _run: &Run, dir: &Path) -> Result<Vec<String>> {
        let files = std::fs::read_dir(dir.join("calibration"))?.count();
        let mut bytes = 0;
        for folder in ["calibration", "heldout", "importance", "importance-heldout"] {
            for entry in std::fs::read_dir(dir.join(folder)).into_iter().flatten() {
                bytes += entry?.metadata()?.len();
            }
        }
        Ok(vec![format!("{files} shards of keys and values, {:.0} MB with the held-out ones", bytes as f64 / 1e6)])
    }
}

/// Sequences of each corpus that make up `tokens` tokens.
fn per_corpus(run: &Run, tokens: usize) -> usize {
    tokens.div_ceil(run.config.calibrate.sequence * run.config.corpora.len())
}

/// File with the number of sequences that are safely on the disk in all shards of a side, while the shards are made.
fn progress_file(side: Side) -> &'static str {
    match side {
        Side::Calibration => "progress-calibration.json",
        Side::Heldout => "progress-heldout.json",
    }
}

/// Runs the model over `tokens` tokens, the same number from each corpus. Writes one shard per layer and kind, and one of weights
/// if they are asked for. Continues after the sequences that an unfinished run has recorded.
fn record(run: &Run, decoder: &Decoder, tokenizer: &Tokenizer, side: Side, tokens: usize, dir: &Path) -> Result<()> {
    let length = run.config.calibrate.sequence;
    let corpora = &run.config.corpora;
    let per_corpus = per_corpus(run, tokens);
    let geometry = decoder.geometry();
    let total = per_corpus * corpora.len() * length;
    let create = |folder: &str, head_dim: usize| -> Result<Vec<[ShardWriter; 2]>> {
        let dir = dir.join(folder);
        std::fs::create_dir_all(&dir)?;
        (0..geometry.layers)
            .map(|layer| {
                let [keys, values] = Kind::ALL.map(|kind| {
                    let extra = BTreeMap::from([
                        ("model".to_owned(), run.config.model.clone()),
                        ("corpora".to_owned(), corpora.join(" ")),
                    ]);
                    let heads = geometry.kv_heads;
                    let header = ShardHeader { layer, kind, tokens: total, heads, head_dim, extra };
                    ShardWriter::resume(dir.join(shard_name(layer, kind)), header)
                });
                Ok([keys?, values?])
            })
            .collect()
    };
    let (vectors, weights) = match side {
        Side::Calibration => ("calibration", "importance"),
        Side::Heldout => ("heldout", "importance-heldout"),
    };
    let progress = dir.join(progress_file(side));
    // This file is removed when all shards have their names: without it, and with all shards, this side is finished.
    let folders = [Some(vectors), run.config.calibrate.importance.then_some(weights)];
    let named = |folder: &str| {
        let mut names = (0..geometry.layers).flat_map(|layer| Kind::ALL.map(|kind| shard_name(layer, kind)));
        names.all(|name| dir.join(folder).join(name).is_file())
    };
    if !progress.is_file() && folders.into_iter().flatten().all(named) {
        return Ok(());
    }
    let mut vectors = create(vectors, geometry.head_dim)?;
    let mut weights = if run.config.calibrate.importance { create(weights, 1)? } else { Vec::new() };
    let durable: usize = if progress.is_file() { atomic::read_json(&progress)? } else { 0 };
    let all = || vectors.iter().chain(&weights).flatten();
    let mut done = all().map(|writer| writer.tokens() / length).min().unwrap_or(0).min(durable);
    for writer in vectors.iter_mut().chain(&mut weights).flatten() {
        writer.keep(done * length)?;
    }
    let bar = ui::bar("calibrate", total as u64, "tokens");
    bar.inc((done * length) as u64);
    let (mut skipped, mut last, mut pause) = (0, Instant::now(), Duration::ZERO);
    for id in corpora {
        bar.set_message(format!("{id}, {}", if side == Side::Heldout { "held out" } else { "calibration" }));
        if skipped + per_corpus <= done {
            skipped += per_corpus;
            continue;
        }
        for ids in corpus(run, tokenizer, id, side, length, per_corpus)? {
            if skipped < done {
                skipped += 1;
                continue;
            }
            let seen = Observed::prefill(decoder, &ids, PREFILL_CHUNK, !weights.is_empty())?;
            for (writers, seen) in vectors.iter_mut().zip(&seen) {
                for (writer, tensor) in writers.iter_mut().zip([&seen.keys, &seen.values]) {
                    // (1, Hkv, T, D) -> (T, Hkv, D)
                    writer.append(&tensor.squeeze(0)?.transpose(0, 1)?.flatten_all()?.to_vec1::<f32>()?)?;
                }
            }
            for (writers, seen) in weights.iter_mut().zip(&seen) {
                for (writer, values) in writers.iter_mut().zip(seen.weights()) {
                    writer.append(&values)?;
                }
            }
            bar.inc(ids.len() as u64);
            (done, skipped) = (done + 1, skipped + 1);
            // Only so often that syncing takes a twentieth of the time.
            if last.elapsed() >= pause {
                let started = Instant::now();
                vectors.iter_mut().chain(&mut weights).flatten().try_for_each(ShardWriter::sync)?;
                atomic::write_json(&progress, &done)?;
                (last, pause) = (Instant::now(), 20 * started.elapsed());
            }
        }
    }
    // Before the files get their names: if the run is killed there, the next one finds everything.
    vectors.iter_mut().chain(&mut weights).flatten().try_for_each(ShardWriter::sync)?;
    atomic::write_json(&progress, &done)?;
    for writer in vectors.into_iter().chain(weights).flatten() {
        writer.finish()?;
    }
    bar.finish();
    Ok(())
}
