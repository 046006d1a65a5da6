//! Checkpoints. They hold everything that a killed run needs to finish with the same bytes. This module also saves the
//! batch at which a run diverged.
//!
//! A checkpoint is a safetensors file that is replaced by rename. The reader does not trust it. It checks which run the
//! checkpoint belongs to, and the shapes, finiteness and counts.

use std::{
    borrow::Cow,
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use kvcsr_codec::{Dictionary, MAX_ATOMS, atomic};
use safetensors::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::{
    closed::Closed,
    config::TrainConfig,
    error::{NeuralDictError, Result},
    optimiser::Adam,
    record::EpochRecord,
    update::{Updater, Worst},
};

/// File name of a checkpoint inside the group's folder.
pub const CHECKPOINT: &str = "checkpoint.safetensors";
/// File name of the batch at which the loss diverged.
pub const DIVERGED: &str = "diverged.safetensors";
const METADATA_KEY: &str = "kvcsr-checkpoint";
const FORMAT: u32 = 1;
/// Number of values of an [`EpochRecord`] in its row of the tensor `epochs`.
const FIELDS: usize = 12;

/// The run that a checkpoint belongs to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    pub format: u32,
    pub config: TrainConfig,
    pub group: String,
    pub vectors: usize,
    pub heldout: usize,
    pub width: usize,
    pub weighted: bool,
}

impl Identity {
    pub(crate) fn new(config: &TrainConfig, group: &str, sizes: (usize, usize, usize), weighted: bool) -> Self {
        let (vectors, heldout, width) = sizes;
        Self { format: FORMAT, config: config.clone(), group: group.to_owned(), vectors, heldout, width, weighted }
    }
}

/// The small part of the state, as JSON. Numbers that must keep all their bits are in tensors.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    identity: Identity,
    epoch: usize,
    batch: usize,
    best: usize,
    stale: usize,
    adam_step: i32,
    pending: usize,
    solutions: usize,
    worst_numbers: Vec<u32>,
}

/// Sums over the batches of the current epoch.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sums {
    pub error: f64,
    pub energy: f64,
    pub beta: f64,
    /// Wall time of the epoch before the run was interrupted.
    pub seconds: f64,
}

/// The state of a run between two steps.
pub(crate) struct State {
    /// The next step: epoch from 1, batch from 0.
    pub epoch: usize,
    pub batch: usize,
    pub atoms: Tensor,
    pub updater: Updater,
    pub sums: Sums,
    pub usage: Vec<u64>,
    pub worst: Worst,
    pub epochs: Vec<EpochRecord>,
    pub start: Dictionary,
    /// The epoch with the smallest held-out error, its atoms (only with patience), and the epochs since then.
    pub best: (usize, Option<Vec<f32>>),
    pub stale: usize,
}

