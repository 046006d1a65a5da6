//! calibrate-peers: learns what the calibrated peers need: Lexico's dictionaries, CQ's centroids, CommVQ's codebooks, SVDq's
//! basis.
//!
//! All are learned from the vectors that `calibrate` recorded. The stage runs the model over a part of that text again, to see
//! how much attention each token gets. Layers that an unfinished run of the same recipe completed are kept.

mod commvq;
mod cq;
mod layer;
mod lexico;
mod svdq;
mod weights;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kvcsr_cache::schemes;
use kvcsr_codec::{CodebookSet, DictionarySet};
use serde_json::{Map, Value};

use self::layer::{Layer, Sample};
use crate::config::{Config, sections};
use crate::room::{Amount, Room};
use crate::stage::{Artefact, Declaration, Need, Output, Part, Run, Sliced, Stage, parameters_of};
use crate::stages::inputs::{layers, model_layers};
use crate::stages::sizes::{PROGRAM, Sizes, product};
use crate::stages::{artefacts, gather};
use crate::{ui, workers};

/// The set of Lexico's dictionaries with as many atoms as in its paper.
const LEXICO_4096: &str = "lexico-4096";
/// File of the attention per token, kept while the stage runs.
const WEIGHTS: &str = "weights.safetensors";

/// Folder of the layers' own files, until all are there.
const LAYERS: &str = "layers";

/// See the module.
pub struct CalibratePeers;

static DECLARATION: Declaration = Declaration {
    name: "calibrate-peers",
    about: "Learn what the calibrated peers need: Lexico's dictionaries, CQ's and CommVQ's codebooks, SVDq's basis",
    needs: &[Need::Model, Need::Corpora, Need::Stage("calibrate")],
    makes: &[
        Output { file: "lexico.safetensors", artefact: Artefact::PeerDictionaries(schemes::lexico::DICTIONARIES) },
        Output { file: "lexico-4096.safetensors", artefact: Artefact::PeerDictionaries(LEXICO_4096) },
        Output { file: "<method>.safetensors", artefact: Artefact::Codebooks },
    ],
    version: 3,
    grows: &["methods", "cq"],
    sliced: Some(&CalibratePeers),
    ..Declaration::EMPTY
};

impl Stage for CalibratePeers {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn check(&self, config: &Config) -> Result<()> {
        Task::all(&config.calibrate_peers).map(drop)
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        let mut parameters = parameters_of(&run.config.calibrate_peers)?;
        parameters.insert("seed".into(), run.config.seed.into());
        Ok(parameters)
    }

    fn needs_room(&self, run: &Run) -> Result<Room> {
        let sample = Sample::read(run)?;
        let settings = &run.config.calibrate_peers;
        let sizes = Sizes::of(run)?;
        let (layers, heads, _) = sizes.shape();
        let threads = rayon::current_num_threads() as u64;
        let tasks: Vec<TaskRoom> =
            Task::all(settings)?.iter().map(|task| task.room(settings, &sample, &sizes)).collect();
        let learning = tasks.iter().map(|task| task.memory).max().unwrap_or(0);
        // First the model finds the attention that each token gets, one sequence at a time. After that the model is closed.
        let attention = sizes.with_prefill(sample.length, 1);
        let weights = 2 * 4 * product(&[layers, sample.tokens(), heads]);
        let made: u64 = tasks.iter().map(|task| task.layer_bytes * layers as u64).sum();
        let scratch = tasks.iter().map(|task| task.scratch).max().unwrap_or(0);
        Ok(Room {
            memory: Amount {
                bytes: attention.max(PROGRAM + weights + threads * learning),
                lower: "calibrate_peers.tokens, calibrate_peers.lexico_tokens or threads",
            },
            // Each layer's files, and all of them joined.
            disk: Amount { bytes: 2 * made + threads * scratch, lower: "calibrate_peers.methods" },
        })
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        // Files that a run with fewer methods has made are complete.
        let all = Task::all(&run.config.calibrate_peers)?;
        let todo: Vec<Task> = all.into_iter().filter(|task| !dir.join(task.file()).is_file()).collect();
        let layers = layers(run)?;
        let folder = dir.join(LAYERS);
        make_layers(run, &units(todo.clone(), layers), dir)?;
        for task in todo {
            task.assemble(run, layers, &folder, dir)?;
        }
        std::fs::remove_dir_all(folder)?;
        Ok(std::fs::remove_file(dir.join(WEIGHTS))?)
    }

