//! calibrate-peers: what the calibrated peers need: Lexico's dictionaries, CQ's centroids, CommVQ's codebooks, SVDq's
//! basis.
//!
//! All are learned from the vectors that `calibrate` recorded; the stage reads a part of that text again to see how much
//! attention each token gets. Layers that an unfinished run of the same recipe completed are kept.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use kvcsr_cache::schemes::{commvq, cq, lexico, svdq};
use kvcsr_cache::{AttentionMass, DenseCache, LayerCache, Rotary, SchemeContext};
use kvcsr_codec::{CodebookSet, DictionaryGroup, DictionarySet, Kind, ShardHeader, ShardWriter, Table};
use kvcsr_neuraldict::codebooks::commutative::{self, Annealing};
use kvcsr_neuraldict::codebooks::{basis::singular_basis, coupled::weighted_kmeans};
use kvcsr_neuraldict::{GradientPath, TrainConfig};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value};

use crate::config::CalibratePeers as Settings;
use crate::manifest::Manifest;
use crate::stage::{Run, Stage, parameters_of};
use crate::stages::{corpus, layers, open_model, open_shard, text_and_model_inputs};
use crate::text::Part;
use crate::ui;

/// File of Lexico's dictionaries.
pub const LEXICO: &str = "lexico.safetensors";
/// The table of a layer's attention per token, `(tokens, Hkv)`.
const MASS: &str = "mass";
/// File of the attention per token, kept while the stage runs.
const WEIGHTS: &str = "weights.safetensors";

/// See the module.
pub struct CalibratePeers;

impl Stage for CalibratePeers {
    fn name(&self) -> &'static str {
        "calibrate-peers"
    }

    fn version(&self) -> u32 {
        1
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        let mut parameters = parameters_of(&run.config.calibrate_peers)?;
        parameters.insert("seed".into(), run.config.seed.into());
        Ok(parameters)
    }

    fn inputs(&self, run: &Run) -> Result<Map<String, Value>> {
        let mut inputs = text_and_model_inputs(run)?;
        inputs.insert("calibrate".into(), run.finished("calibrate")?.digest.into());
        Ok(inputs)
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        let sample = Sample::read(run)?;
        let (weights, rotary) = weights(run, &sample, &dir.join(WEIGHTS))?;
        let layers = layers(run)?;
        kvcsr_neuraldict::set_threads(1);
        let work: Vec<(usize, Task)> = Task::all(&run.config.calibrate_peers)?
            .into_iter()
            .flat_map(|t| (0..layers).map(move |l| (l, t.clone())))
            .collect();
        let bar = ui::bar("calibrate-peers", work.len() as u64, "layers x methods");
        let parts = dir.join("parts");
        std::fs::create_dir_all(&parts)?;
        // Layers side by side, each on one thread: the same result for any number of them.
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        let worker = || {
            while let Some((layer, task)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                bar.set_message(format!("{}, layer {layer}", task.name()));
                let cx =
                    Layer { run, sample: &sample, weights: &weights, rotary: &rotary, layer: *layer, parts: &parts };
                if let Err(error) = task.make(&cx) {
                    next.store(work.len(), Ordering::Relaxed);
                    let error = error.context(format!("{}, layer {layer}", task.name()));
                    failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
                    return;
                }
                bar.inc(1);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..rayon::current_num_threads() {
                scope.spawn(worker);
            }
        });
        if let Some(error) = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            return Err(error);
        }
        bar.finish();
        for task in Task::all(&run.config.calibrate_peers)? {
            task.assemble(run, layers, &parts, dir)?;
        }
        std::fs::remove_dir_all(parts)?;
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

