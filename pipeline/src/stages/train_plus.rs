//! train-plus: learns what csr+@B is built from. For each layer these are atoms of whole tokens (keys and values of all heads),
//! and the principal axes of the residuals that the atoms leave. In the metric used, a squared error of 1 costs 1 nat, by the
//! measurements of `allocate`. Layers that an unfinished run of the same recipe completed are kept. The finished tables are tried
//! once, see [`trial`].

mod spread;
mod trial;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use kvcsr_cache::Geometry;
use kvcsr_cache::schemes::csr_plus;
use kvcsr_codec::{CodebookSet, Kind, Table};
use kvcsr_neuraldict::plus::{self, PlusConfig};
use kvcsr_report::files;
use serde_json::{Map, Value, json};

use super::sizes::{PROGRAM, Sizes, product};
use super::{allocate, artefacts, gather};
use crate::config::{Config, check};
use crate::room::{Amount, Room};
use crate::stage::{Artefact, Declaration, Need, Output, Part, Run, Sliced, Stage, remove_file};
use crate::stages::inputs::{PREFILL_CHUNK, corpus, layers, model_layers, open_model, open_shard, text_parameters};
use crate::text::Side;
use crate::{atomic, ui, workers};

/// File of the mean squares of queries.
const QUERIES: &str = "queries.json";
/// No channel counts less than this share of the mean: queries of other texts may differ.
const LEAST: f64 = 0.01;
/// File of the tables.
pub const FILE: &str = "csr-plus.safetensors";

/// See the module.
pub struct TrainPlus;

static DECLARATION: Declaration = Declaration {
    name: "train-plus",
    about: "Learn atoms of whole tokens and the axes of what they leave, for csr+@B",
    version: 3,
    needs: &[Need::Model, Need::Corpora, Need::Stage("calibrate"), Need::Stage("allocate")],
    makes: &[Output { file: FILE, artefact: Artefact::Tables(csr_plus::TABLES) }],
    aside: &[trial::TRIALS],
    grows: &["trial", "trial_documents"],
    sliced: Some(&TrainPlus),
    ..Declaration::EMPTY
};

impl Stage for TrainPlus {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn check(&self, config: &Config) -> Result<()> {
        let settings = &config.train_plus;
        check::positive(
            "train_plus",
            &[
                ("atoms", settings.atoms),
                ("iterations", settings.iterations),
                ("trial_context", settings.trial_context),
            ],
        )?;
        check::continuation("train_plus", settings.trial_continuation)?;
        ensure!(
            settings.trial.iter().all(|bits| (0.25..=8.0).contains(bits)),
            "train_plus.trial = {:?}: bits per channel from 0.25 to 8 are expected",
            settings.trial
        );
        ensure!(
            settings.trial.iter().enumerate().all(|(at, bits)| !settings.trial[..at].contains(bits)),
            "train_plus.trial = {:?}: each value is expected only once",
            settings.trial
        );
        ensure!(
            settings.key_weight > 0.0 && settings.key_weight.is_finite(),
            "train_plus.key_weight = {}: a number above 0 is expected",
            settings.key_weight
        );
        Ok(())
    }

    fn plan(&self, run: &Run) -> String {
        format!("{} atoms of whole tokens per layer, and the axes of what they leave", run.config.train_plus.atoms)
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        text_parameters(run, &run.config.train_plus)
    }

    fn needs_room(&self, run: &Run) -> Result<Room> {
        let settings = &run.config.train_plus;
        let keys = open_shard(run, Side::Calibration, 0, Kind::Key)?;
        // Keys and values of a token together.
        let (tokens, width) = (keys.tokens(), 2 * keys.heads() * keys.head_dim());
        // f16 on the disk, f32 while they are made.
        let tables = 2 * (product(&[settings.atoms, width]) + product(&[width, width]));
        // A layer's tokens as read, in the metric, and the residuals that the atoms leave.
        let layer = 3 * 4 * product(&[tokens, width]) + 4 * tables;
        let layers = layers(run)? as u64;
        let learning = Amount {
            bytes: PROGRAM + rayon::current_num_threads() as u64 * layer,
            lower: "calibrate.tokens or threads",
        };
        let tokens = settings.trial_context + settings.trial_continuation;
        let sizes = Sizes::of(run)?;
        let trial = Amount {
            // The tables as they are read, in f16, and as each scheme holds them, in f32.
            bytes: sizes.with_prefill(tokens, 2)
                + sizes.distributions(settings.trial_continuation)
                + layers * tables * (1 + 2 * settings.trial.len() as u64),
            lower: "train_plus.trial_context",
        };
        Ok(Room {
            memory: if learning.bytes >= trial.bytes { learning } else { trial },
            // Each layer's file, and all of them joined.
            disk: Amount { bytes: 2 * layers * tables, lower: "train_plus.atoms" },
        })
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        let all: Vec<usize> = (0..layers(run)?).collect();
        // If an unfinished run has the joined file, it may have removed some of the files that it was joined from.
        if !dir.join(FILE).is_file() {
            make_layers(run, &all, dir)?;
            join(run, &all, dir)?;
        }
        all.iter().try_for_each(|&layer| remove_file(&dir.join(layer_file(layer))))?;
        trial::run(run, &dir.join(FILE), &dir.join(trial::TRIALS))
    }

