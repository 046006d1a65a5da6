//! The record of a finished stage: its key, inputs, parameters, outputs and circumstances.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail};
use jiff::{Timestamp, Unit};
use kvcsr_records::csv;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::atomic;
use crate::machine::Machine;
use crate::room::Estimate;

/// Name of the record beside a stage's outputs.
pub const FILE: &str = "manifest.json";

/// The words of errors about a damaged record.
pub const DAMAGED: &str = "not the record of a finished stage";

/// What determines a stage's outputs. Two equal recipes make the same outputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    pub stage: String,
    /// Raised when a change of the code changes the stage's outputs.
    pub version: u32,
    /// Named parameters.
    pub parameters: Map<String, Value>,
    /// Inputs by name: a file's sha256, or the digest of an earlier stage.
    pub inputs: Map<String, Value>,
}

/// The input that names the dtype of weights, if it is not `auto`.
pub const DTYPE: &str = "dtype";
/// The input that says that a GPU computes, if one does: there sums have another order, and times are those of another device.
pub const DEVICE: &str = "device";
/// The input that names how attention is computed, if it is not `auto`.
pub const ATTENTION: &str = "attention";

impl Recipe {
    /// blake3 of the canonical JSON (object keys are sorted).
    pub fn key(&self) -> String {
        let mut sorted = self.clone();
        // Maps keep the order in which they were filled, because the reader of chat templates needs serde_json to do so.
        for map in [&mut sorted.parameters, &mut sorted.inputs] {
            map.sort_keys();
            map.values_mut().for_each(Value::sort_all_objects);
        }
        let json = serde_json::to_string(&sorted).expect("maps of strings and numbers serialise");
        blake3::hash(json.as_bytes()).to_hex().to_string()
    }

    /// Whether this recipe makes everything that the earlier recipe `old` made, and more: only parameters of `grows` differ, and
    /// they have grown; inputs that both have are the same.
    pub fn extends(&self, old: &Self, grows: &[&str]) -> bool {
        if grows.is_empty() || self.stage != old.stage || self.version != old.version {
            return false;
        }
        let (before, after) = (flat(&old.parameters), flat(&self.parameters));
        let grown = |(name, value): (&String, &Value)| match after.get(name) {
            Some(now) if grows.contains(&name.as_str()) => is_grown(value, now),
            now => now == Some(value),
        };
        let same = |(name, input): (&String, &Value)| self.inputs.get(name).is_none_or(|now| now == input);
        // Inputs that say how everything is computed exist only if they are not `auto`, so a missing one must be missing in both.
        let as_before = |name: &&str| self.inputs.get(*name) == old.inputs.get(*name);
        before.len() == after.len()
            && before.iter().all(grown)
            && old.inputs.iter().all(same)
            && [DTYPE, DEVICE, ATTENTION].iter().all(as_before)
    }

    /// What differs from an earlier recipe, in words.
    pub fn changes_since(&self, old: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        if old.version != self.version {
            changes.push(format!("stage version {} -> {}", old.version, self.version));
        }
        let stage = &self.stage;
        differences(&old.parameters, &self.parameters, &mut |name, from, to| {
            changes.push(format!("{stage}.{name} {from} -> {to}"));
        });
        differences(&old.inputs, &self.inputs, &mut |name, _, _| changes.push(format!("input {name} changed")));
        changes
    }
}

/// Whether `new` equals `old` or has grown from it: a list has more members, or a number above 0 is larger. A 0 cannot grow: for
/// some parameters it stands for all.
fn is_grown(old: &Value, new: &Value) -> bool {
    match (old, new) {
        (Value::Array(old), Value::Array(new)) => old.iter().all(|member| new.contains(member)),
        (Value::Number(old), Value::Number(new)) => match (old.as_u64(), new.as_u64()) {
            (Some(old), Some(new)) => new == old || (old > 0 && new > old),
            _ => old == new,
        },
        _ => old == new,
    }
}

/// All parameters in one map. A member of a section has its path as its name: `heldout.repeats`.
fn flat(parameters: &Map<String, Value>) -> Map<String, Value> {
    let mut flat = Map::new();
    for (name, value) in parameters {
        match value {
            Value::Object(section) => {
                flat.extend(section.iter().map(|(member, value)| (format!("{name}.{member}"), value.clone())));
            }
            value => drop(flat.insert(name.clone(), value.clone())),
        }
    }
    flat
}

fn differences(old: &Map<String, Value>, new: &Map<String, Value>, report: &mut dyn FnMut(&str, &Value, &Value)) {
    let names: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for name in names {
        let (a, b) = (old.get(name).unwrap_or(&Value::Null), new.get(name).unwrap_or(&Value::Null));
        if a != b {
            report(name, a, b);
        }
    }
}

/// One output file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Output {
    pub file: String,
    pub bytes: u64,
    pub modified_ns: u64,
    pub blake3: String,
}

/// The record of a finished stage.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    pub key: String,
    pub recipe: Recipe,
    pub outputs: Vec<Output>,
    /// blake3 over the outputs' names and hashes: what later stages depend on.
    pub digest: String,
    pub machine: Machine,
    pub dtype: String,
    pub seed: u64,
    pub finished: Timestamp,
    /// The time of this run and of the finished run that it extends. The time of killed runs is not in it.
    pub wall_seconds: f64,
    pub peak_memory_bytes: Option<u64>,
    /// The memory and disk that the stage was expected to need, before it started.
    #[serde(default)]
    pub estimate: Estimate,
    /// blake3 of this record's file with [`NO_SEAL`] in the place of the seal; empty in records of older versions, which are not
    /// checked.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub seal: String,
}

/// The placeholder for the seal while the seal is computed.
const NO_SEAL: &str = "0000000000000000000000000000000000000000000000000000000000000000";