/// Adds everything that the stage left in `dir` to what schemes are built from; nothing if it has not run.
pub fn add_to(dir: &Path, mut cx: SchemeContext) -> Result<SchemeContext> {
    if Manifest::read(dir).is_none() {
        return Ok(cx);
    }
    cx = cx.with_dictionaries(lexico::DICTIONARIES, DictionarySet::load(dir.join(LEXICO))?);
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        let ours = path.extension().is_some_and(|e| e == "safetensors");
        if ours && name != lexico::DICTIONARIES {
            cx = cx.with_codebooks(&name, CodebookSet::load(&path)?);
        }
    }
    Ok(cx)
}

/// The calibration sequences that are used: the first of each corpus.
struct Sample {
    /// Tokens of a sequence.
    length: usize,
    /// Sequences recorded per corpus, and those of them used.
    recorded: usize,
    used: usize,
    corpora: usize,
}

impl Sample {
    fn read(run: &Run) -> Result<Self> {
        let tokens = open_shard(run, Part::Calibration, 0, Kind::Key)?.tokens();
        let (length, corpora) = (run.config.calibrate.sequence, run.config.corpora.len());
        if !tokens.is_multiple_of(length * corpora) {
            bail!(
                "the calibration record of {tokens} tokens was not made with this profile: run `just calibrate` again"
            );
        }
        let recorded = tokens / length / corpora;
        let used = run.config.calibrate_peers.tokens.div_ceil(length * corpora).clamp(1, recorded);
        Ok(Self { length, recorded, used, corpora })
    }

    fn tokens(&self) -> usize {
        self.corpora * self.used * self.length
    }

    /// Number in the shard of the first token of every sequence used.
    fn starts(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.corpora).flat_map(move |c| (0..self.used).map(move |i| (c * self.recorded + i) * self.length))
    }
}

/// How much attention each token of the sample gets, by layer, relative to the mean; read from `path` if it is there.
fn weights(run: &Run, sample: &Sample, path: &Path) -> Result<(CodebookSet, Rotary)> {
    let (decoder, tokenizer) = open_model(run)?;
    let geometry = decoder.geometry();
    if path.is_file() {
        return Ok((CodebookSet::load(path)?, decoder.rotary().clone()));
    }
    let bar = ui::bar("calibrate-peers", sample.tokens() as u64, "tokens");
    // Per layer and kind `(tokens, Hkv)`: keys by attention, values by its square.
    let mut masses = vec![[Vec::new(), Vec::new()]; geometry.layers];
    for id in &run.config.corpora {
        bar.set_message(format!("attention, {id}"));
        for ids in
            corpus(run, &tokenizer, id, Part::Calibration, sample.length, sample.recorded)?.iter().take(sample.used)
        {
            let (mut caches, records): (Vec<Box<dyn LayerCache>>, Vec<_>) = (0..geometry.layers)
                .map(|_| {
                    let (cache, record) = AttentionMass::new(DenseCache::new(DType::F32));
                    (Box::new(cache) as Box<dyn LayerCache>, record)
                })
                .unzip();
            decoder.forward_hidden(&Tensor::new(&ids[..], &Device::Cpu)?.unsqueeze(0)?, &mut caches)?;
            for (masses, record) in masses.iter_mut().zip(records) {
                let record = record.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
                for (mass, part) in masses.iter_mut().zip([record.linear, record.squared]) {
                    for t in 0..ids.len() {
                        // Position 0 is a sink: it gets most of the attention in many layers, and a window keeps it.
                        let weight = |head: usize| if t == 0 { 0.0 } else { part[head * ids.len() + t] };
                        mass.extend((0..geometry.kv_heads).map(weight));
                    }
                }
            }
            bar.inc(ids.len() as u64);
        }
    }
    bar.finish();
    let mut set = CodebookSet::new("weights", geometry.layers, geometry.kv_heads, geometry.head_dim);
    for (layer, masses) in masses.into_iter().enumerate() {
        for (kind, mut mass) in Kind::ALL.into_iter().zip(masses) {
            let mean = (mass.iter().map(|&x| f64::from(x)).sum::<f64>() / mass.len() as f64).max(1e-30) as f32;
            mass.iter_mut().for_each(|x| *x = (*x / mean).min(6e4));
            set.insert(layer, kind, MASS, Table::new(&[sample.tokens(), geometry.kv_heads], &mass)?);
        }
    }
    set.save(path)?;
    Ok((set, decoder.rotary().clone()))
}

