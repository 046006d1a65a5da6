//! What schemes are built from: which stage makes it, and building the schemes from it, checked.

use std::path::PathBuf;

use anyhow::{Context, Result};
use kvcsr_cache::schemes::lexico;
use kvcsr_cache::{Geometry, Scheme, SchemeContext, registry};
use kvcsr_codec::{CodebookSet, DictionarySet};

use crate::manifest::{self, Manifest};
use crate::stage::{Artefact, Run, SchemeNames, Stage};
use crate::stages::provenance::Owner;
use crate::stages::{self, allocate};

/// What a scheme needs, from its name alone.
struct Needs {
    dictionaries: Option<String>,
    codebooks: Option<String>,
    budget: bool,
}

impl Needs {
    fn of(name: &str) -> Result<Self> {
        let needs = registry::needs(name)?;
        Ok(Self { dictionaries: needs.dictionaries, codebooks: needs.codebooks, budget: needs.budget.is_some() })
    }

    fn meets(&self, artefact: Artefact) -> bool {
        match artefact {
            Artefact::None => false,
            Artefact::Dictionaries(name) => self.dictionaries.as_deref() == Some(name),
            Artefact::Codebooks => self.codebooks.is_some(),
            Artefact::Budgets => self.budget,
        }
    }
}

/// The stages that make what schemes called `names` are built from, in the order in which they are run.
///
/// # Errors
/// If a name is no scheme's.
pub fn makers(names: &[String]) -> Result<Vec<&'static dyn Stage>> {
    let needs = names.iter().map(|name| Needs::of(name)).collect::<Result<Vec<_>>>()?;
    let made_for = |artefact| needs.iter().any(|needs| needs.meets(artefact));
    let makes = |stage: &&&dyn Stage| stage.declaration().makes.iter().any(|output| made_for(output.artefact));
    Ok(stages::ALL.iter().filter(makes).copied().collect())
}

/// The folder of a stage that `profile` has run. An empty `profile` is the run's own.
fn folder(run: &Run, profile: &str, stage: &str) -> PathBuf {
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
    makers(names)?.into_iter().map(|stage| digest(stage.name())).collect()
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
    let mut context = SchemeContext::new(owner.geometry());
    let needs = names.iter().map(|name| Needs::of(name)).collect::<Result<Vec<_>>>()?;
    for stage in stages::ALL {
        let dir = folder(stage.name());
        for output in stage.declaration().makes {
            let wanted = needs.iter().any(|needs| needs.meets(output.artefact));
            if wanted && dir.join(manifest::FILE).is_file() {
                context = add(context, output.artefact, &dir, output.file, owner)?;
            }
        }
    }
    Ok(context)
}

/// The context with what the file of a finished stage holds.
fn add(cx: SchemeContext, artefact: Artefact, dir: &std::path::Path, file: &str, owner: &Owner) -> Result<SchemeContext> {
    Ok(match artefact {
        Artefact::None => cx,
        Artefact::Dictionaries(lexico::DICTIONARIES) => {
            cx.with_dictionaries(lexico::DICTIONARIES, DictionarySet::load(dir.join(file))?)
        }
        Artefact::Dictionaries(name) => cx.with_dictionaries(name, owner.load(&dir.join(file))?),
        Artefact::Budgets => cx.with_budgets(allocate::read(dir)?),
        Artefact::Codebooks => {
            let mut cx = cx;
            for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
                let path = entry?.path();
                let name = path.file_stem().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
                if path.extension().is_some_and(|e| e == "safetensors") && name != lexico::DICTIONARIES {
                    cx = cx.with_codebooks(&name, CodebookSet::load(&path)?);
                }
            }
            cx
        }
    })
}
