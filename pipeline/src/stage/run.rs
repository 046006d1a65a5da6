//! A stage, and what every stage is given: the profile, its configuration, and where outputs lie.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use super::declaration::Declaration;
use super::placing::Places;
use super::slices::Slice;
use crate::config::Config;
use crate::manifest::{self, Manifest};
use crate::paths::Paths;
use crate::room::Room;

/// One stage of the pipeline.
pub trait Stage: Sync {
    /// Its name, what it needs and what it makes.
    fn declaration(&self) -> &'static Declaration;
    /// Checks its section of the configuration.
    fn check(&self, _config: &Config) -> Result<()> {
        Ok(())
    }
    /// Checks that its texts fit a model with this many positions, if the configuration tells their lengths.
    fn fits(&self, _config: &Config, _positions: usize) -> Result<()> {
        Ok(())
    }
    /// What it will do in this run, in one line.
    fn plan(&self, _run: &Run) -> String {
        self.declaration().about.to_owned()
    }
    /// How much of its work the run does.
    fn slice(&self, run: &Run) -> Result<Slice> {
        Ok(run.slice)
    }
    /// Named parameters.
    fn parameters(&self, run: &Run) -> Result<Map<String, Value>>;
    /// Digests of further inputs, which are not declared, by name.
    fn inputs(&self, _run: &Run) -> Result<Map<String, Value>> {
        Ok(Map::new())
    }
    /// The memory and disk that it needs, if they are known before it runs.
    fn needs_room(&self, _run: &Run) -> Result<Room> {
        Ok(Room::default())
    }
    /// Makes the outputs in `dir`. Files already in `dir` may be used: an unfinished run left them, or they were copied from
    /// finished outputs. Their recipe is the same, or one that this recipe extends.
    fn make(&self, run: &Run, dir: &Path) -> Result<()>;
    /// Runs on the finished outputs, after [`Stage::make`] and also if they were up to date: copies them to where others look for
    /// them. Writes nothing if the copies are there already.
    fn finish(&self, _run: &Run, _dir: &Path) -> Result<()> {
        Ok(())
    }
    /// The folder of these copies, if there are any. The next run removes what a kill left in it.
    fn copies(&self, _run: &Run) -> Option<PathBuf> {
        None
    }
    /// Lines that are shown after the stage, also if it was up to date.
    fn summary(&self, _run: &Run, _dir: &Path) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
    /// Its declared name.
    fn name(&self) -> &'static str {
        self.declaration().name
    }
}

impl fmt::Debug for dyn Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What every stage is given.
#[derive(Clone)]
pub struct Run {
    pub profile: String,
    /// The arguments that give another process this configuration, without [`Run::force`] and [`Run::slice`].
    pub arguments: Vec<String>,
    pub config: Config,
    pub paths: Paths,
    /// Run stages even if they are up to date.
    pub force: bool,
    /// How much of the stage's work this run does.
    pub slice: Slice,
    /// All stages, each after those that it needs.
    pub stages: &'static [&'static dyn Stage],
}

impl Run {
    /// The same run for another share of the stage's work.
    pub fn with_slice(&self, slice: Slice) -> Self {
        Self { slice, ..self.clone() }
    }

    /// The folder of a finished stage: the run's own; if a named run has none, that of the run it branched from.
    pub fn stage_dir(&self, stage: &str) -> PathBuf {
        let own = self.paths.run.join(stage);
        match &self.paths.base {
            Some(base) if !own.join(manifest::FILE).is_file() => base.join(stage),
            _ => own,
        }
    }

    /// The name of the folder of its outputs: `smol`, or `smol+name` for a named run.
    pub fn label(&self) -> String {
        self.paths.run.file_name().map_or_else(|| self.profile.clone(), |name| name.to_string_lossy().into_owned())
    }

    /// The command that runs a stage of this run: `just train profile=smol`.
    pub fn command(&self, stage: &str) -> String {
        let profile = &self.profile;
        match self.label().strip_prefix(&format!("{profile}+")) {
            Some(name) if self.paths.base.is_some() => format!("just {stage} profile={profile} run={name}"),
            _ => format!("just {stage} profile={profile}"),
        }
    }

    /// The record of an earlier stage, if it has been run. Its outputs must be unchanged.
    ///
    /// # Errors
    /// If the record or an output was changed, cut or removed since, with the command that makes it again.
    pub fn made(&self, stage: &str) -> Result<Option<Manifest>> {
        // Outputs that a killed replacement left without their name get it back first, so that they are not missing.
        Places::new(&self.paths.run, stage).recover()?;
        made(&self.stage_dir(stage), stage).with_context(|| format!("`{}` makes it again", self.command(stage)))
    }

    /// The record of a finished earlier stage.
    ///
    /// # Errors
    /// As [`Run::made`], and if it has not been run.
    pub fn finished(&self, stage: &str) -> Result<Manifest> {
        self.made(stage)?.with_context(|| {
            format!("stage `{stage}` has not been run for profile `{}`: run `{}`", self.profile, self.command(stage))
        })
    }
}

/// The record of a stage whose outputs lie in `dir`, if it has been run.
///
/// # Errors
/// If the record belongs to another stage, or the record or an output was changed, cut or removed since.
pub fn made(dir: &Path, stage: &str) -> Result<Option<Manifest>> {
    let Some(record) = Manifest::open(dir)? else { return Ok(None) };
    ensure!(
        record.recipe.stage == stage,
        "{}: the record of stage `{}`",
        dir.join(manifest::FILE).display(),
        record.recipe.stage
    );
    match record.damage(dir) {
        Some(damage) => bail!("stage `{stage}`: {}: {damage}", dir.display()),
        None => Ok(Some(record)),
    }
}
