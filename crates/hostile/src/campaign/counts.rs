//! The counts of a run. They are kept between runs.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use kvcsr_codec::atomic;
use serde::{Deserialize, Serialize};

/// How many inputs are kept of finds with the same message.
pub const KEPT: usize = 3;

/// The counts of one target.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// The number of inputs run.
    pub executions: u64,
    /// The number of inputs that the reader accepted.
    pub taken: u64,
    /// The time of these inputs in seconds, summed over all children.
    pub seconds: f64,
    /// The largest number of bytes allocated at the same time.
    pub peak: usize,
    /// The largest allocation at one time, as a fraction of the bound.
    pub share: f64,
    /// Panics of libraries that were turned into errors, by their message.
    pub caught: BTreeMap<String, u64>,
    /// Broken promises, by their message.
    pub finds: BTreeMap<String, Find>,
}

/// A broken promise.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Find {
    /// How often it occurred.
    pub times: u64,
    /// Inputs that show it, as file names in the folder of finds.
    pub inputs: Vec<String>,
}

impl Counts {
    /// Adds the counts of another part of the same run.
    pub fn add(&mut self, other: Self) {
        self.executions += other.executions;
        self.taken += other.taken;
        self.seconds += other.seconds;
        self.peak = self.peak.max(other.peak);
        self.share = self.share.max(other.share);
        for (said, times) in other.caught {
            *self.caught.entry(said).or_default() += times;
        }
        for (said, find) in other.finds {
            let own = self.finds.entry(said).or_default();
            own.times += find.times;
            let room = KEPT.saturating_sub(own.inputs.len());
            own.inputs.extend(find.inputs.into_iter().take(room));
        }
    }
}

/// The counts of all targets, by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The counts.
    pub targets: BTreeMap<String, Counts>,
}

impl State {
    /// Reads the counts of an earlier run. They are empty if there is no such file.
    ///
    /// # Errors
    /// If the file does not contain counts.
    pub fn load(path: &Path) -> Result<Self> {
        if !path.is_file() {
            return Ok(Self::default());
        }
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }

    /// Writes the counts.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        atomic::write(path, text.as_bytes()).with_context(|| path.display().to_string())
    }
}
