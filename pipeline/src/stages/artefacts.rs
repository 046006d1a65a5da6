//! Builds schemes from the artefacts that stages made, and checks these.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kvcsr_cache::{Scheme, SchemeContext, registry};
use kvcsr_codec::{CodebookSet, DictionarySet};
use kvcsr_model::Decoder;

use crate::manifest;
use crate::plans;
use crate::stage::{
    Artefact, Run, SchemeNames, Stage, codebook_file, folder, needs, peer_codebooks, plans_folder, wanted,
};
use crate::stages::allocate;
use crate::stages::provenance::Owner;

/// The schemes of a section of the configuration, as they run on the decoder's device.
///
/// # Errors
/// If an artefact does not load or belongs to another model, or a scheme lacks one.
pub fn schemes(run: &Run, schemes: SchemeNames<'_>, decoder: &Decoder) -> Result<Vec<Box<dyn Scheme>>> {
    let owner = Owner::of(run, decoder.geometry())?;
    let SchemeNames { names, profile } = schemes;
    let context = load(run.stages, names, |stage| folder(run, profile, stage), &plans_folder(run, profile), &owner)?
        .with_attention(run.config.attention()?, decoder.device());
    names.iter().map(|name| Ok(registry::build(name, &context)?)).collect()
}

/// The context that the schemes `names` are built from, with those of their artefacts that `stages` have made, and those of their
/// plans that exist. `folder` gives the folder of a stage's outputs, `written` is the folder of the plans.
///
/// # Errors
/// If a name is not the name of a scheme, or an artefact does not load, does not cover the model, or was trained for another model,
/// or a file of a plan is not one.
pub fn load(
    stages: &[&dyn Stage],
    names: &[String],
    folder: impl Fn(&str) -> PathBuf,
    written: &Path,
    owner: &Owner,
) -> Result<SchemeContext> {
    let mut cx = SchemeContext::new(owner.geometry());
    let needs = needs(names)?;
    for stage in stages {
        let dir = folder(stage.name());
        let finished = dir.join(manifest::FILE).is_file();
        for output in stage.declaration().makes.iter().filter(|_| finished) {
            if !wanted(stages, &needs, output.artefact) {
                continue;
            }
            let path = dir.join(output.file);
            cx = match output.artefact {
                Artefact::None => cx,
                Artefact::Dictionaries(name) => cx.with_dictionaries(name, owner.load(&path)?),
                Artefact::PeerDictionaries(name) => cx.with_dictionaries(name, DictionarySet::load(path)?),
                Artefact::Budgets => cx.with_budgets(allocate::read(&dir)?),
                Artefact::Tables(name) => cx.with_codebooks(name, CodebookSet::load(path)?),
                Artefact::Codebooks => with_codebooks(cx, peer_codebooks(stages, &needs), &dir)?,
            };
        }
    }
    plans::with(cx, &needs, written)
}

/// Joins the codebooks of `files`, one file for each layer, into one set.
///
/// # Errors
/// If there are no files, or one does not load.
pub fn joined(files: impl IntoIterator<Item = PathBuf>) -> Result<CodebookSet> {
    let mut files = files.into_iter();
    let mut set = CodebookSet::load(files.next().context("the model has no layers")?)?;
    for file in files {
        set.extend(CodebookSet::load(file)?);
    }
    Ok(set)
}

/// The context with the codebooks of these names that `dir` has.
fn with_codebooks(mut cx: SchemeContext, names: BTreeSet<&str>, dir: &Path) -> Result<SchemeContext> {
    for name in names {
        let path = dir.join(codebook_file(name));
        if path.is_file() {
            cx = cx.with_codebooks(name, CodebookSet::load(path)?);
        }
    }
    Ok(cx)
}
