//! Trains many groups in parallel. The train stages share this code.
//!
//! Groups that an unfinished run of the same recipe completed are kept. A group that it had begun
//! continues from its checkpoint.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use kvcsr_codec::{DictionaryGroup, DictionarySet, Kind, Shard};
use kvcsr_neuraldict::{Inputs, Progress, TrainConfig, Trained, train_group_from};
use kvcsr_report::{EpochRow, files};

use super::variant::Variant;
use crate::atomic;
use crate::room::{self, Amount, Room};
use crate::stage::{Part, Run, remove_dir};
use crate::stages::inputs::{model_layers, open_shard, open_weights};
use crate::stages::provenance::{self, Training};
use crate::stages::sizes::product;
use crate::stages::{gather, merge};
use crate::text::Side;
use crate::{ui, workers};

/// File of the trained dictionaries.
pub const DICTIONARIES: &str = "dictionaries.safetensors";
/// File of the k-means centroids they started from: the ablation.
pub const KMEANS: &str = "kmeans.safetensors";
/// File of the loss curves, one JSON object per group and epoch.
pub const EPOCHS: &str = "epochs.jsonl";

/// Folder of the groups' own files, until all are there.
const GROUPS: &str = "groups";

/// What one stage trains: the method in words, and a variant of training for each kind.
pub struct Plan {
    pub stage: &'static str,
    pub method: String,
    pub keys: Variant,
    pub values: Variant,
    /// Whether the k-means dictionaries are kept as a set of their own.
    pub keep_start: bool,
}

impl Plan {
    /// How each kind is trained, for the provenance of the set.
    fn training(&self) -> [Training<'_>; 2] {
        Kind::ALL.map(|kind| {
            let Variant { config, weighted } = self.of(kind);
            Training { kind, config, weighted: *weighted }
        })
    }

    pub fn of(&self, kind: Kind) -> &Variant {
        match kind {
            Kind::Key => &self.keys,
            Kind::Value => &self.values,
        }
    }

