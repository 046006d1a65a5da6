//! What a stage is: declared once, made once, recorded beside its outputs.

mod lock;
mod making;
mod needs;
mod run;

use std::fmt;
use std::path::Path;

use anyhow::{Result, bail};
use serde_json::{Map, Value};

pub use self::making::run;
pub use self::needs::{Need, SchemeNames, declared_inputs, downloads};
pub use self::run::Run;
use crate::config::Config;
use crate::manifest::Recipe;

/// What is declared of a stage, in its own file. The command line, its help, the order of `reproduce`, what is downloaded,
/// which stage a scheme's artefacts come from and the report read it from [`crate::stages::ALL`]; so do the recipes of
/// the justfile, by a test.
pub struct Declaration {
    /// Its command, its folder and its recipe in the justfile.
    pub name: &'static str,
    /// One sentence, for `--help` and the justfile.
    pub about: &'static str,
    /// Raised when the code changes what the stage makes.
    pub version: u32,
    /// What it is made from, in the order in which what is missing is told.
    pub needs: &'static [Need],
    /// The files that later stages, schemes and the report read.
    pub makes: &'static [Output],
    /// Whether `reproduce` ends with it; what it needs comes before it.
    pub reproduced: bool,
    /// Options of its command that stand for parameters.
    pub options: &'static [CommandOption],
    /// Parameters that may grow without making what is there wrong: lists that get members, numbers that rise. The stage then goes
    /// on from what it has made; `heldout.repeats` names a member of a section.
    pub grows: &'static [&'static str],
}

impl Declaration {
    /// Where a declaration starts from: nothing needed, nothing made.
    pub const EMPTY: Self =
        Self { name: "", about: "", version: 1, needs: &[], makes: &[], reproduced: false, options: &[], grows: &[] };
}

/// A file that a stage makes.
pub struct Output {
    /// Its name in the stage's folder.
    pub file: &'static str,
    /// What schemes find in it.
    pub artefact: Artefact,
}

impl Output {
    /// A file that no scheme is built from.
    pub const fn rows(file: &'static str) -> Self {
        Self { file, artefact: Artefact::None }
    }

    /// The dictionary set that schemes call `name`.
    pub const fn dictionaries(name: &'static str, file: &'static str) -> Self {
        Self { file, artefact: Artefact::Dictionaries(name) }
    }
}

/// What schemes are built from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Artefact {
    /// Nothing of this file.
    None,
    /// The dictionary set of this name.
    Dictionaries(&'static str),
    /// Codebooks of calibrated methods, by the names of their files.
    Codebooks,
    /// The dictionary set of a calibrated peer, by this name: it comes without the record that our own sets carry.
    PeerDictionaries(&'static str),
    /// Levels by layer and kind.
    Budgets,
}

/// An option of a stage's command, beside those that all have.
pub struct CommandOption {
    /// Its name.
    pub name: &'static str,
    /// What stands for its value in the help; none for one that takes no value.
    pub value: Option<&'static str>,
    /// One sentence.
    pub about: &'static str,
    /// The parameter that it sets. Two options of one parameter exclude each other.
    pub parameter: &'static str,
    /// The parameter's value; `{}` stands for the option's.
    pub sets: &'static str,
}

/// One stage of the pipeline.
pub trait Stage: Sync {
    /// What it is called, what it needs and what it makes.
    fn declaration(&self) -> &'static Declaration;
    /// Checks its section of the configuration.
    fn check(&self, _config: &Config) -> Result<()> {
        Ok(())
    }
    /// What it will do in this run, in one line.
    fn plan(&self, _run: &Run) -> String {
        self.declaration().about.to_owned()
    }
    /// Its folder, where that is not its name: one shard of a stage that is run in shards.
    fn folder(&self, _run: &Run) -> String {
        self.name().to_owned()
    }
    /// Named parameters.
    fn parameters(&self, run: &Run) -> Result<Map<String, Value>>;
    /// Inputs by name: digests of files and of earlier stages. What is declared, where a stage does not add to it.
    fn inputs(&self, run: &Run) -> Result<Map<String, Value>> {
        declared_inputs(self.declaration(), run)
    }
    /// Makes the outputs in `dir`. Anything already in `dir` was left by an unfinished run of the
    /// very same recipe, and may be built upon.
    fn make(&self, run: &Run, dir: &Path) -> Result<()>;
    /// Follows [`Stage::make`], and an up-to-date check, on the finished outputs: puts copies where
    /// others look for them. Does nothing where they are there already.
    fn finish(&self, _run: &Run, _dir: &Path) -> Result<()> {
        Ok(())
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

/// What determines the outputs of `stage` in this run.
pub fn recipe(stage: &dyn Stage, run: &Run) -> Result<Recipe> {
    let Declaration { name, version, .. } = *stage.declaration();
    Ok(Recipe { stage: name.to_owned(), version, parameters: stage.parameters(run)?, inputs: stage.inputs(run)? })
}

/// The members of a serialisable section as named parameters.
pub fn parameters_of(section: &impl serde::Serialize) -> Result<Map<String, Value>> {
    match serde_json::to_value(section)? {
        Value::Object(map) => Ok(map),
        other => bail!("parameters must be named, found {other}"),
    }
}
