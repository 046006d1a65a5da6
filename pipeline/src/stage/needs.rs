//! What a stage is made from, as data, and the digests by which that enters its recipe.

use anyhow::{Context, Result};
use kvcsr_model::Precision;
use serde_json::{Map, Value};

use super::{Declaration, Run};
use crate::config::Config;
use crate::models;
use crate::sources::{SourceKind, Sources};
use crate::stages::{artefacts, heldout, suite};

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

/// The digests of what a stage is declared to need, by name.
///
/// # Errors
/// The first one that is not there, with what makes it.
pub fn declared_inputs(declaration: &Declaration, run: &Run) -> Result<Map<String, Value>> {
    let sources = Sources::load(&run.paths.root)?;
    let mut inputs = Map::new();
    for need in declaration.needs {
        match need {
            Need::Stage(stage) => {
                inputs.insert((*stage).to_owned(), run.finished(stage)?.digest.into());
            }
            Need::Model => {
                inputs.insert("model".to_owned(), models::digest(run)?.into());
                // The same weights in another dtype give other outputs, and are the same model.
                match run.config.dtype.parse()? {
                    Precision::Auto => {}
                    precision => drop(inputs.insert("dtype".to_owned(), precision.to_string().into())),
                }
            }
            Need::Corpora => {
                for id in &run.config.corpora {
                    inputs.insert(id.clone(), sources.get(id, SourceKind::Text)?.sha256.clone().into());
                }
            }
            Need::Documents => inputs.extend(heldout::digests(run)?),
            Need::Tasks(tasks) => {
                for id in suite::sources(tasks(&run.config))? {
                    inputs.insert(id.to_owned(), sources.get(id, SourceKind::Tasks)?.sha256.clone().into());
                }
            }
            Need::Schemes(schemes) => {
                for (file, digest) in artefacts::digests(run, schemes(&run.config))? {
                    inputs.insert(file, digest.into());
                }
            }
        }
    }
    Ok(inputs)
}

/// The inputs of `data/sources.toml` that `stages` read: ids with their kinds, each once.
pub fn downloads(run: &Run) -> Result<Vec<(String, SourceKind)>> {
    let mut wanted = Vec::new();
    for declaration in crate::stages::ALL.iter().map(|stage| stage.declaration()) {
        for need in declaration.needs {
            let found: Vec<(String, SourceKind)> = match need {
                Need::Corpora => run.config.corpora.iter().map(|id| (id.clone(), SourceKind::Text)).collect(),
                Need::Tasks(tasks) => suite::sources(tasks(&run.config))
                    .with_context(|| format!("{}.tasks", declaration.name))?
                    .into_iter()
                    .map(|id| (id.to_owned(), SourceKind::Tasks))
                    .collect(),
                Need::Stage(_) | Need::Model | Need::Documents | Need::Schemes(_) => Vec::new(),
            };
            wanted.extend(found.into_iter().filter(|one| !wanted.contains(one)).collect::<Vec<_>>());
        }
    }
    Ok(wanted)
}
