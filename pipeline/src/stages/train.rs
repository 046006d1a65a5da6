//! train: one NeuralDict per layer group and kind (Algorithm 1, steps 2 to 4).
//!
//! Groups that an unfinished run of the same recipe completed are kept.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use kvcsr_codec::{DictionaryGroup, DictionarySet, Kind, Shard};
use kvcsr_neuraldict::{GradientPath, Progress, Schedule, Selection, TrainConfig, Trained};
use kvcsr_report::{EpochRow, files};
use serde_json::{Map, Value};

use crate::config::Train as Settings;
use crate::stage::{Run, Stage, parameters_of};
use crate::stages::{merge, open_shard};
use crate::text::Part;
use crate::ui;

/// File of the trained dictionaries.
pub const DICTIONARIES: &str = "dictionaries.safetensors";
/// File of the k-means centroids they started from: the ablation.
pub const KMEANS: &str = "kmeans.safetensors";
/// File of the loss curves, one JSON object per group and epoch.
pub const EPOCHS: &str = "epochs.jsonl";

/// See the module.
pub struct Train;

impl Stage for Train {
    fn name(&self) -> &'static str {
        "train"
    }

    fn version(&self) -> u32 {
        1
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        let mut parameters = parameters_of(&run.config.train)?;
        parameters.insert("seed".into(), run.config.seed.into());
        parameters.insert("device".into(), run.config.device.clone().into());
        Ok(parameters)
    }

    fn inputs(&self, run: &Run) -> Result<Map<String, Value>> {
        let mut inputs = Map::new();
        inputs.insert("calibrate".into(), run.finished("calibrate")?.digest.into());
        inputs.insert("merge".into(), run.finished("merge")?.digest.into());
        Ok(inputs)
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        let groups = merge::read(&run.stage_dir("merge"))?;
        let work: Vec<(Kind, Vec<usize>)> = groups.iter().map(|(kind, layers)| (kind, layers.to_vec())).collect();
        let epochs = run.config.train.epochs as u64;
        let bar = ui::bar("train", work.len() as u64 * (epochs + 1), "epochs");
        let parts = dir.join("groups");
        std::fs::create_dir_all(&parts)?;
        // Whole groups side by side, each on one libtorch thread: quicker than threads inside of a
        // group, and the same result for any number of them.
        kvcsr_neuraldict::set_threads(1);
        let next = AtomicUsize::new(0);
        let worker = || -> Result<()> {
            while let Some((kind, layers)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                let part = GroupFiles::of(&parts, *kind, layers);
                if part.is_complete() {
                    bar.inc(epochs + 1);
                    continue;
                }
                let trained = train_group(run, *kind, layers, &part, &mut |progress| match progress {
                    Progress::KMeans { iteration, iterations, .. } => {
                        bar.set_message(format!("{}: k-means {}/{iterations}", part.name, iteration + 1));
                    }
                    Progress::Batch { epoch, mse, .. } => {
                        bar.set_message(format!("{}: epoch {epoch}, loss {mse:.4}", part.name));
                    }
                    Progress::Epoch { .. } => bar.inc(1),
                });
                if trained.is_err() {
                    // The others finish their group and stop.
                    next.store(work.len(), Ordering::Relaxed);
                    return trained;
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..rayon::current_num_threads()).map(|_| scope.spawn(worker)).collect();
            workers
                .into_iter()
                .try_for_each(|w| w.join().unwrap_or_else(|_| anyhow::bail!("a training thread panicked")))
        })?;
        bar.finish();
        assemble(run, dir, &parts, &work)
    }

    fn summary(&self, _run: &Run, dir: &Path) -> Result<Vec<String>> {
        let rows: Vec<EpochRow> = files::read_jsonl(&dir.join(EPOCHS))?;
        let mut lines = Vec::new();
        for kind in Kind::ALL {
            let of = |first: bool| {
                let mut errors = Vec::new();
                let last = rows.iter().map(|r| r.epoch).max().unwrap_or(0);
                for row in rows.iter().filter(|r| r.kind == kind) {
                    if row.epoch == if first { 0 } else { last } {
                        errors.push(row.heldout_relative);
                    }
                }
                errors
            };
            let (before, after) = (of(true), of(false));
            let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len().max(1) as f64;
            let better = before.iter().zip(&after).filter(|(b, a)| a < b).count();
            lines.push(format!(
                "{kind}s: held-out relative error {:.4} (k-means) -> {:.4} (NeuralDict), mean of {} groups; lower in {better}",
                mean(&before),
                mean(&after),
                after.len()
            ));
        }
        Ok(lines)
    }
}

/// The files of one finished group.
struct GroupFiles {
    name: String,
    dir: PathBuf,
}

impl GroupFiles {
    fn of(parts: &Path, kind: Kind, layers: &[usize]) -> Self {
        let name = match layers {
            [first, .., last] => format!("{kind}s-{first:02}-{last:02}"),
            _ => format!("{kind}s-{:02}", layers.first().copied().unwrap_or(0)),
        };
        Self { dir: parts.join(&name), name }
    }

    /// The record of epochs is written last.
    fn is_complete(&self) -> bool {
        self.dir.join(EPOCHS).is_file()
    }
}