impl Manifest {
    /// Writes the record into `dir`, sealed.
    pub fn write(mut self, dir: &Path) -> Result<()> {
        self.seal = NO_SEAL.to_owned();
        let text = serde_json::to_string_pretty(&self)?;
        let seal = blake3::hash(text.as_bytes()).to_hex();
        // The seal is the last member, and no hash is zero.
        let (before, after) = text.rsplit_once(NO_SEAL).context("a record has a seal")?;
        atomic::write(&dir.join(FILE), format!("{before}{seal}{after}").as_bytes())
    }

    /// Reads the record in `dir`; none if there is no such file.
    ///
    /// # Errors
    /// If it cannot be read, is no record, or was changed after it was written.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(FILE);
        match std::fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text).map(Some).with_context(|| path.display().to_string()),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(error) if error.kind() == ErrorKind::InvalidData => bail!("{}: {DAMAGED}: no text", path.display()),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    fn parse(text: &str) -> Result<Self> {
        let record: Self = serde_json::from_str(text).with_context(|| DAMAGED)?;
        if !record.seal.is_empty() {
            let found = blake3::hash(text.replacen(&record.seal, NO_SEAL, 1).as_bytes()).to_hex();
            if found.as_str() != record.seal {
                bail!("{DAMAGED}: it was changed since it was made");
            }
        }
        Ok(record)
    }

    /// The record in `dir`, if there is an undamaged one.
    pub fn read(dir: &Path) -> Option<Self> {
        Self::open(dir).ok().flatten()
    }

    /// Reads a record from a file, if the file is an undamaged one.
    pub fn read_file(path: &Path) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(path).ok()?).ok()
    }

    /// The day on which the stage was finished, in UTC: `2026-01-31`.
    pub fn date(&self) -> String {
        self.finished.strftime("%F").to_string()
    }

    /// How the outputs in `dir` differ from the record; none if they do not. The contents of a file are hashed again only if its
    /// size or its modification time differs.
    pub fn damage(&self, dir: &Path) -> Option<String> {
        self.outputs.iter().find_map(|output| {
            let path = dir.join(&output.file);
            let Ok(now) = describe(&path) else { return Some(format!("{} is missing", output.file)) };
            if now == (output.bytes, output.modified_ns) {
                return None;
            }
            match hash(&path) {
                Ok(found) if found == output.blake3 => None,
                _ => Some(format!("{} was changed since it was made", output.file)),
            }
        })
    }
}

/// A time rounded to a second, because fractions say nothing in a record: `2026-01-31T12:00:00Z`.
pub fn to_the_second(time: Timestamp) -> Timestamp {
    // Rounding fails only within half a second of the last time that can be represented.
    time.round(Unit::Second).unwrap_or(time)
}

/// Size in bytes and modification time in nanoseconds.
fn describe(path: &Path) -> Result<(u64, u64)> {
    let meta = std::fs::metadata(path)?;
    let modified = meta.modified()?.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    Ok((meta.len(), modified))
}

/// blake3 of a file's contents.
pub fn hash(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| path.display().to_string())?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(hasher.finalize().to_hex().to_string());
        }
        hasher.update(&buffer[..n]);
    }
}

/// blake3 of a file's contents without measured times: rows in JSON lines (`*.jsonl`) and tables (`*.csv`) lose the fields that
/// [`is_time`] names, so that the digest of the same results is the same whenever they are measured.
fn hash_of_content(path: &Path) -> Result<String> {
    let ending = path.extension().and_then(|extension| extension.to_str());
    let text = || std::fs::read_to_string(path).with_context(|| path.display().to_string());
    let timeless = match ending {
        Some("jsonl") => rows_without_times(&text()?)?,
        Some("csv") => csv::without_columns(&text()?, is_time).with_context(|| path.display().to_string())?,
        _ => return hash(path),
    };
    Ok(blake3::hash(timeless.as_bytes()).to_hex().to_string())
}

fn rows_without_times(text: &str) -> Result<String> {
    let mut kept = String::new();
    for line in text.lines() {
        match serde_json::from_str::<Map<String, Value>>(line) {
            Ok(mut row) => {
                row.retain(|name, _| !is_time(name));
                kept += &serde_json::to_string(&row)?;
            }
            Err(_) => kept += line,
        }
        kept.push('\n');
    }
    Ok(kept)
}

/// Whether a row's field is a measured time: `encode_ms`, `decode_ms_per_token`, `seconds`.
fn is_time(field: &str) -> bool {
    field.split('_').any(|word| word == "ms" || word == "seconds")
}

/// Every file below `dir` except the record itself and `others`, in name order; and the digest of their contents, without
/// measured times and without the files `aside`.
pub fn outputs(dir: &Path, others: &[&str], aside: &[&str]) -> Result<(Vec<Output>, String)> {
    let mut files = Vec::new();
    collect(dir, dir, &mut files)?;
    files.sort();
    let mut outputs = Vec::with_capacity(files.len());
    let mut digest = blake3::Hasher::new();
    for file in files.into_iter().filter(|f| f != FILE && !others.contains(&f.as_str())) {
        let path = dir.join(&file);
        let (bytes, modified_ns) = describe(&path)?;
        let blake3 = hash(&path)?;
        if !aside.contains(&file.as_str()) {
            digest.update(file.as_bytes()).update(b"\0").update(hash_of_content(&path)?.as_bytes()).update(b"\n");
        }
        outputs.push(Output { file, bytes, modified_ns, blake3 });
    }
    Ok((outputs, digest.finalize().to_hex().to_string()))
}

fn collect(root: &Path, dir: &Path, files: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(root, &path, files)?;
        } else if let Ok(relative) = path.strip_prefix(root) {
            files.push(relative.to_string_lossy().replace('\\', "/"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
