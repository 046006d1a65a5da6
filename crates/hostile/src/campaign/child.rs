//! A part of a run in a process of its own.

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

/// Bytes before the input in the mapped file: the number of the input at hand, and its length.
pub(super) const BEFORE: usize = 16;
/// Bytes of the mapped file.
pub(super) const MAPPED: usize = BEFORE + LONGEST;
/// How often counts are written, for a parent that outlives the child.
const EVERY: Duration = Duration::from_secs(1);

/// What a child does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Task {
    pub(super) target: String,
    /// Numbers of the inputs.
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) seed: u64,
    /// Where the input at hand is kept; counts lie beside it, with the ending `json`.
    pub(super) at_hand: PathBuf,
    /// Where inputs of finds are kept.
    pub(super) finds: PathBuf,
}

/// Runs the part that `task` describes, a JSON text of the parent's.
///
/// # Errors
/// If the task makes no sense, or the disk refuses.
pub fn child(task: &str) -> Result<()> {
    let task: Task = serde_json::from_str(task).context("the task of a child")?;
    let target = named(&task.target).with_context(|| format!("no target `{}`", task.target))?;
    let file = File::options().read(true).write(true).open(&task.at_hand)?;
    // SAFETY: the parent maps the same file, and reads it only where this process stands still or is gone.
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
            // Whatever lies there now is not what the next input expects.
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

/// Runs one input; whether it was a find.
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

/// Keeps an input under a name of its own.
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