    fn summary(&self, run: &Run, dir: &Path) -> Result<Vec<String>> {
        let bytes = std::fs::metadata(dir.join(FILE))?.len();
        let mut lines = vec![format!("{} atoms per layer, {:.1} MB", run.config.train_plus.atoms, bytes as f64 / 1e6)];
        let trials = dir.join(trial::TRIALS);
        if trials.is_file() {
            lines.extend(trial::lines(&files::read_jsonl(&trials)?));
        }
        Ok(lines)
    }
}

/// Joins the layers' files into one.
fn join(run: &Run, all: &[usize], dir: &Path) -> Result<()> {
    let settings = &run.config.train_plus;
    // What is tried afterwards does not change the tables.
    let learning = json!({
        "atoms": settings.atoms,
        "iterations": settings.iterations,
        "key_weight": settings.key_weight,
        "query_texts": settings.query_texts,
    });
    let mut joined = artefacts::joined(all.iter().map(|&layer| dir.join(layer_file(layer))))?;
    joined.provenance = [
        ("model".to_owned(), run.config.model.clone()),
        ("calibration".to_owned(), run.finished("calibrate")?.digest),
        ("costs".to_owned(), run.finished("allocate")?.digest),
        ("seed".to_owned(), run.config.seed.to_string()),
        ("train-plus".to_owned(), serde_json::to_string(&learning)?),
    ]
    .into();
    Ok(joined.save(dir.join(FILE))?)
}

impl Sliced for TrainPlus {
    fn units(&self, run: &Run) -> Result<usize> {
        model_layers(run)
    }

    fn make_part(&self, run: &Run, part: Part, dir: &Path) -> Result<()> {
        // A run that only tries more already has its tables.
        if dir.join(FILE).is_file() {
            return Ok(());
        }
        make_layers(run, &part.of(0..layers(run)?), dir)
    }

    fn gather(&self, run: &Run, slices: &[PathBuf], dir: &Path) -> Result<()> {
        let all = layers(run)?;
        for (part, slice) in Part::all(slices.len()).zip(slices) {
            let files: Vec<String> = part.of(0..all).into_iter().map(layer_file).chain([QUERIES.to_owned()]).collect();
            gather::copy(slice, dir, &files)?;
        }
        Ok(())
    }
}

fn layer_file(layer: usize) -> String {
    format!("layer-{layer:02}.safetensors")
}

/// Makes the tables of those layers whose files `dir` lacks.
fn make_layers(run: &Run, work: &[usize], dir: &Path) -> Result<()> {
    if work.is_empty() {
        return Ok(());
    }
    let slopes = allocate::slopes(&run.stage_dir("allocate"))?;
    let queries = match run.config.train_plus.query_texts {
        0 => None,
        _ => Some(query_energy(run, &dir.join(QUERIES))?),
    };
    let all = layers(run)?;
    let bar = ui::bar("train-plus", work.len() as u64, "layers");
    kvcsr_neuraldict::set_threads(1);
    // Layers run in parallel, each on one thread: the result is the same for any number of threads.
    workers::each(work, rayon::current_num_threads(), |&layer| {
        let file = dir.join(layer_file(layer));
        if !file.is_file() {
            let slope = |kind| {
                let missing = || format!("allocate has measured no {kind}s of layer {layer}");
                slopes.get(&(layer, kind)).copied().with_context(missing)
            };
            let slopes = [slope(Kind::Key)? * run.config.train_plus.key_weight, slope(Kind::Value)?];
            layer_tables(run, (layer, all), slopes, queries.as_ref().map(|queries| &queries[layer][..]))?.save(file)?;
        }
        bar.inc(1);
        Ok(())
    })?;
    bar.finish();
    Ok(())
}