    fn summary(&self, run: &Run, dir: &Path) -> Result<Vec<String>> {
        let size = |file: &str| -> Result<u64> { Ok(std::fs::metadata(dir.join(file))?.len()) };
        Task::all(&run.config.calibrate_peers)?
            .iter()
            .map(|task| Ok(format!("{:<12} {:.1} MB", task.name(), size(&task.file())? as f64 / 1e6)))
            .collect()
    }
}

impl Sliced for CalibratePeers {
    fn units(&self, run: &Run) -> Result<usize> {
        Ok(Task::all(&run.config.calibrate_peers)?.len() * model_layers(run)?)
    }

    fn make_part(&self, run: &Run, part: Part, dir: &Path) -> Result<()> {
        let mut work = part.of(all_units(run)?);
        work.retain(|(_, task)| !dir.join(task.file()).is_file());
        if work.is_empty() { Ok(()) } else { make_layers(run, &work, dir) }
    }

    fn gather(&self, run: &Run, slices: &[PathBuf], dir: &Path) -> Result<()> {
        let all = all_units(run)?;
        for (part, slice) in Part::all(slices.len()).zip(slices) {
            let own = part.of(&all).into_iter().map(|(layer, task)| format!("{LAYERS}/{}", task.layer_file(*layer)));
            gather::copy(slice, dir, &own.chain([WEIGHTS.to_owned()]).collect::<Vec<_>>())?;
        }
        Ok(())
    }
}

/// Every layer of every method.
fn units(tasks: Vec<Task>, layers: usize) -> Vec<(usize, Task)> {
    tasks.into_iter().flat_map(|task| (0..layers).map(move |layer| (layer, task.clone()))).collect()
}

fn all_units(run: &Run) -> Result<Vec<(usize, Task)>> {
    Ok(units(Task::all(&run.config.calibrate_peers)?, layers(run)?))
}

/// Makes the files of those layers and methods that the folder of layers in `dir` lacks.
fn make_layers(run: &Run, work: &[(usize, Task)], dir: &Path) -> Result<()> {
    let sample = Sample::read(run)?;
    let (weights, rotary) = weights::read(run, &sample, &dir.join(WEIGHTS))?;
    kvcsr_neuraldict::set_threads(1);
    let bar = ui::bar("calibrate-peers", work.len() as u64, "layers x methods");
    let folder = dir.join(LAYERS);
    std::fs::create_dir_all(&folder)?;
    // Layers run in parallel, each on one thread: the result is the same for any number of threads.
    workers::each(work, rayon::current_num_threads(), |(layer, task)| {
        let title = || format!("{}, layer {layer}", task.name());
        bar.set_message(title());
        let cx = Layer {
            run,
            sample: &sample,
            weights: &weights,
            rotary: rotary.of(*layer),
            layer: *layer,
            folder: &folder,
        };
        task.make(&cx).with_context(title)?;
        bar.inc(1);
        Ok(())
    })?;
    bar.finish();
    Ok(())
}

/// The memory and disk that one task takes for one layer, in bytes.
struct TaskRoom {
    memory: u64,
    /// The size of its file.
    layer_bytes: u64,
    /// The size of files that exist only while it is made.
    scratch: u64,
}

/// One thing that the stage makes.
#[derive(Debug, Clone, PartialEq)]
enum Task {
    Cq { level: String, channels: usize, bits: usize },
    CommVq,
    Svdq,
    Lexico { set: &'static str, atoms: usize },
}

impl Task {
    /// All tasks that the settings name, in the order in which they are made.
    fn all(settings: &sections::CalibratePeers) -> Result<Vec<Self>> {
        const METHODS: [&str; 5] = ["svdq", "cq", "lexico", LEXICO_4096, "commvq"];
        if let Some(unknown) = settings.methods.iter().find(|name| !METHODS.contains(&name.as_str())) {
            bail!("calibrate_peers.methods: `{unknown}` is none of {}", METHODS.join(", "));
        }
        let mut all = Vec::new();
        for method in METHODS.iter().filter(|&&method| settings.methods.iter().any(|name| name == method)) {
            match *method {
                "svdq" => all.push(Self::Svdq),
                "lexico" => {
                    all.push(Self::Lexico { set: schemes::lexico::DICTIONARIES, atoms: settings.lexico_atoms });
                }
                LEXICO_4096 => all.push(Self::Lexico { set: LEXICO_4096, atoms: 4096 }),
                "commvq" => all.push(Self::CommVq),
                _ => {
                    for level in &settings.cq {
                        let (channels, bits) = schemes::cq::level(level)
                            .with_context(|| format!("calibrate_peers.cq: `{level}` is not CcBb, as in 8c8b"))?;
                        all.push(Self::Cq { level: level.clone(), channels, bits });
                    }
                }
            }
        }
        Ok(all)
    }

