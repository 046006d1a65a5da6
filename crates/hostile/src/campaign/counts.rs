//! What a run counts, kept between runs.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use kvcsr_codec::atomic;
use serde::{Deserialize, Serialize};

/// Inputs kept of finds that say the same.
pub const KEPT: usize = 3;

/// Counts of one target.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// Inputs run.
    pub executions: u64,
    /// Of them, inputs that the reader took.
    pub taken: u64,
    /// Seconds they took, over all children.
    pub seconds: f64,
    /// Most bytes allocated at once.
    pub peak: usize,
    /// The largest share of the bound that was allocated at once.
    pub share: f64,
    /// Panics of libraries that were made errors, by what they said.
    pub caught: BTreeMap<String, u64>,
    /// Broken promises, by what was said.
    pub finds: BTreeMap<String, Find>,
}

/// A broken promise.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Find {
    /// How often.
    pub times: u64,
    /// Inputs that show it, files of the folder of finds.
    pub inputs: Vec<String>,
}

impl Counts {
    /// Adds those of another part of the same run.
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

/// Counts of all targets, by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The counts.
    pub targets: BTreeMap<String, Counts>,
}

impl State {
    /// Reads what an earlier run left, nothing if there is no such file.
    ///
    /// # Errors
    /// If the file is no state.
    pub fn load(path: &Path) -> Result<Self> {
        if !path.is_file() {
            return Ok(Self::default());
        }
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }

    /// Writes it.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        atomic::write(path, text.as_bytes()).with_context(|| path.display().to_string())
    }
}