/// How large queries are along each channel of the keys, by layer, `(Hkv D)`: the mean square over the last queries of
/// calibration texts and over the query heads of a key-value head. Keys are coded before position embedding, which rotates the
/// two channels of a pair into each other as tokens move apart. So both channels of a pair have the same number.
fn query_energy(run: &Run, path: &Path) -> Result<Vec<Vec<f64>>> {
    if path.is_file() {
        return atomic::read_json(path);
    }
    let (decoder, tokenizer) = open_model(run)?;
    let Geometry { layers, kv_heads, head_dim: d } = decoder.geometry();
    let (count, length) = (run.config.train_plus.query_texts, run.config.calibrate.sequence);
    let bar = ui::bar("train-plus", (count * run.config.corpora.len()) as u64, "texts whose queries are seen");
    let mut energy = vec![vec![0f64; kv_heads * d]; layers];
    for id in &run.config.corpora {
        for ids in corpus(run, &tokenizer, id, Side::Calibration, length, count)? {
            let snapshot = decoder.prefill(&ids, PREFILL_CHUNK)?;
            for (energy, last) in energy.iter_mut().zip(&snapshot.queries) {
                let (_, heads, tokens, _) = last.queries.dims4()?;
                let rows = last.queries.flatten_all()?.to_vec1::<f32>()?;
                let share = last.scale * last.scale / (tokens * heads / kv_heads * count) as f64;
                for (at, row) in rows.chunks_exact(d).enumerate() {
                    let own = &mut energy[at / tokens / (heads / kv_heads) * d..][..d];
                    own.iter_mut().zip(row).for_each(|(sum, x)| *sum += share * f64::from(*x) * f64::from(*x));
                }
            }
            bar.inc(1);
        }
    }
    bar.finish();
    for energy in energy.iter_mut().flat_map(|energy| energy.chunks_exact_mut(d)) {
        for channel in 0..d / 2 {
            let mean = 0.5 * (energy[channel] + energy[channel + d / 2]);
            (energy[channel], energy[channel + d / 2]) = (mean, mean);
        }
    }
    atomic::write_json(path, &energy)?;
    Ok(energy)
}

/// The tables of one of the `layers`. `slopes` are nats per unit of relative squared error of its keys and of its values.
/// `queries` are the mean squares of its queries along each channel of keys; none if all channels count equally.
fn layer_tables(
    run: &Run,
    (layer, layers): (usize, usize),
    slopes: [f64; 2],
    queries: Option<&[f64]>,
) -> Result<CodebookSet> {
    let settings = &run.config.train_plus;
    let (mut tokens, mut metric, mut shape) = (Vec::new(), Vec::new(), (0, 0, 0));
    for (at, (kind, slope)) in Kind::ALL.into_iter().zip(slopes).enumerate() {
        let shard = open_shard(run, Side::Calibration, layer, kind)?;
        let (count, heads, d) = (shard.tokens(), shard.heads(), shard.head_dim());
        let half = heads * d;
        let mut rows = vec![0f32; count * half];
        shard.read(d, 0..count * heads, &mut rows)?;
        // What an error costs along each channel; on average it is what `allocate` measured.
        let weights = match (kind, queries) {
            (Kind::Key, Some(queries)) => queries.to_vec(),
            _ => vec![1.0; half],
        };
        // In `allocate`, errors are relative to the spread of a text's tokens around their mean.
        let energy = spread::of_texts(&rows, &weights, run.config.calibrate.sequence);
        let least = weights.iter().sum::<f64>() / half as f64 * LEAST;
        let scale = slope / energy.max(1e-30);
        metric.extend(weights.iter().map(|w| (scale * w.max(least)).sqrt() as f32));
        tokens.resize(count * 2 * half, 0.0);
        for (token, row) in tokens.chunks_exact_mut(2 * half).zip(rows.chunks_exact(half)) {
            token[at * half..][..half].copy_from_slice(row);
        }
        shape = (count, heads, d);
    }
    let (count, heads, d) = shape;
    ensure!(
        count >= settings.atoms,
        "{count} calibration tokens are fewer than train_plus.atoms = {}: raise calibrate.tokens",
        settings.atoms
    );
    let seed = run.config.seed.wrapping_add(layer as u64);
    let found =
        plus::fit(&tokens, &metric, PlusConfig { atoms: settings.atoms, iterations: settings.iterations, seed })?;
    let n = metric.len();
    let mut set = CodebookSet::new(csr_plus::TABLES, layers, heads, d);
    for (name, shape, values) in [
        (csr_plus::ATOMS, &[settings.atoms, n][..], &found.atoms),
        (csr_plus::METRIC, &[n], &metric),
        (csr_plus::BASIS, &[n, n], &found.basis),
        (csr_plus::DEVIATIONS, &[n], &found.deviations),
    ] {
        set.insert(layer, Kind::Key, name, Table::new(shape, values)?);
    }
    Ok(set)
}