/// One layer's turn.
struct Layer<'a> {
    run: &'a Run,
    sample: &'a Sample,
    weights: &'a CodebookSet,
    rotary: &'a Rotary,
    layer: usize,
    parts: &'a Path,
}

impl Layer<'_> {
    fn settings(&self) -> &Settings {
        &self.run.config.calibrate_peers
    }

    /// A generator for one purpose: by the seed, the layer and `stream`.
    fn rng(&self, stream: u64) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.run.config.seed);
        rng.set_stream(((self.layer as u64) << 32) + stream);
        rng
    }

    /// The sample's vectors of one kind, `(tokens, Hkv, D)`, with the heads and channels.
    fn vectors(&self, kind: Kind) -> Result<(Vec<f32>, usize, usize)> {
        let shard = open_shard(self.run, Part::Calibration, self.layer, kind)?;
        let (heads, d) = (shard.heads(), shard.head_dim());
        let each = self.sample.length * heads;
        let mut vectors = vec![0f32; self.sample.tokens() * heads * d];
        for (start, out) in self.sample.starts().zip(vectors.chunks_exact_mut(each * d)) {
            shard.read(d, start * heads..start * heads + each, out)?;
        }
        Ok((vectors, heads, d))
    }
}

/// What is made.
#[derive(Debug, Clone, PartialEq)]
enum Task {
    Coupled { level: String, channels: usize, bits: usize },
    Commutative,
    Basis,
    Lexico,
}

impl Task {
    fn all(settings: &Settings) -> Result<Vec<Self>> {
        let mut all = vec![Self::Basis];
        for level in &settings.cq {
            let (channels, bits) =
                cq::level(level).with_context(|| format!("calibrate_peers.cq: `{level}` is not CcBb, as in 8c8b"))?;
            all.push(Self::Coupled { level: level.clone(), channels, bits });
        }
        all.extend([Self::Commutative, Self::Lexico]);
        Ok(all)
    }

    fn name(&self) -> String {
        match self {
            Self::Coupled { level, .. } => format!("cq-{level}"),
            Self::Commutative => commvq::CODEBOOKS.to_owned(),
            Self::Basis => svdq::CODEBOOKS.to_owned(),
            Self::Lexico => lexico::DICTIONARIES.to_owned(),
        }
    }

    fn file(&self) -> String {
        format!("{}.safetensors", self.name())
    }

    fn part(&self, layer: usize) -> String {
        format!("{}-{layer:02}.safetensors", self.name())
    }

    fn make(&self, cx: &Layer<'_>) -> Result<()> {
        let path = cx.parts.join(self.part(cx.layer));
        if path.is_file() {
            return Ok(());
        }
        if *self == Self::Lexico {
            return train_lexico(cx, &path);
        }
        let (layers, kv_heads, head_dim) = (cx.weights.layers, cx.weights.kv_heads, cx.weights.head_dim);
        let mut set = CodebookSet::new(&self.name(), layers, kv_heads, head_dim);
        match self {
            Self::Coupled { channels, bits, .. } => coupled(cx, *channels, *bits, &mut set)?,
            Self::Commutative => commutative_keys(cx, &mut set)?,
            _ => {
                let (rows, heads, d) = cx.vectors(Kind::Key)?;
                let n = heads * d;
                let basis = singular_basis(&rows, n)?;
                set.insert(cx.layer, Kind::Key, svdq::MEAN, Table::new(&[n], &basis.mean)?);
                set.insert(cx.layer, Kind::Key, svdq::BASIS, Table::new(&[n, n], &basis.vectors)?);
                set.insert(cx.layer, Kind::Key, svdq::DEVIATIONS, Table::new(&[n], &basis.deviations)?);
            }
        }
        Ok(set.save(path)?)
    }

