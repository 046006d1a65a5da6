//! Which stages make what schemes are built from.

use std::path::PathBuf;

use anyhow::{Context, Result};
use kvcsr_cache::{Needs, registry};

use super::declaration::{Artefact, SchemeNames};
use super::run::{Run, Stage};
use crate::manifest::Manifest;

/// What the schemes of these names need.
pub fn needs(names: &[String]) -> Result<Vec<Needs>> {
    names.iter().map(|name| Ok(registry::needs(name)?)).collect()
}

/// Whether some scheme needs this artefact.
pub fn wanted(needs: &[Needs], artefact: Artefact) -> bool {
    needs.iter().any(|needs| match artefact {
        Artefact::None => false,
        Artefact::Dictionaries(name) | Artefact::PeerDictionaries(name) => needs.dictionaries.as_deref() == Some(name),
        Artefact::Codebooks => needs.codebooks.is_some(),
        Artefact::Budgets => needs.budget.is_some(),
    })
}

/// Those of `stages` that make what schemes called `names` are built from, in the order in which they are run.
///
/// # Errors
/// If a name is no scheme's.
pub fn makers(stages: &[&'static dyn Stage], names: &[String]) -> Result<Vec<&'static dyn Stage>> {
    let needs = needs(names)?;
    let makes = |stage: &&&dyn Stage| stage.declaration().makes.iter().any(|output| wanted(&needs, output.artefact));
    Ok(stages.iter().filter(makes).copied().collect())
}

/// The folder of a stage that `profile` has run. An empty `profile` is the run's own.
pub fn folder(run: &Run, profile: &str, stage: &str) -> PathBuf {
    match profile.is_empty() || profile == run.profile {
        true => run.stage_dir(stage),
        false => run.paths.run.with_file_name(profile).join(stage),
    }
}

/// Names and digests of the stages that schemes are built from.
///
/// # Errors
/// If one of them has not been run.
pub fn digests(run: &Run, schemes: SchemeNames<'_>) -> Result<Vec<(&'static str, String)>> {
    let SchemeNames { names, profile } = schemes;
    let digest = |stage: &'static str| {
        if profile.is_empty() || profile == run.profile {
            return Ok((stage, run.finished(stage)?.digest));
        }
        let record = Manifest::read(&folder(run, profile, stage)).with_context(|| {
            format!("stage `{stage}` has not been run for profile `{profile}`: run `just {stage} profile={profile}`")
        })?;
        Ok((stage, record.digest))
    };
    makers(run.stages, names)?.into_iter().map(|stage| digest(stage.name())).collect()
}
