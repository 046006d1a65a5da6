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
    /// What it is called, what it needs and what it makes.
    fn declaration(&self) -> &'static Declaration;
    /// Checks its section of the configuration.
    fn check(&self, _config: &Config) -> Result<()> {
        Ok(())
    }
    /// Checks that the texts it runs fit a model of so many positions, as far as the configuration says how long they are.
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
    /// Inputs beside those that are declared, by name: digests of files.
    fn inputs(&self, _run: &Run) -> Result<Map<String, Value>> {
        Ok(Map::new())
    }
    /// What it needs of memory and disk, as far as that is known before.
    fn needs_room(&self, _run: &Run) -> Result<Room> {
        Ok(Room::default())
    }
    /// Makes the outputs in `dir`. Anything already in `dir` was left by an unfinished run of the
    /// very same recipe, and may be built upon.
    fn make(&self, run: &Run, dir: &Path) -> Result<()>;
    /// Follows [`Stage::make`], and an up-to-date check, on the finished outputs: puts copies where
    /// others look for them. Does nothing where they are there already.
    fn finish(&self, _run: &Run, _dir: &Path) -> Result<()> {
        Ok(())
    }
    /// The folder of those copies, if there are any: what a kill left in it is removed by the next run.
    fn copies(&self, _run: &Run) -> Option<PathBuf> {
        None
    }
    /// Shown after the stage, also when it was up to date.
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
    /// The arguments that give another process this configuration, but for [`Run::force`] and [`Run::slice`].
    pub arguments: Vec<String>,
    pub config: Config,
    pub paths: Paths,
    /// Run stages even where they are up to date.
    pub force: bool,
    /// How much of the work of the stage that is run.
    pub slice: Slice,
    /// All stages that there are, each after those it needs.
    pub stages: &'static [&'static dyn Stage],
}

impl Run {
    /// The same for another share of the stage's work.
    pub fn with_slice(&self, slice: Slice) -> Self {
        Self { slice, ..self.clone() }
    }

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

    /// The record of an earlier stage, if it has been run and its outputs are as it made them.
    ///
    /// # Errors
    /// If the record or an output was changed, cut or removed since, with the command that makes it again.
    pub fn made(&self, stage: &str) -> Result<Option<Manifest>> {
        // Outputs that a killed replacement left without their name are not missing.
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
/// If the record is another stage's, or it or an output was changed, cut or removed since.
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
