//! The section `[longbench]`: what is run, and which slice of it.

use anyhow::{Context, Result, bail};
use kvcsr_eval::longbench::metrics::CodeSim;
use kvcsr_eval::longbench::prompt::Chat;
use kvcsr_eval::longbench::shard::Shard;
use serde::{Deserialize, Serialize};

use crate::config::check;

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

/// The parameter that names a slice.
pub const SHARD: &str = "shard";

/// Which of the records a run answers: all, or the slice of one of several machines.
#[derive(Clone, Copy)]
pub enum Slice {
    /// All of them.
    Whole,
    /// Those of one slice, in a folder of its own.
    One(Shard),
    /// All of them, from this many finished slices.
    Merge(usize),
}

impl Settings {
    /// What can be checked without the files.
    pub fn check(&self) -> Result<()> {
        check::positive("longbench", &[("max_prompt_tokens", self.max_prompt_tokens)])?;
        check::with_dense("longbench", &self.schemes)?;
        check::some_task("longbench", &self.tasks)?;
        check::profile_or_own("longbench", &self.dictionaries)
    }

    /// The slice that `shard` names.
    pub fn slice(&self) -> Result<Slice> {
        let shard = self.shard.as_str();
        if shard.is_empty() {
            return Ok(Slice::Whole);
        }
        match shard.strip_prefix("merge/").map(str::parse) {
            Some(Ok(count)) if count > 0 => Ok(Slice::Merge(count)),
            Some(_) => bail!("longbench.shard = `{shard}`: expected merge/N with N at least 1"),
            None => Ok(Slice::One(shard.parse().context("longbench.shard")?)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::tests::smoke;

    #[test]
    fn slices_are_named_and_wrong_names_refused() {
        let of = |shard: &str| Settings { shard: shard.into(), ..smoke().longbench }.slice();
        assert!(matches!(of("").unwrap(), Slice::Whole));
        assert!(matches!(of("merge/3").unwrap(), Slice::Merge(3)));
        assert!(matches!(of("2/3").unwrap(), Slice::One(_)));
        for wrong in ["merge/0", "merge/x", "4/3", "half"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
