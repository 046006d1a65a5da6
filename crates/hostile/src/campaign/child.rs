//! A part of a run, in its own process.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use memmap2::MmapMut;
use serde::{Deserialize, Serialize};

use super::counts::{Counts, KEPT};
use crate::corpus;
use crate::mutate::{Inputs, LONGEST};
use crate::place::Place;
use crate::run;
use crate::targets::{Target, Verdict, named};

/// Bytes before the input in the mapped file: the number of the current input, and its length.
pub(super) const BEFORE: usize = 16;
/// The size of the mapped file in bytes.
pub(super) const MAPPED: usize = BEFORE + LONGEST;
/// How often counts are written. The parent needs them if the child ends early.
const EVERY: Duration = Duration::from_secs(1);

/// The task of a child.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Task {
    pub(super) target: String,
    /// The numbers of the inputs.
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) seed: u64,
    /// The file with the current input. The counts are beside it, in a file that ends in `json`.
    pub(super) at_hand: PathBuf,
    /// The folder for inputs of finds.
    pub(super) finds: PathBuf,
}

/// Runs the part that `task` describes. `task` is JSON text from the parent.
///
/// # Errors
/// If the task is not valid, or a file cannot be read or written.
pub fn child(task: &str) -> Result<()> {
    let task: Task = serde_json::from_str(task).context("the task of a child")?;
    let target = named(&task.target).with_context(|| format!("no target `{}`", task.target))?;
    let file = File::options().read(true).write(true).open(&task.at_hand)?;
    // SAFETY: the parent maps the same file, and uses the input in it only after this process has ended.
    let mut at_hand = unsafe { MmapMut::map_mut(&file)? };
    let files: Vec<Vec<u8>> = corpus::load(target.name)?.into_iter().map(|(_, bytes)| bytes).collect();
    let inputs = Inputs::new(&files, target.form, task.seed ^ hash(target.name));
    let mut place = Place::new()?;
    run::warm(target, &files, &place);
    let (mut counts, mut input) = (Counts::default(), Vec::new());
    let (started, mut written) = (Instant::now(), Instant::now());
    let counted = task.at_hand.with_extension("json");
    for number in task.from..task.to {
        inputs.make(number, &mut input);
        at_hand[8..16].copy_from_slice(&(input.len() as u64).to_le_bytes());
        at_hand[BEFORE..BEFORE + input.len()].copy_from_slice(&input);
        at_hand[..8].copy_from_slice(&number.to_le_bytes());
        if count(target, &input, &place, &task.finds, &mut counts)? {
            // The files there now are not what the next input expects.
            place = Place::new()?;
        }
        if written.elapsed() > EVERY {
            written = Instant::now();
            counts.seconds = started.elapsed().as_secs_f64();
            fs::write(&counted, serde_json::to_string(&counts)?)?;
        }
    }
    counts.seconds = started.elapsed().as_secs_f64();
    Ok(fs::write(&counted, serde_json::to_string(&counts)?)?)
}

/// Runs one input. Returns whether it was a find.
fn count(target: &Target, input: &[u8], place: &Place, finds: &Path, counts: &mut Counts) -> Result<bool> {
    let outcome = run::once(target, input, place);
    counts.executions += 1;
    counts.taken += u64::from(outcome.verdict == Some(Verdict::Taken));
    counts.peak = counts.peak.max(outcome.peak);
    counts.share = counts.share.max(outcome.peak as f64 / target.bound(input.len()) as f64);
    if let Some(said) = outcome.caught {
        *counts.caught.entry(said).or_default() += 1;
    }
    let Some(said) = outcome.find else { return Ok(false) };
    let find = counts.finds.entry(said).or_default();
    find.times += 1;
    if find.inputs.len() < KEPT {
        find.inputs.push(save(target.name, input, finds)?);
    }
    Ok(true)
}

/// Saves an input under its own name.
pub(super) fn save(target: &str, input: &[u8], finds: &Path) -> Result<String> {
    fs::create_dir_all(finds).with_context(|| finds.display().to_string())?;
    let name = format!("{target}-{:016x}", hash(input));
    fs::write(finds.join(&name), input).with_context(|| finds.join(&name).display().to_string())?;
    Ok(name)
}

fn hash(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}