/// One tensor of a file, with little-endian bytes.
struct Blob {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for &Blob {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

fn f32s(values: &[f32], shape: &[usize]) -> Blob {
    Blob { dtype: Dtype::F32, shape: shape.to_vec(), bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect() }
}

fn f64s(values: &[f64], shape: &[usize]) -> Blob {
    Blob { dtype: Dtype::F64, shape: shape.to_vec(), bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect() }
}

fn tensor(values: &Tensor) -> Result<Blob> {
    let shape: Vec<usize> = values.size().into_iter().map(|n| n as usize).collect();
    Ok(f32s(&host(values)?, &shape))
}

/// Copies the values of a tensor to the host.
pub(crate) fn host(values: &Tensor) -> Result<Vec<f32>> {
    let mut copy = vec![0f32; values.numel()];
    let length = copy.len();
    values.f_to_kind(Kind::Float)?.f_contiguous()?.f_copy_data(&mut copy, length)?;
    Ok(copy)
}

fn write(path: &Path, blobs: &[(&str, Blob)], metadata: Option<String>) -> Result<()> {
    let metadata = metadata.map(|text| HashMap::from([(METADATA_KEY.to_owned(), text)]));
    let bad = |reason: String| NeuralDictError::Checkpoint { path: path.to_owned(), reason };
    let bytes = safetensors::serialize(blobs.iter().map(|(name, blob)| (*name, blob)), metadata)
        .map_err(|e| bad(e.to_string()))?;
    atomic::write(path, &bytes).map_err(|e| bad(e.to_string()))
}

/// Saves a batch `(B, D)` and the atoms `(N, D)` that encoded it.
pub(crate) fn save_diverged(folder: &Path, rows: &[f32], atoms: &Tensor) -> Result<PathBuf> {
    let path = folder.join(DIVERGED);
    let width = atoms.size2()?.1 as usize;
    let blobs = [("vectors", f32s(rows, &[rows.len() / width, width])), ("atoms", tensor(atoms)?)];
    write(&path, &blobs, None)?;
    Ok(path)
}

fn numbers(record: &EpochRecord) -> [f64; FIELDS] {
    [
        record.mse,
        record.diversity,
        record.beta,
        record.train_relative,
        record.heldout_relative,
        record.heldout_mse,
        record.dead_atoms as f64,
        record.usage_entropy,
        record.replaced_atoms as f64,
        record.learning_rate,
        record.seconds,
        record.epoch as f64,
    ]
}

fn record(numbers: &[f64]) -> EpochRecord {
    EpochRecord {
        mse: numbers[0],
        diversity: numbers[1],
        beta: numbers[2],
        train_relative: numbers[3],
        heldout_relative: numbers[4],
        heldout_mse: numbers[5],
        dead_atoms: numbers[6] as usize,
        usage_entropy: numbers[7],
        replaced_atoms: numbers[8] as usize,
        learning_rate: numbers[9],
        seconds: numbers[10],
        epoch: numbers[11] as usize,
    }
}

impl State {
    pub(crate) fn save(&self, folder: &Path, identity: &Identity) -> Result<()> {
        let (n, width) = (self.start.len(), self.start.width());
        let sums = &self.sums;
        let usage: Vec<f64> = self.usage.iter().map(|&count| count as f64).collect();
        let records: Vec<f64> = self.epochs.iter().flat_map(numbers).collect();
        let errors: Vec<f32> = self.worst.found.iter().map(|w| w.0).collect();
        let mut blobs = vec![
            ("start", f32s(self.start.atoms(), &[n, width])),
            ("atoms", tensor(&self.atoms)?),
            ("sums", f64s(&[sums.error, sums.energy, sums.beta, sums.seconds], &[4])),
            ("usage", f64s(&usage, &[n])),
            ("epochs", f64s(&records, &[self.epochs.len(), FIELDS])),
            ("worst", f32s(&errors, &[errors.len()])),
        ];
        if let Some(best) = &self.best.1 {
            blobs.push(("best", f32s(best, &[n, width])));
        }
        let (mut adam_step, mut pending, mut solutions) = (0, 0, 0);
        match &self.updater {
            Updater::Adam(adam) => {
                adam_step = adam.step;
                blobs.push(("first", tensor(&adam.first)?));
                blobs.push(("second", tensor(&adam.second)?));
            }
            Updater::Closed(closed) => {
                (pending, solutions) = (closed.pending, closed.solutions);
                blobs.push(("gram", f32s(&closed.gram, &[n, n])));
                blobs.push(("cross", f32s(&closed.cross, &[n, width])));
            }
        }
        let manifest = Manifest {
            identity: identity.clone(),
            epoch: self.epoch,
            batch: self.batch,
            best: self.best.0,
            stale: self.stale,
            adam_step,
            pending,
            solutions,
            worst_numbers: self.worst.found.iter().map(|w| w.1).collect(),
        };
        let path = folder.join(CHECKPOINT);
        let json = serde_json::to_string(&manifest)
            .map_err(|e| NeuralDictError::Checkpoint { path: path.clone(), reason: e.to_string() })?;
        write(&path, &blobs, Some(json))
    }

    /// The state saved in `folder`, if there is one. `room` is the number of worst-fitted vectors to keep.
    pub(crate) fn load(folder: &Path, identity: &Identity, device: Device, room: usize) -> Result<Option<Self>> {
        let path = folder.join(CHECKPOINT);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(NeuralDictError::Checkpoint { path, reason: e.to_string() }),
        };
        let found = Self::parse(&bytes, identity, device, room);
        found.map(Some).map_err(|error| match error {
            Unusable::Because(reason) => NeuralDictError::Checkpoint { path, reason },
            Unusable::Library(error) => error,
        })
    }