    /// Trains a dictionary for every group of the merge stage and joins them in `dir`.
    pub fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        // Written last: an unfinished run that has it has joined all groups.
        if !dir.join(EPOCHS).is_file() {
            let work = groups(run)?;
            let folder = self.train(run, &work, dir)?;
            self.assemble(run, dir, &folder, &work)?;
        }
        remove_dir(&dir.join(GROUPS))
    }

    /// Trains a dictionary for every group of one slice, in files of their own in `dir`.
    pub fn make_part(&self, run: &Run, part: Part, dir: &Path) -> Result<()> {
        self.train(run, &part.of(groups(run)?), dir).map(drop)
    }

    /// Trains the groups that are missing in the folder of groups in `dir`, and returns that folder.
    fn train(&self, run: &Run, work: &[(Kind, Vec<usize>)], dir: &Path) -> Result<PathBuf> {
        let epochs = self.keys.config.epochs as u64;
        let bar = ui::bar(self.stage, work.len() as u64 * (epochs + 1), "epochs");
        let folder = dir.join(GROUPS);
        std::fs::create_dir_all(&folder)?;
        // Whole groups train in parallel, each on one libtorch thread. This is faster than threads inside a
        // group, and the result is the same for any number of threads.
        kvcsr_neuraldict::set_threads(1);
        let Workers { count, each } = self.workers(run, work)?;
        if count < rayon::current_num_threads() {
            ui::line(self.stage, &format!("{count} groups at once: each may take {}", ui::bytes(each)));
        }
        workers::each(work, count, |(kind, layers)| {
            let own = GroupFiles::of(&folder, *kind, layers);
            if own.is_complete() {
                bar.inc(epochs + 1);
                return Ok(());
            }
            let config = &self.of(*kind).config;
            self.train_group(run, *kind, layers, &own, &mut |progress| match progress {
                Progress::KMeans { iteration, iterations, .. } => {
                    bar.set_message(format!("{}: k-means {}/{iterations}", own.name, iteration + 1));
                }
                Progress::Batch { epoch, batch, batches, mse, .. } => {
                    bar.set_message(format!(
                        "{}: epoch {epoch}, batch {}/{batches}, loss {mse:.4}",
                        own.name,
                        batch + 1
                    ));
                }
                Progress::Epoch { record, .. } => {
                    bar.set_message(format!(
                        "{}: epoch {}, held-out error {:.4}, {} dead atoms, usage {:.1} of {:.1} bits",
                        own.name,
                        record.epoch,
                        record.heldout_relative,
                        record.dead_atoms,
                        record.usage_entropy,
                        (config.atoms as f64).log2()
                    ));
                    bar.inc(1);
                }
                Progress::Resumed { epoch, batch, .. } => {
                    ui::line(self.stage, &format!("{} goes on at epoch {epoch}, batch {batch}", own.name));
                    bar.inc(*epoch as u64);
                }
            })
        })?;
        bar.finish();
        Ok(folder)
    }

    /// What training takes. Memory: that of all groups that are trained at once. Disk: each group's dictionary, start and
    /// checkpoint, and the sets that they are joined into.
    pub fn needs_room(&self, run: &Run) -> Result<Room> {
        let work = groups(run)?;
        let Workers { count, each } = self.workers(run, &work)?;
        let mut dictionaries = 0;
        for (kind, layers) in &work {
            let config = &self.of(*kind).config;
            let width = open_shard(run, Side::Heldout, layers[0], *kind)?.head_dim() / config.chunks;
            dictionaries += 4 * product(&[config.atoms, width]);
        }
        let sets = if self.keep_start { 4 } else { 3 };
        Ok(Room {
            memory: Amount {
                bytes: TrainConfig::memory_bytes_of(count, each),
                lower: "train.memory_gb, train.atoms, train.batch or threads",
            },
            disk: Amount { bytes: sets * dictionaries, lower: "train.atoms" },
        })
    }

    /// How many groups are trained at once: one for each thread, or fewer if their memory does not fit.
    fn workers(&self, run: &Run, work: &[(Kind, Vec<usize>)]) -> Result<Workers> {
        let allowed = match run.config.train.memory_gb {
            gb if gb > 0.0 => (gb * (1u64 << 30) as f64) as u64,
            _ => room::most_memory() / 2,
        };
        let mut most = 1;
        for (kind, layers) in work {
            let config = &self.of(*kind).config;
            let mut vectors = 0;
            let mut width = 1;
            for &layer in layers {
                let shard = open_shard(run, Side::Calibration, layer, *kind)?;
                vectors += shard.tokens() * shard.heads() * config.chunks;
                width = shard.head_dim() / config.chunks;
            }
            most = most.max(config.memory_bytes(vectors, width));
        }
        let fit = usize::try_from(allowed / most).unwrap_or(usize::MAX);
        Ok(Workers { count: rayon::current_num_threads().min(fit.max(1)), each: most })
    }

    fn train_group(
        &self,
        run: &Run,
        kind: Kind,
        layers: &[usize],
        own: &GroupFiles,
        observer: &mut dyn FnMut(&Progress),
    ) -> Result<()> {
        std::fs::create_dir_all(&own.dir)?;
        let Variant { config, weighted } = self.of(kind);
        let group = GroupShards::open(run, kind, layers, *weighted)?;
        let trained = group
            .with_inputs(|inputs| {
                let every = Duration::try_from_secs_f64(run.config.train.checkpoint_seconds).unwrap_or(Duration::MAX);
                let inputs = Inputs { folder: Some(&own.dir), checkpoint_every: every, ..inputs };
                train_group_from(config, &inputs, observer)
            })
            .with_context(|| format!("{kind}s of layers {layers:?}"))?;
        save(run, kind, layers, config, own, &trained)
    }

    /// Joins the groups' files into the sets and one file of epochs.
    fn assemble(&self, run: &Run, dir: &Path, folder: &Path, work: &[(Kind, Vec<usize>)]) -> Result<()> {
        let rows = work
            .iter()
            .map(|(kind, layers)| {
                let rows: Vec<EpochRow> = files::read_jsonl(&GroupFiles::of(folder, *kind, layers).dir.join(EPOCHS))?;
                Ok((
                    rows.first().context("no epochs")?.heldout_relative,
                    rows.last().context("no epochs")?.heldout_relative,
                ))
            })
            .collect::<Result<Vec<(f64, f64)>>>()?;
        let start = (KMEANS, "k-means centroids, unit length (start of NeuralDict)");
        let sets = [(DICTIONARIES, self.method.as_str())].into_iter().chain(self.keep_start.then_some(start));
        for (file, method) in sets {
            let losses = rows.iter().map(|&(first, last)| if file == KMEANS { first } else { last }).collect();
            let provenance = provenance::of(run, self.training(), method, losses)?;
            let mut head_dim = 0;
            let mut groups = Vec::with_capacity(work.len());
            for (kind, layers) in work {
                let set = DictionarySet::load(GroupFiles::of(folder, *kind, layers).dir.join(file))?;
                head_dim = set.head_dim;
                groups.extend(set.groups);
            }
            DictionarySet { head_dim, groups, provenance }.save(dir.join(file))?;
        }
        let mut epochs = Vec::new();
        for (kind, layers) in work {
            epochs.extend(std::fs::read(GroupFiles::of(folder, *kind, layers).dir.join(EPOCHS))?);
        }
        atomic::write(&dir.join(EPOCHS), &epochs)
    }
}