fn train_group(
    run: &Run,
    kind: Kind,
    layers: &[usize],
    part: &GroupFiles,
    observer: &mut dyn FnMut(&Progress),
) -> Result<()> {
    let open = |side| layers.iter().map(|&l| open_shard(run, side, l, kind)).collect::<Result<Vec<Shard>>>();
    let (train, heldout) = (open(Part::Calibration)?, open(Part::Heldout)?);
    let config = train_config(&run.config.train, kind, run.config.seed, &run.config.device)?;
    let trained = kvcsr_neuraldict::train_group(
        &config,
        &train.iter().collect::<Vec<_>>(),
        &heldout.iter().collect::<Vec<_>>(),
        observer,
    )
    .with_context(|| format!("{kind}s of layers {layers:?}"))?;
    save(run, kind, layers, &config, part, &trained)
}

/// The training parameters of one kind: the profile's level is shared by the chunks.
pub fn train_config(settings: &Settings, kind: Kind, seed: u64, device: &str) -> Result<TrainConfig> {
    let chunks = match kind {
        Kind::Key => settings.key_chunks,
        Kind::Value => settings.value_chunks,
    };
    let word = |name: &str, text: &str| -> Result<Value> {
        if text.is_empty() {
            anyhow::bail!("train.{name} is empty")
        }
        Ok(Value::String(text.to_owned()))
    };
    Ok(TrainConfig {
        atoms: settings.atoms,
        sparsity: settings.sparsity / chunks,
        chunks,
        epochs: settings.epochs,
        batch: settings.batch,
        learning_rate: settings.learning_rate,
        schedule: serde_json::from_value::<Schedule>(word("schedule", &settings.schedule)?)
            .context("train.schedule")?,
        gradient: serde_json::from_value::<GradientPath>(word("gradient", &settings.gradient)?)
            .context("train.gradient")?,
        selection: serde_json::from_value::<Selection>(word("selection", &settings.selection)?)
            .context("train.selection")?,
        kmeans_iterations: settings.kmeans_iterations,
        kmeans_sample: settings.kmeans_sample,
        seed,
        device: device.to_owned(),
        ..TrainConfig::default()
    })
}

fn save(
    run: &Run,
    kind: Kind,
    layers: &[usize],
    config: &TrainConfig,
    part: &GroupFiles,
    trained: &Trained,
) -> Result<()> {
    std::fs::create_dir_all(&part.dir)?;
    let set = |dictionary: &kvcsr_codec::Dictionary| DictionarySet {
        head_dim: dictionary.width() * config.chunks,
        groups: vec![DictionaryGroup {
            kind,
            layers: layers.to_vec(),
            chunks: config.chunks,
            sparsity: config.sparsity,
            dictionary: std::sync::Arc::new(dictionary.clone()),
        }],
        provenance: [("model".to_owned(), run.config.model.clone())].into(),
    };
    set(&trained.dictionary).save(part.dir.join(DICTIONARIES))?;
    set(&trained.kmeans).save(part.dir.join(KMEANS))?;
    let rows: Vec<EpochRow> = trained
        .epochs
        .iter()
        .map(|e| EpochRow {
            group: part.name.clone(),
            kind,
            layers: layers.to_vec(),
            epoch: e.epoch,
            mse: e.mse,
            diversity: e.diversity,
            beta: e.beta,
            train_relative: e.train_relative,
            heldout_relative: e.heldout_relative,
            dead_atoms: e.dead_atoms,
            usage_entropy: e.usage_entropy,
            seconds: e.seconds,
        })
        .collect();
    Ok(files::write_jsonl(&part.dir.join(EPOCHS), &rows)?)
}

/// Joins the groups' files into one set each and one record of epochs.
fn assemble(run: &Run, dir: &Path, parts: &Path, work: &[(Kind, Vec<usize>)]) -> Result<()> {
    let mut provenance: std::collections::BTreeMap<String, String> = [
        ("method".to_owned(), "NeuralDict, Algorithm 1".to_owned()),
        ("kvcsr".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("model".to_owned(), run.config.model.clone()),
        ("calibration".to_owned(), run.finished("calibrate")?.digest),
        ("seed".to_owned(), run.config.seed.to_string()),
        ("train".to_owned(), serde_json::to_string(&run.config.train)?),
    ]
    .into();
    for file in [DICTIONARIES, KMEANS] {
        if file == KMEANS {
            provenance.insert("method".into(), "k-means centroids, unit length (start of NeuralDict)".into());
        }
        let mut head_dim = 0;
        let mut groups = Vec::with_capacity(work.len());
        for (kind, layers) in work {
            let set = DictionarySet::load(GroupFiles::of(parts, *kind, layers).dir.join(file))?;
            head_dim = set.head_dim;
            groups.extend(set.groups);
        }
        DictionarySet { head_dim, groups, provenance: provenance.clone() }.save(dir.join(file))?;
    }
    let temporary = dir.join("epochs.tmp");
    let mut epochs = File::create(&temporary)?;
    for (kind, layers) in work {
        epochs.write_all(&std::fs::read(GroupFiles::of(parts, *kind, layers).dir.join(EPOCHS))?)?;
    }
    epochs.sync_all()?;
    std::fs::rename(temporary, dir.join(EPOCHS))?;
    std::fs::remove_dir_all(parts)?;
    Ok(())
}