    fn parse(bytes: &[u8], identity: &Identity, device: Device, room: usize) -> std::result::Result<Self, Unusable> {
        let because = |reason: String| Unusable::Because(reason);
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| because(e.to_string()))?;
        let text = header.metadata().as_ref().and_then(|m| m.get(METADATA_KEY));
        let text = text.ok_or_else(|| because(format!("no metadata {METADATA_KEY}")))?;
        let manifest: Manifest = serde_json::from_str(text).map_err(|e| because(e.to_string()))?;
        // Convert the expected identity through text too, because parsing a number from text may change its last bit.
        let text = serde_json::to_string(identity).map_err(|e| because(e.to_string()))?;
        let expected: Identity = serde_json::from_str(&text).map_err(|e| because(e.to_string()))?;
        if manifest.identity != expected {
            return Err(because(format!("belongs to {:?}, expected {expected:?}", manifest.identity)));
        }
        let file = File(SafeTensors::deserialize(bytes).map_err(|e| because(e.to_string()))?);
        let (n, width, epochs) = (identity.config.atoms, identity.width, identity.config.epochs);
        let inside = |what: &str, value: usize, least: usize, most: usize| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err(because(format!("{what} is {value}, expected {least}..={most}")))
            }
        };
        inside("atoms", n, 1, MAX_ATOMS)?;
        inside("epoch", manifest.epoch, 1, epochs + 1)?;
        inside("batch", manifest.batch, 0, identity.vectors)?;
        inside("best", manifest.best, 0, epochs)?;
        let records = file.f64s("epochs", &[manifest.epoch, FIELDS])?;
        let usage = file.f64s("usage", &[n])?;
        let sums = file.f64s("sums", &[4])?;
        let worst = file.f32s("worst", &[manifest.worst_numbers.len()])?;
        inside("worst", worst.len(), 0, room)?;
        if let Some(&number) = manifest.worst_numbers.iter().find(|&&number| number as usize >= identity.vectors) {
            return Err(because(format!("worst holds vector {number} of {}", identity.vectors)));
        }
        let unit = |name: &str| -> std::result::Result<Dictionary, Unusable> {
            Dictionary::new(width, file.f32s(name, &[n, width])?).map_err(|e| because(format!("{name}: {e}")))
        };
        let on = |values: &[f32]| -> Result<Tensor> {
            Ok(Tensor::f_from_slice(values)?.f_view([-1, width as i64])?.f_to_device(device)?)
        };
        let updater = match identity.config.trainer {
            crate::config::Trainer::NeuralDict | crate::config::Trainer::Lexico => Updater::Adam(Adam {
                step: manifest.adam_step,
                first: on(&file.f32s("first", &[n, width])?)?,
                second: on(&file.f32s("second", &[n, width])?)?,
            }),
            crate::config::Trainer::Mod => Updater::Closed(Box::new(Closed {
                atoms: n,
                width,
                gram: file.f32s("gram", &[n, n])?,
                cross: file.f32s("cross", &[n, width])?,
                pending: manifest.pending,
                solutions: manifest.solutions,
            })),
        };
        let best = if identity.config.patience > 0 { Some(unit("best")?.atoms().to_vec()) } else { None };
        let mut kept = Worst::new(room);
        kept.found = worst.into_iter().zip(manifest.worst_numbers).collect();
        Ok(Self {
            epoch: manifest.epoch,
            batch: manifest.batch,
            atoms: on(unit("atoms")?.atoms())?,
            updater,
            sums: Sums { error: sums[0], energy: sums[1], beta: sums[2], seconds: sums[3] },
            usage: usage.into_iter().map(|count| count as u64).collect(),
            worst: kept,
            epochs: records.chunks_exact(FIELDS).map(record).collect(),
            start: unit("start")?,
            best: (manifest.best, best),
            stale: manifest.stale,
        })
    }
}

/// Why a checkpoint cannot be used.
enum Unusable {
    Because(String),
    Library(NeuralDictError),
}

impl From<NeuralDictError> for Unusable {
    fn from(error: NeuralDictError) -> Self {
        Self::Library(error)
    }
}

/// A parsed file. Each tensor is checked when it is read.
struct File<'a>(SafeTensors<'a>);

impl File<'_> {
    fn bytes(&self, name: &str, dtype: Dtype, shape: &[usize]) -> std::result::Result<&[u8], Unusable> {
        let view = self.0.tensor(name).map_err(|_| Unusable::Because(format!("no tensor {name}")))?;
        if view.dtype() != dtype || view.shape() != shape {
            let reason = format!("{name} is {:?} {:?}, expected {dtype:?} {shape:?}", view.dtype(), view.shape());
            return Err(Unusable::Because(reason));
        }
        Ok(view.data())
    }

    fn f32s(&self, name: &str, shape: &[usize]) -> std::result::Result<Vec<f32>, Unusable> {
        let bytes = self.bytes(name, Dtype::F32, shape)?;
        let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        if values.iter().all(|v| v.is_finite()) {
            Ok(values)
        } else {
            Err(Unusable::Because(format!("{name} holds values that are not finite")))
        }
    }

    fn f64s(&self, name: &str, shape: &[usize]) -> std::result::Result<Vec<f64>, Unusable> {
        let bytes = self.bytes(name, Dtype::F64, shape)?;
        let values: Vec<f64> = bytes.as_chunks::<8>().0.iter().map(|&b| f64::from_le_bytes(b)).collect();
        if values.iter().all(|v| v.is_finite()) {
            Ok(values)
        } else {
            Err(Unusable::Because(format!("{name} holds values that are not finite")))
        }
    }
}
