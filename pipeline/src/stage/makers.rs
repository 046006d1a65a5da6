//! Finds the stages that make the artefacts of schemes.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result};
use kvcsr_cache::{Needs, registry};

use super::declaration::{Artefact, Output, SchemeNames};
use super::run::{Run, Stage, made};
use crate::plans;

/// What the schemes of these names need.
pub fn needs(names: &[String]) -> Result<Vec<Needs>> {
    names.iter().map(|name| Ok(registry::needs(name)?)).collect()
}

/// Names of the codebooks that schemes need and that none of `stages` makes as its own tables: the codebooks of calibrated peers.
pub fn peer_codebooks<'n>(stages: &[&dyn Stage], needs: &'n [Needs]) -> BTreeSet<&'n str> {
    let own = |name: &str| {
        let made = |output: &Output| matches!(output.artefact, Artefact::Tables(own) if own == name);
        stages.iter().any(|stage| stage.declaration().makes.iter().any(made))
    };
    needs.iter().filter_map(|needs| needs.codebooks.as_deref()).filter(|name| !own(name)).collect()
}

/// Whether some scheme needs this artefact of one of `stages`.
pub fn wanted(stages: &[&dyn Stage], needs: &[Needs], artefact: Artefact) -> bool {
    needs.iter().any(|needs| match artefact {
        Artefact::None => false,
        Artefact::Dictionaries(name) | Artefact::PeerDictionaries(name) => needs.dictionaries.as_deref() == Some(name),
        Artefact::Codebooks => !peer_codebooks(stages, std::slice::from_ref(needs)).is_empty(),
        Artefact::Tables(name) => needs.codebooks.as_deref() == Some(name),
        Artefact::Budgets => needs.budget.is_some(),
    })
}

/// Those of `stages` that make artefacts of the schemes `names`, in the order in which they run.
///
/// # Errors
/// If a name is not the name of a scheme.
pub fn makers(stages: &[&'static dyn Stage], names: &[String]) -> Result<Vec<&'static dyn Stage>> {
    let needs = needs(names)?;
    let makes =
        |stage: &&&dyn Stage| stage.declaration().makes.iter().any(|output| wanted(stages, &needs, output.artefact));
    Ok(stages.iter().filter(makes).copied().collect())
}

/// The folder of a stage that `profile` has run. An empty `profile` is the run's own.
pub fn folder(run: &Run, profile: &str, stage: &str) -> PathBuf {
    match profile.is_empty() || profile == run.profile {
        true => run.stage_dir(stage),
        false => run.paths.run.with_file_name(profile).join(stage),
    }
}

/// The folder of the plans of `profile`. An empty `profile` is the run's own.
pub fn plans_folder(run: &Run, profile: &str) -> PathBuf {
    run.paths.plans(if profile.is_empty() { &run.profile } else { profile })
}

/// Names and digests of the files that schemes are built from, such as `train/dictionaries.safetensors`. Other files of the same
/// stage are not among them.
///
/// # Errors
/// If a stage that makes one has not been run.
pub fn digests(run: &Run, schemes: SchemeNames<'_>) -> Result<Vec<(String, String)>> {
    let SchemeNames { names, profile } = schemes;
    let needs = needs(names)?;
    let mut digests = plans::digests(&needs, &plans_folder(run, profile))?;
    for maker in makers(run.stages, names)? {
        let stage = maker.name();
        let record = if profile.is_empty() || profile == run.profile {
            run.finished(stage)?
        } else {
            let command = format!("just {stage} profile={profile}");
            made(&folder(run, profile, stage), stage)
                .with_context(|| format!("`{command}` makes it again"))?
                .with_context(|| format!("stage `{stage}` has not been run for profile `{profile}`: run `{command}`"))?
        };
        let outputs = maker.declaration().makes.iter().filter(|output| wanted(run.stages, &needs, output.artefact));
        let files = outputs.flat_map(|output| match output.artefact {
            Artefact::Codebooks => peer_codebooks(run.stages, &needs).into_iter().map(codebook_file).collect(),
            _ => vec![output.file.to_owned()],
        });
        for file in files {
            let output = record.outputs.iter().find(|output| output.file == file).with_context(|| {
                format!(
                    "stage `{stage}` has made no {file}, which a scheme is built from: see its section of the profile"
                )
            })?;
            digests.push((format!("{stage}/{file}"), output.blake3.clone()));
        }
    }
    Ok(digests)
}

/// The file of the codebooks of this name.
pub fn codebook_file(name: &str) -> String {
    format!("{name}.safetensors")
}
