//! train-rope: learns dictionaries of keys after position embedding, for schemes that code such keys.
//!
//! The recorded keys are rotated by positions that are spread evenly below `calibrate_peers.rope_positions`, like the positions
//! of the evaluation. Training is the same as in the stage `train`. The dictionaries of values are those of `train`. Groups that
//! an unfinished run of the same recipe completed are kept.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kvcsr_cache::{Rotary, registry};
use kvcsr_codec::{DictionaryGroup, DictionarySet, Kind, Shard, ShardHeader, ShardWriter};
use kvcsr_lab::rope;
use kvcsr_neuraldict::TrainConfig;
use serde_json::{Map, Value};

use crate::room::{Amount, Room};
use crate::stage::{Declaration, Need, Output, Part, Run, Sliced, Stage, remove_file};
use crate::stages::inputs::{model_layers, open_model, open_shard};
use crate::stages::sizes::{Sizes, product};
use crate::stages::train::{DICTIONARIES, Variant};
use crate::stages::{gather, merge};
use crate::text::Side;
use crate::{ui, workers};

/// See the module.
pub struct TrainRope;

static DECLARATION: Declaration = Declaration {
    name: "train-rope",
    about: "Learn dictionaries of keys after position embedding, for csr-S+rope",
    needs: &[Need::Model, Need::Corpora, Need::Stage("calibrate"), Need::Stage("merge"), Need::Stage("train")],
    version: 2,
    makes: &[Output::dictionaries(registry::ROPE_DICTIONARIES, DICTIONARIES)],
    sliced: Some(&TrainRope),
    ..Declaration::EMPTY
};

impl Stage for TrainRope {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn plan(&self, _run: &Run) -> String {
        "the same for keys after position embedding".to_owned()
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        let mut parameters = crate::stages::train::parameters(run)?;
        parameters.insert("rope_positions".into(), run.config.calibrate_peers.rope_positions.into());
        Ok(parameters)
    }

    fn needs_room(&self, run: &Run) -> Result<Room> {
        let config = Variant::of(run, Kind::Key).config;
        let threads = rayon::current_num_threads();
        let (mut memory, mut rotated, mut dictionaries) = (0, 0, 0);
        for layers in merge::read(&run.stage_dir("merge"))?.of(Kind::Key) {
            let shard = |side| open_shard(run, side, layers[0], Kind::Key);
            let (train, heldout) = (shard(Side::Calibration)?, shard(Side::Heldout)?);
            let vectors = train.tokens() * train.heads() * config.chunks * layers.len();
            memory = memory.max(config.memory_bytes(vectors, train.head_dim() / config.chunks));
            let tokens = train.tokens() + heldout.tokens();
            rotated = rotated.max(2 * product(&[tokens, train.heads(), train.head_dim(), layers.len()]));
            // A key's and a value's dictionary in the set, and the key's in a file of its own before.
            dictionaries += 3 * 4 * product(&[config.atoms, train.head_dim() / config.chunks]);
        }
        // The model is opened for its position embedding alone and closed before any training.
        let memory = TrainConfig::memory_bytes_of(threads, memory).max(Sizes::of(run)?.with_prefill(0, 0));
        Ok(Room {
            memory: Amount { bytes: memory, lower: "train.atoms, train.batch or threads" },
            disk: Amount {
                bytes: threads as u64 * rotated + dictionaries,
                lower: "train.atoms, calibrate.tokens or threads",
            },
        })
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        let work = groups(run)?;
        // If an unfinished run has the joined file, it may have removed some of the files that it was joined from.
        if !dir.join(DICTIONARIES).is_file() {
            train(run, &work, dir)?;
            join(run, &work, dir)?;
        }
        work.iter().try_for_each(|layers| remove_file(&dir.join(group_file(layers))))
    }
}

/// Joins the groups' keys and the values of `train` into one set.
fn join(run: &Run, work: &[Vec<usize>], dir: &Path) -> Result<()> {
    let mut set = DictionarySet::load(run.stage_dir("train").join(DICTIONARIES))?;
    set.groups.retain(|group| group.kind == Kind::Value);
    for layers in work {
        set.groups.extend(DictionarySet::load(dir.join(group_file(layers)))?.groups);
    }
    set.provenance.insert("keys".into(), "after position embedding".into());
    Ok(set.save(dir.join(DICTIONARIES))?)
}

impl Sliced for TrainRope {
    fn units(&self, run: &Run) -> Result<usize> {
        model_layers(run)
    }

    fn make_part(&self, run: &Run, part: Part, dir: &Path) -> Result<()> {
        train(run, &part.of(groups(run)?), dir)
    }

    fn gather(&self, run: &Run, slices: &[PathBuf], dir: &Path) -> Result<()> {
        let work = groups(run)?;
        Part::all(slices.len()).zip(slices).try_for_each(|(part, slice)| {
            let files: Vec<String> = part.of(&work).iter().map(|layers| group_file(layers)).collect();
            gather::copy(slice, dir, &files)
        })
    }
}

/// The groups of keys of the merge stage.
fn groups(run: &Run) -> Result<Vec<Vec<usize>>> {
    Ok(merge::read(&run.stage_dir("merge"))?.of(Kind::Key).to_vec())
}

