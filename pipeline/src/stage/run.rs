//! What every stage is given: the profile, its configuration, and where outputs lie.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::config::Config;
use crate::manifest::{self, Manifest};
use crate::paths::Paths;

/// What every stage is given.
pub struct Run {
    pub profile: String,
    pub config: Config,
    pub paths: Paths,
    /// Run stages even where they are up to date.
    pub force: bool,
}

impl Run {
    /// The folder of a finished stage: the run's own, or, where a named run has none, that of the run it branched from.
    pub fn stage_dir(&self, stage: &str) -> PathBuf {
        let own = self.paths.run.join(stage);
        match &self.paths.base {
            Some(base) if !own.join(manifest::FILE).is_file() => base.join(stage),
            _ => own,
        }
    }

    /// `smol`, or `smol+name` for a named run: the folder of its outputs.
    pub fn label(&self) -> String {
        self.paths.run.file_name().map_or_else(|| self.profile.clone(), |name| name.to_string_lossy().into_owned())
    }

    /// The recipe that runs a stage of this run: `just train profile=smol`.
    pub fn command(&self, stage: &str) -> String {
        let profile = &self.profile;
        match self.label().strip_prefix(&format!("{profile}+")) {
            Some(name) if self.paths.base.is_some() => format!("just {stage} profile={profile} run={name}"),
            _ => format!("just {stage} profile={profile}"),
        }
    }

    /// The record of a finished earlier stage.
    pub fn finished(&self, stage: &str) -> Result<Manifest> {
        Manifest::read(&self.stage_dir(stage)).with_context(|| {
            format!("stage `{stage}` has not been run for profile `{}`: run `{}`", self.profile, self.command(stage))
        })
    }
}
