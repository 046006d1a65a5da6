//! The section `[longbench]`: what runs, and which slice of it.

use anyhow::{Context, Result};
use kvcsr_eval::longbench::metrics::CodeSim;
use kvcsr_eval::longbench::prompt::Chat;
use serde::{Deserialize, Serialize};

use crate::config::check;
use crate::stage::Slice;

/// The section `[longbench]`; `profiles/defaults.toml` explains every parameter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub folder: String,
    pub tasks: Vec<String>,
    pub limit: usize,
    pub max_prompt_tokens: usize,
    pub chat: Chat,
    pub schemes: Vec<String>,
    pub dictionaries: String,
    pub code_sim: CodeSim,
    pub e: bool,
    pub shard: String,
    pub keep_going: bool,
    pub paper_model: String,
}

impl Settings {
    /// Checks what can be checked without LongBench's files.
    pub fn check(&self) -> Result<()> {
        check::positive("longbench", &[("max_prompt_tokens", self.max_prompt_tokens)])?;
        check::with_dense("longbench", &self.schemes)?;
        check::some_task("longbench", &self.tasks)?;
        check::profile_or_own("longbench", &self.dictionaries)
    }

    /// The slice that `shard` names. `shard` is how a profile writes `--shard` and `--merge`.
    pub fn slice(&self) -> Result<Slice> {
        self.shard.parse().context("longbench.shard")
    }
}