    fn name(&self) -> String {
        match self {
            Self::Cq { level, .. } => format!("cq-{level}"),
            Self::CommVq => schemes::commvq::CODEBOOKS.to_owned(),
            Self::Svdq => schemes::svdq::CODEBOOKS.to_owned(),
            Self::Lexico { set, .. } => (*set).to_owned(),
        }
    }

    fn room(&self, settings: &sections::CalibratePeers, sample: &Sample, sizes: &Sizes) -> TaskRoom {
        let (_, heads, d) = sizes.shape();
        let width = sizes.width();
        // The layer's vectors as read, and a copy of those that are learned from.
        let vectors = 2 * 4 * product(&[sample.tokens(), width]);
        match self {
            Self::Cq { bits, .. } => {
                TaskRoom { memory: vectors, layer_bytes: 2 * 2 * product(&[width, 1 << bits]), scratch: 0 }
            }
            Self::CommVq => {
                let steps = schemes::commvq::steps(2, d);
                let rows = product(&[heads, steps, schemes::commvq::ROWS_PER_STEP, d]);
                TaskRoom { memory: vectors, layer_bytes: 2 * rows, scratch: 0 }
            }
            Self::Svdq => TaskRoom { memory: vectors, layer_bytes: 2 * product(&[width, width]), scratch: 0 },
            Self::Lexico { atoms, .. } => {
                let tokens = settings.lexico_tokens.min(sample.recorded * sample.length * sample.corpora);
                TaskRoom {
                    memory: 8 * product(&[tokens, heads]) + 12 * 4 * product(&[*atoms, d]),
                    layer_bytes: 2 * 4 * product(&[*atoms, d]),
                    scratch: 2 * product(&[tokens, width]),
                }
            }
        }
    }

    fn file(&self) -> String {
        format!("{}.safetensors", self.name())
    }

    fn layer_file(&self, layer: usize) -> String {
        format!("{}-{layer:02}.safetensors", self.name())
    }

    fn make(&self, cx: &Layer<'_>) -> Result<()> {
        let path = cx.folder.join(self.layer_file(cx.layer));
        if path.is_file() {
            return Ok(());
        }
        if let Self::Lexico { set, atoms } = self {
            return lexico::train(cx, set, *atoms, &path);
        }
        let (layers, kv_heads, head_dim) = (cx.weights.layers, cx.weights.kv_heads, cx.weights.head_dim);
        let mut set = CodebookSet::new(&self.name(), layers, kv_heads, head_dim);
        match self {
            Self::Cq { channels, bits, .. } => cq::centroids(cx, *channels, *bits, &mut set)?,
            Self::CommVq => commvq::codebooks(cx, &mut set)?,
            _ => svdq::of_keys(cx, &mut set)?,
        }
        Ok(set.save(path)?)
    }

    /// Joins the layers' files.
    fn assemble(&self, run: &Run, layers: usize, folder: &Path, dir: &Path) -> Result<()> {
        let provenance: BTreeMap<String, String> = [
            ("method".to_owned(), self.name()),
            ("kvcsr".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ("model".to_owned(), run.config.model.clone()),
            ("calibration".to_owned(), run.finished("calibrate")?.digest),
            ("seed".to_owned(), run.config.seed.to_string()),
            ("calibrate-peers".to_owned(), serde_json::to_string(&run.config.calibrate_peers)?),
        ]
        .into();
        let files = (0..layers).map(|layer| folder.join(self.layer_file(layer)));
        if matches!(self, Self::Lexico { .. }) {
            let mut head_dim = 0;
            let mut groups = Vec::new();
            for file in files {
                let set = DictionarySet::load(file)?;
                head_dim = set.head_dim;
                groups.extend(set.groups);
            }
            return Ok(DictionarySet { head_dim, groups, provenance }.save(dir.join(self.file()))?);
        }
        let mut joined = artefacts::joined(files)?;
        joined.provenance = provenance;
        Ok(joined.save(dir.join(self.file()))?)
    }
}