/// Trains the groups of `work` whose files `dir` lacks.
fn train(run: &Run, work: &[Vec<usize>], dir: &Path) -> Result<()> {
    if work.is_empty() {
        return Ok(());
    }
    let rotary = open_model(run)?.0.rotary().clone();
    let sequence = run.finished("calibrate")?.recipe.parameters.get("sequence").and_then(Value::as_u64);
    let sequence = sequence.context("calibrate's record says how long its sequences are")? as usize;
    let bar = ui::bar("train-rope", work.len() as u64, "groups of keys");
    kvcsr_neuraldict::set_threads(1);
    workers::each(work, rayon::current_num_threads(), |layers| {
        let done = dir.join(group_file(layers));
        if !done.is_file() {
            train_group(run, dir, layers, &rotary, sequence)?.save(&done)?;
        }
        bar.inc(1);
        Ok(())
    })?;
    bar.finish();
    Ok(())
}

fn group_file(layers: &[usize]) -> String {
    format!("keys-{:02}.safetensors", layers.first().copied().unwrap_or(0))
}

fn train_group(run: &Run, dir: &Path, layers: &[usize], rotary: &Rotary, sequence: usize) -> Result<DictionarySet> {
    let mut files = Vec::new();
    let mut rotate = |side| -> Result<Vec<Shard>> {
        let mut shards = Vec::with_capacity(layers.len());
        for &layer in layers {
            let path =
                dir.join(format!("rotated-{layer:02}-{}", if side == Side::Heldout { "heldout" } else { "train" }));
            let positions = run.config.calibrate_peers.rope_positions.min(rotary.max_positions());
            rotated(&open_shard(run, side, layer, Kind::Key)?, &path, rotary.of(layer), (sequence, positions))?;
            shards.push(Shard::open(&path)?);
            files.push(path);
        }
        Ok(shards)
    };
    let (train, heldout) = (rotate(Side::Calibration)?, rotate(Side::Heldout)?);
    let config = Variant::of(run, Kind::Key).config;
    let trained = kvcsr_neuraldict::train_group(
        &config,
        &train.iter().collect::<Vec<_>>(),
        &heldout.iter().collect::<Vec<_>>(),
        &mut |_| {},
    )
    .with_context(|| format!("keys of layers {layers:?} after position embedding"))?;
    drop((train, heldout));
    files.iter().try_for_each(std::fs::remove_file)?;
    let dictionary = std::sync::Arc::new(trained.dictionary);
    Ok(DictionarySet {
        head_dim: dictionary.width() * config.chunks,
        groups: vec![DictionaryGroup {
            kind: Kind::Key,
            layers: layers.to_vec(),
            chunks: config.chunks,
            sparsity: config.sparsity,
            dictionary,
        }],
        provenance: [("model".to_owned(), run.config.model.clone())].into(),
    })
}

/// Writes `shard` with every key rotated by its position. Its tokens come in sequences. The sequences begin at places that are
/// spread evenly over `positions`; all begin at position 0 if `positions` is not above their length.
fn rotated(shard: &Shard, path: &Path, rotary: &Rotary, (sequence, positions): (usize, usize)) -> Result<()> {
    let (heads, d) = (shard.heads(), shard.head_dim());
    let header = ShardHeader { extra: Default::default(), ..shard.header().clone() };
    let mut out = ShardWriter::create(path, header)?;
    for (number, first) in (0..shard.tokens()).step_by(sequence.max(1)).enumerate() {
        let tokens = sequence.min(shard.tokens() - first);
        let mut rows = vec![0f32; tokens * heads * d];
        shard.read(d, first * heads..(first + tokens) * heads, &mut rows)?;
        let start = rope::spread(number, sequence, positions);
        out.append(&rope::rotated_from(&rows, heads, d, sequence, rotary, |_| start)?)?;
    }
    Ok(out.finish()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::Device;

    use super::*;

    #[test]
    fn keys_are_rotated_by_their_position_in_their_sequence() {
        let dir = tempfile::tempdir().unwrap();
        let (tokens, heads, d, sequence) = (7, 2, 4, 3);
        let header = ShardHeader { layer: 1, kind: Kind::Key, tokens, heads, head_dim: d, extra: Default::default() };
        let rows: Vec<f32> = (0..tokens * heads * d).map(|i| (i % 11) as f32 / 8.0).collect();
        let mut writer = ShardWriter::create(dir.path().join("in"), header).unwrap();
        writer.append(&rows).unwrap();
        writer.finish().unwrap();
        let rotary = Rotary::new(d, 100.0, 8, &Device::Cpu).unwrap();
        let positions = 8;
        let starts: Vec<usize> = (0..3).map(|number| rope::spread(number, sequence, positions)).collect();
        assert!(starts[0] == 0 && starts[1] > 0 && starts[1] != starts[2], "{starts:?}");
        let input = Shard::open(dir.path().join("in")).unwrap();
        rotated(&input, &dir.path().join("out"), &rotary, (sequence, positions)).unwrap();
        let out = Shard::open(dir.path().join("out")).unwrap();
        let mut found = vec![0f32; rows.len()];
        out.read(d, 0..tokens * heads, &mut found).unwrap();
        for (row, (x, y)) in rows.chunks(d).zip(found.chunks(d)).enumerate() {
            let token = row / heads;
            let position = (starts[token / sequence] + token % sequence) as f32;
            for j in 0..2 {
                let angle = position * 100f32.powf(-(j as f32) / 2.0);
                let expected = x[j] * angle.cos() - x[j + 2] * angle.sin();
                assert!((y[j] - expected).abs() < 2e-3, "row {row}: {y:?}");
            }
        }
        assert_eq!((out.layer(), out.kind()), (1, Kind::Key));
    }
}
