//! What is declared of a stage: its name, what it needs and what it makes.

use super::slices::Sliced;
use crate::config::Config;

/// What is declared of a stage, in its own file. The command line, its help, the order of `reproduce`, what is downloaded,
/// which stage a scheme's artefacts come from and the report read it from the list of all stages; so do the recipes of
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
    /// Files that say how outputs did. No stage reads them, and other machines measure them otherwise: they are no part of the digest.
    pub aside: &'static [&'static str],
    /// Whether `reproduce` ends with it; what it needs comes before it.
    pub reproduced: bool,
    /// Options of its command that stand for parameters.
    pub options: &'static [CommandOption],
    /// Parameters that may grow without making what is there wrong: lists that get members, numbers that rise. The stage then goes
    /// on from what it has made; `heldout.repeats` names a member of a section.
    pub grows: &'static [&'static str],
    /// How it is made in slices, if it can be: its command then has `--shard` and `--merge`.
    pub sliced: Option<&'static dyn Sliced>,
    /// Whether it shows whatever other stages have made, and so comes after all of them.
    pub follows_all: bool,
}

impl Declaration {
    /// Where a declaration starts from: nothing needed, nothing made.
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
    /// Codebooks of calibrated peers, by the names of their files.
    Codebooks,
    /// The codebooks of this name.
    Tables(&'static str),
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
    /// The texts that tasks of the suite are built from; the tasks are named by the configuration.
    Tasks(fn(&Config) -> &[String]),
    /// Whatever the schemes are built from that the configuration names.
    Schemes(fn(&Config) -> SchemeNames<'_>),
}

/// Schemes as a section of the configuration names them.
#[derive(Debug, Clone, Copy)]
pub struct SchemeNames<'c> {
    /// Their names.
    pub names: &'c [String],
    /// The profile whose artefacts they are built from; the run's own where it is empty.
    pub profile: &'c str,
}