    /// Joins the layers' files.
    fn assemble(&self, run: &Run, layers: usize, parts: &Path, dir: &Path) -> Result<()> {
        let provenance: BTreeMap<String, String> = [
            ("method".to_owned(), self.name()),
            ("kvcsr".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ("model".to_owned(), run.config.model.clone()),
            ("calibration".to_owned(), run.finished("calibrate")?.digest),
            ("seed".to_owned(), run.config.seed.to_string()),
            ("calibrate-peers".to_owned(), serde_json::to_string(&run.config.calibrate_peers)?),
        ]
        .into();
        let files = (0..layers).map(|layer| parts.join(self.part(layer)));
        if *self == Self::Lexico {
            let mut head_dim = 0;
            let mut groups = Vec::new();
            for file in files {
                let set = DictionarySet::load(file)?;
                head_dim = set.head_dim;
                groups.extend(set.groups);
            }
            return Ok(DictionarySet { head_dim, groups, provenance }.save(dir.join(LEXICO))?);
        }
        let mut joined: Option<CodebookSet> = None;
        for file in files {
            let set = CodebookSet::load(file)?;
            match &mut joined {
                Some(joined) => joined.extend(set),
                None => joined = Some(set),
            }
        }
        let mut joined = joined.context("the model has no layers")?;
        joined.provenance = provenance;
        Ok(joined.save(dir.join(self.file()))?)
    }
}

/// CQ: centroids of every head and group of channels.
fn coupled(cx: &Layer<'_>, channels: usize, bits: usize, set: &mut CodebookSet) -> Result<()> {
    let settings = cx.settings();
    for kind in Kind::ALL {
        let (rows, heads, d) = cx.vectors(kind)?;
        if !d.is_multiple_of(channels) {
            bail!("groups of {channels} channels do not divide heads of {d}");
        }
        let mass = cx.weights.table(cx.layer, kind, MASS, &[cx.sample.tokens(), heads])?.to_f32();
        let groups = d / channels;
        let mut centroids = Vec::with_capacity((heads * d) << bits);
        for head in 0..heads {
            let weights: Vec<f32> = mass.iter().skip(head).step_by(heads).copied().collect();
            for group in 0..groups {
                let part = rows.chunks_exact(heads * d).flat_map(|row| &row[head * d + group * channels..][..channels]);
                let part: Vec<f32> = part.copied().collect();
                let stream = (usize::from(kind == Kind::Value) * heads + head) * groups + group;
                let limits = (settings.cq_iterations, settings.cq_tolerance);
                let found =
                    weighted_kmeans(&part, channels, &weights, 1 << bits, limits, &mut cx.rng(1 + stream as u64))?;
                centroids.extend(found.centroids);
            }
        }
        set.insert(cx.layer, kind, cq::CENTROIDS, Table::new(&[heads, groups, 1 << bits, channels], &centroids)?);
    }
    Ok(())
}

/// CommVQ: codebooks of every head, over tokens evenly spread over the sample.
fn commutative_keys(cx: &Layer<'_>, set: &mut CodebookSet) -> Result<()> {
    let settings = cx.settings();
    let (rows, heads, d) = cx.vectors(Kind::Key)?;
    let all: Vec<&[f32]> = rows
        .chunks_exact(heads * d)
        .enumerate()
        .filter(|(t, _)| !t.is_multiple_of(cx.sample.length))
        .map(|(_, row)| row)
        .collect();
    let wanted = settings.commvq_vectors.min(all.len());
    let steps = commvq::steps(2, d);
    let annealing =
        Annealing { rows: commvq::ROWS_PER_STEP, iterations: settings.commvq_iterations, ..Annealing::default() };
    let mut tables = Vec::with_capacity(heads * steps * commvq::ROWS_PER_STEP * d);
    for head in 0..heads {
        let mut vectors = Vec::with_capacity(wanted * d);
        for i in 0..wanted {
            let row = all[i * all.len() / wanted];
            let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
            vectors.extend(row[head * d..(head + 1) * d].iter().map(|x| x / norm));
        }
        for step in commutative::train(&mut vectors, d, steps, &annealing, &mut cx.rng((1 << 20) + head as u64))? {
            tables.extend_from_slice(step.codebook.rows());
        }
    }
    set.insert(cx.layer, Kind::Key, commvq::ROWS, Table::new(&[heads, steps, commvq::ROWS_PER_STEP, d], &tables)?);
    Ok(())
}

/// Lexico: dictionaries of a layer's keys after position embedding and of its values, trained without position 0.
fn train_lexico(cx: &Layer<'_>, path: &Path) -> Result<()> {
    let settings = cx.settings();
    let mut groups = Vec::new();
    let mut head_dim = 0;
    for kind in Kind::ALL {
        let sides = [Part::Calibration, Part::Heldout].map(|side| rotated(cx, kind, side));
        let [train, heldout] = sides;
        let (train, heldout) = (train?, heldout?);
        head_dim = train.shard.head_dim();
        let config = TrainConfig {
            atoms: settings.lexico_atoms,
            sparsity: settings.lexico_sparsity,
            chunks: 1,
            epochs: settings.lexico_epochs,
            gradient: GradientPath::Atoms,
            kmeans_sample: settings.lexico_tokens.max(settings.lexico_atoms),
            seed: cx.run.config.seed,
            device: cx.run.config.device.clone(),
            ..TrainConfig::default()
        };
        let trained = kvcsr_neuraldict::train_group(&config, &[&train.shard], &[&heldout.shard], &mut |_| {})?;
        groups.push(DictionaryGroup {
            kind,
            layers: vec![cx.layer],
            chunks: 1,
            sparsity: settings.lexico_sparsity,
            dictionary: trained.dictionary.into(),
        });
    }
    Ok(DictionarySet { head_dim, groups, provenance: BTreeMap::new() }.save(path)?)
}

/// A shard that is removed with its last user.
struct Temporary {
    shard: kvcsr_codec::Shard,
    path: std::path::PathBuf,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Best effort: a leftover goes with the folder of parts.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The vectors that Lexico trains on: keys after position embedding, no position 0, at most `lexico_tokens` tokens.
fn rotated(cx: &Layer<'_>, kind: Kind, side: Part) -> Result<Temporary> {
    let shard = open_shard(cx.run, side, cx.layer, kind)?;
    let (heads, d, length) = (shard.heads(), shard.head_dim(), cx.run.config.calibrate.sequence);
    let all = shard.tokens() / length;
    let used = cx.settings().lexico_tokens.div_ceil(length).clamp(1, all.max(1));
    let name = format!(
        "rotated-{}-{:02}-{kind}.safetensors",
        if side == Part::Heldout { "heldout" } else { "train" },
        cx.layer
    );
    let path = cx.parts.join(name);
    let header =
        ShardHeader { layer: cx.layer, kind, tokens: used * (length - 1), heads, head_dim: d, extra: BTreeMap::new() };
    let mut writer = ShardWriter::create(&path, header)?;
    let mut rows = vec![0f32; length * heads * d];
    for i in 0..used {
        let first = i * all / used * length * heads;
        shard.read(d, first..first + length * heads, &mut rows)?;
        if kind == Kind::Key {
            let x = Tensor::from_slice(&rows, (1, length, heads, d), &Device::Cpu)?.transpose(1, 2)?;
            rows = cx.rotary.apply(&x, 0)?.transpose(1, 2)?.flatten_all()?.to_vec1()?;
        }
        writer.append(&rows[heads * d..])?;
    }
    writer.finish()?;
    Ok(Temporary { shard: kvcsr_codec::Shard::open(&path)?, path })
}
