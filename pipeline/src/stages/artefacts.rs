//! What schemes are built from: which stage makes it, and building the schemes from it, checked.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kvcsr_cache::{Geometry, Needs, Scheme, SchemeContext, registry};
use kvcsr_codec::{CodebookSet, DictionarySet};

use crate::manifest::{self, Manifest};
use crate::stage::{Artefact, Run, SchemeNames, Stage};
use crate::stages::provenance::Owner;
use crate::stages::{self, allocate};

/// What the schemes of these names need.
fn needs(names: &[String]) -> Result<Vec<Needs>> {
    names.iter().map(|name| Ok(registry::needs(name)?)).collect()
}

/// Whether some scheme needs this artefact.
fn wanted(needs: &[Needs], artefact: Artefact) -> bool {
    needs.iter().any(|needs| match artefact {
        Artefact::None => false,
        Artefact::Dictionaries(name) | Artefact::PeerDictionaries(name) => needs.dictionaries.as_deref() == Some(name),
        Artefact::Codebooks => needs.codebooks.is_some(),
        Artefact::Budgets => needs.budget.is_some(),
    })
}

/// The stages that make what schemes called `names` are built from, in the order in which they are run.
///
/// # Errors
/// If a name is no scheme's.
pub fn makers(names: &[String]) -> Result<Vec<&'static dyn Stage>> {
    let needs = needs(names)?;
    let makes = |stage: &&&dyn Stage| stage.declaration().makes.iter().any(|output| wanted(&needs, output.artefact));
    Ok(stages::ALL.iter().filter(makes).copied().collect())
}

/// The folder of a stage that `profile` has run. An empty `profile` is the run's own.
fn folder(run: &Run, profile: &str, stage: &str) -> PathBuf {
    match profile.is_empty() || profile == run.profile {
        true => run.stage_dir(stage),
        false => run.paths.run.with_file_name(profile).join(stage),
    }
}

/// Names and digests of the files that schemes are built from, as `train/dictionaries.safetensors`: another file of the same stage
/// changes nothing.
///
/// # Errors
/// If a stage that makes one has not been run.
pub fn digests(run: &Run, schemes: SchemeNames<'_>) -> Result<Vec<(String, String)>> {
    let SchemeNames { names, profile } = schemes;
    let needs = needs(names)?;
    let mut digests = Vec::new();
    for maker in makers(names)? {
        let stage = maker.name();
        let record = if profile.is_empty() || profile == run.profile {
            run.finished(stage)?
        } else {
            Manifest::read(&folder(run, profile, stage)).with_context(|| {
                format!(
                    "stage `{stage}` has not been run for profile `{profile}`: run `just {stage} profile={profile}`"
                )
            })?
        };
        let outputs = maker.declaration().makes.iter().filter(|output| wanted(&needs, output.artefact));
        let files = outputs.flat_map(|output| match output.artefact {
            Artefact::Codebooks => needs
                .iter()
                .filter_map(|needs| needs.codebooks.as_deref())
                .collect::<BTreeSet<_>>()
                .into_iter()
                .map(codebook_file)
                .collect(),
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
fn codebook_file(name: &str) -> String {
    format!("{name}.safetensors")
}

/// The schemes of a section of the configuration.
///
/// # Errors
/// An artefact does not load or is another model's, or a scheme lacks one.
pub fn schemes(run: &Run, schemes: SchemeNames<'_>, geometry: Geometry) -> Result<Vec<Box<dyn Scheme>>> {
    let owner = Owner::of(run, geometry)?;
    let context = load(schemes.names, |stage| folder(run, schemes.profile, stage), &owner)?;
    schemes.names.iter().map(|name| Ok(registry::build(name, &context)?)).collect()
}

/// What schemes called `names` are built from, as far as it is there; `folder` is where a stage's outputs lie.
///
/// # Errors
/// A name is no scheme's; an artefact does not load, does not cover the model or was trained for another one.
pub fn load(names: &[String], folder: impl Fn(&str) -> PathBuf, owner: &Owner) -> Result<SchemeContext> {
    let mut cx = SchemeContext::new(owner.geometry());
    let needs = needs(names)?;
    for stage in stages::ALL {
        let dir = folder(stage.name());
        let finished = dir.join(manifest::FILE).is_file();
        for output in stage.declaration().makes.iter().filter(|_| finished) {
            if !wanted(&needs, output.artefact) {
                continue;
            }
            let path = dir.join(output.file);
            cx = match output.artefact {
                Artefact::None => cx,
                Artefact::Dictionaries(name) => cx.with_dictionaries(name, owner.load(&path)?),
                Artefact::PeerDictionaries(name) => cx.with_dictionaries(name, DictionarySet::load(path)?),
                Artefact::Budgets => cx.with_budgets(allocate::read(&dir)?),
                Artefact::Codebooks => with_codebooks(cx, needs.iter().filter_map(|n| n.codebooks.as_deref()), &dir)?,
            };
        }
    }
    Ok(cx)
}

/// The context with the codebooks of these names that `dir` has.
fn with_codebooks<'n>(
    mut cx: SchemeContext,
    names: impl Iterator<Item = &'n str>,
    dir: &Path,
) -> Result<SchemeContext> {
    for name in names.collect::<BTreeSet<_>>() {
        let path = dir.join(codebook_file(name));
        if path.is_file() {
            cx = cx.with_codebooks(name, CodebookSet::load(path)?);
        }
    }
    Ok(cx)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::tests::smoke;
    use crate::stages::leading_to;

    #[test]
    fn only_the_stages_are_asked_for_that_some_scheme_is_built_from() {
        let needs = |names: &[&str]| -> Result<Vec<&str>> {
            let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
            let stages = leading_to(&makers(&names)?, &smoke())?;
            Ok(stages.iter().map(|stage| stage.name()).filter(|name| !["calibrate", "merge"].contains(name)).collect())
        };
        assert!(needs(&["dense", "dense-f16", "kivi-2", "svdq-2"]).unwrap().is_empty());
        assert_eq!(needs(&["csr-8@kmeans", "csr-8+window"]).unwrap(), ["train"]);
        assert_eq!(needs(&["csr-8+rope"]).unwrap(), ["train", "train-rope"]);
        assert_eq!(needs(&["dense", "csr-8+refit@best"]).unwrap(), ["train", "train-best"]);
        assert_eq!(needs(&["csr-8+budget"]).unwrap(), ["train", "allocate"]);
        for calibrated in ["lexico-8", "cq-8c8b", "cq-8c8b+window", "commvq-k-1", "svdq-2(basis=calibrated)"] {
            assert_eq!(needs(&["dense", calibrated]).unwrap(), ["calibrate-peers"], "{calibrated}");
        }
        assert!(needs(&["densest"]).is_err());
    }
}
