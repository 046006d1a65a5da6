//! The section `[longbench]`: what is run, and which share of it.

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
    pub resamples: usize,
}

/// The parameter that names a share.
pub const SHARD: &str = "shard";

/// Which share of the records a run answers.
#[derive(Clone, Copy)]
pub enum Share {
    /// All of them.
    Whole,
    /// Those of one shard, in a folder of its own.
    Shard(Shard),
    /// All of them, from this many finished shards.
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

    /// The share that `shard` names.
    pub fn share(&self) -> Result<Share> {
        let shard = self.shard.as_str();
        if shard.is_empty() {
            return Ok(Share::Whole);
        }
        match shard.strip_prefix("merge/").map(str::parse) {
            Some(Ok(count)) if count > 0 => Ok(Share::Merge(count)),
            Some(_) => bail!("longbench.shard = `{shard}`: expected merge/N with N at least 1"),
            None => Ok(Share::Shard(shard.parse().context("longbench.shard")?)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::tests::smoke;

    #[test]
    fn shares_are_named_and_wrong_names_refused() {
        let of = |shard: &str| Settings { shard: shard.into(), ..smoke().longbench }.share();
        assert!(matches!(of("").unwrap(), Share::Whole));
        assert!(matches!(of("merge/3").unwrap(), Share::Merge(3)));
        assert!(matches!(of("2/3").unwrap(), Share::Shard(_)));
        for wrong in ["merge/0", "merge/x", "4/3", "half"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
