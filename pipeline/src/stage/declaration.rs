//! The declaration of a stage: its name, what it needs and what it makes.

use super::slices::Sliced;
use crate::config::Config;

/// The declaration of a stage, which stands in the stage's own file. The command line and its help, the order of `reproduce`, the
/// downloads, the search for the stage that makes a scheme's artefacts, and the report read it from the list of all stages. A test
/// compares the commands of the justfile with it.
pub struct Declaration {
    /// The name of its folder and of its command, of `kvcsr` and of `just`.
    pub name: &'static str,
    /// One sentence, for `--help` and the justfile.
    pub about: &'static str,
    /// Raised when a change of the code changes the stage's outputs.
    pub version: u32,
    /// What it is made from. Missing needs are reported in this order.
    pub needs: &'static [Need],
    /// The files that later stages, schemes and the report read.
    pub makes: &'static [Output],
    /// Files that say how good the outputs are. No stage reads them, and other machines measure other values, so they are not
    /// part of the digest.
    pub aside: &'static [&'static str],
    /// Whether it is a goal of `reproduce`, which runs it after the stages that it needs.
    pub reproduced: bool,
    /// Options of its command that stand for parameters.
    pub options: &'static [CommandOption],
    /// Parameters that may grow while existing outputs stay valid: lists that get more members, numbers that rise. The stage then
    /// continues from what it has made. `heldout.repeats` names a member of a section.
    pub grows: &'static [&'static str],
    /// How it is made in slices, if it can be: its command then has `--shard` and `--merge`.
    pub sliced: Option<&'static dyn Sliced>,
    /// Whether it shows whatever other stages have made, and so comes after all of them.
    pub follows_all: bool,
}

impl Declaration {
    /// The starting point of a declaration: it needs nothing and makes nothing.
    pub const EMPTY: Self = Self {
        name: "",
        about: "",
        version: 1,
        needs: &[],
        makes: &[],
        aside: &[],
        reproduced: false,
        options: &[],
        grows: &[],
        sliced: None,
        follows_all: false,
    };
}

/// A file that a stage makes.
pub struct Output {
    /// Its name in the stage's folder.
    pub file: &'static str,
    /// The artefact in it that schemes are built from.
    pub artefact: Artefact,
}

impl Output {
    /// A file that no scheme is built from.
    pub const fn rows(file: &'static str) -> Self {
        Self { file, artefact: Artefact::None }
    }

    /// A file with the dictionary set that schemes call `name`.
    pub const fn dictionaries(name: &'static str, file: &'static str) -> Self {
        Self { file, artefact: Artefact::Dictionaries(name) }
    }
}

/// An artefact that schemes are built from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Artefact {
    /// No scheme is built from this file.
    None,
    /// The dictionary set of this name.
    Dictionaries(&'static str),
    /// Codebooks of calibrated peers. Their names are the names of their files.
    Codebooks,
    /// The codebooks of this name.
    Tables(&'static str),
    /// The dictionary set of a calibrated peer, with this name. It lacks the provenance that our own sets must have.
    PeerDictionaries(&'static str),
    /// Levels by layer and kind.
    Budgets,
}

/// An option of a stage's command, besides the options that all stages have.
pub struct CommandOption {
    /// Its name.
    pub name: &'static str,
    /// The placeholder for its value in the help; none if it takes no value.
    pub value: Option<&'static str>,
    /// One sentence.
    pub about: &'static str,
    /// The parameter that it sets. Two options of one parameter exclude each other.
    pub parameter: &'static str,
    /// The parameter's value; `{}` stands for the option's value.
    pub sets: &'static str,
}

/// Something that a stage is made from.
pub enum Need {
    /// The outputs of an earlier stage.
    Stage(&'static str),
    /// The profile's model.
    Model,
    /// The profile's corpora.
    Corpora,
    /// The long documents of the profile's domains.
    Documents,
    /// The texts that tasks of the suite are built from. The configuration names the tasks.
    Tasks(fn(&Config) -> &[String]),
    /// All artefacts of the schemes that the configuration names.
    Schemes(fn(&Config) -> SchemeNames<'_>),
}

/// Schemes as a section of the configuration names them.
#[derive(Debug, Clone, Copy)]
pub struct SchemeNames<'c> {
    /// Their names.
    pub names: &'c [String],
    /// The profile whose artefacts they are built from; empty: the run's own.
    pub profile: &'c str,
}