/// How many groups are trained at once, and the most bytes that one of them takes.
struct Workers {
    count: usize,
    each: u64,
}

/// The groups of the merge stage, keys first.
fn groups(run: &Run) -> Result<Vec<(Kind, Vec<usize>)>> {
    let groups = merge::read(&run.stage_dir("merge"))?;
    Ok(groups.iter().map(|(kind, layers)| (kind, layers.to_vec())).collect())
}

/// The largest number of groups that training can have: one for each layer and kind.
pub fn most_groups(run: &Run) -> Result<usize> {
    Ok(Kind::ALL.len() * model_layers(run)?)
}

/// Copies the groups that slices have trained into `dir`.
pub fn gather(run: &Run, slices: &[PathBuf], dir: &Path) -> Result<()> {
    let work = groups(run)?;
    for (part, slice) in Part::all(slices.len()).zip(slices) {
        for (kind, layers) in part.of(&work) {
            let [from, to] = [slice, dir].map(|at| GroupFiles::of(&at.join(GROUPS), *kind, layers).dir);
            // The file of epochs is copied last: it says that the group is complete.
            gather::copy(&from, &to, &[DICTIONARIES, KMEANS, EPOCHS].map(str::to_owned))?;
        }
    }
    Ok(())
}

/// The files of one finished group.
struct GroupFiles {
    name: String,
    dir: PathBuf,
}

impl GroupFiles {
    fn of(folder: &Path, kind: Kind, layers: &[usize]) -> Self {
        let name = match layers {
            [first, .., last] => format!("{kind}s-{first:02}-{last:02}"),
            _ => format!("{kind}s-{:02}", layers.first().copied().unwrap_or(0)),
        };
        Self { dir: folder.join(&name), name }
    }

    /// Whether the group is complete: the file of epochs is written last.
    fn is_complete(&self) -> bool {
        self.dir.join(EPOCHS).is_file()
    }
}

fn save(
    run: &Run,
    kind: Kind,
    layers: &[usize],
    config: &TrainConfig,
    own: &GroupFiles,
    trained: &Trained,
) -> Result<()> {
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
    set(&trained.dictionary).save(own.dir.join(DICTIONARIES))?;
    set(&trained.kmeans).save(own.dir.join(KMEANS))?;
    let rows: Vec<EpochRow> = trained
        .epochs
        .iter()
        .map(|e| EpochRow {
            group: own.name.clone(),
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
    Ok(files::write_jsonl(&own.dir.join(EPOCHS), &rows)?)
}

/// The open shards of one group.
pub struct GroupShards {
    train: Vec<Shard>,
    heldout: Vec<Shard>,
    weights: Option<Vec<Shard>>,
    heldout_weights: Option<Vec<Shard>>,
}

impl GroupShards {
    /// Opens the shards of a group; with `weighted`, the recorded weights too.
    pub fn open(run: &Run, kind: Kind, layers: &[usize], weighted: bool) -> Result<Self> {
        let open = |side| layers.iter().map(|&l| open_shard(run, side, l, kind)).collect::<Result<Vec<Shard>>>();
        let weights = |side| layers.iter().map(|&l| open_weights(run, side, l, kind)).collect::<Result<Vec<Shard>>>();
        Ok(Self {
            train: open(Side::Calibration)?,
            heldout: open(Side::Heldout)?,
            weights: if weighted { Some(weights(Side::Calibration)?) } else { None },
            heldout_weights: if weighted { Some(weights(Side::Heldout)?) } else { None },
        })
    }

    /// Lends the shards in the form that a trainer takes, with the weights if they were opened.
    pub fn with_inputs<R>(&self, f: impl FnOnce(Inputs<'_>) -> R) -> R {
        let (train, heldout): (Vec<&Shard>, Vec<&Shard>) = (self.train.iter().collect(), self.heldout.iter().collect());
        let weights: Option<Vec<&Shard>> = self.weights.as_ref().map(|w| w.iter().collect());
        let heldout_weights: Option<Vec<&Shard>> = self.heldout_weights.as_ref().map(|w| w.iter().collect());
        f(Inputs {
            train: &train,
            heldout: &heldout,
            weights: weights.as_deref(),
            heldout_weights: heldout_weights.as_deref(),
            ..Inputs::default()
        })
    }
}
