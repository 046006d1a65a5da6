//! The digests of what a stage needs, which are part of its recipe; and the downloads for it.

use anyhow::{Context, Result};
use kvcsr_cache::tensor::Attention;
use kvcsr_eval::suite::Suite;
use kvcsr_model::Precision;
use serde_json::{Map, Value};

use super::declaration::{Declaration, Need};
use super::makers::digests;
use super::run::Run;
use crate::config::Config;
use crate::config::sections::executor::Kind;
use crate::manifest::{ATTENTION, DEVICE, DTYPE};
use crate::sources::{SourceKind, Sources};
use crate::{documents, models};

/// The digests of a stage's declared needs, by name.
///
/// # Errors
/// If a need is missing; the error names the first one and the command that makes it.
pub fn declared_inputs(declaration: &Declaration, run: &Run) -> Result<Map<String, Value>> {
    let sources = || Sources::load(&run.paths.root);
    let mut inputs = Map::new();
    for need in declaration.needs {
        match need {
            Need::Stage(stage) => {
                inputs.insert((*stage).to_owned(), run.finished(stage)?.digest.into());
            }
            Need::Model => {
                inputs.insert("model".to_owned(), models::digest(&run.config.model, &run.paths)?.into());
                // The same model gives other outputs if its weights have another dtype.
                match run.config.dtype.parse()? {
                    Precision::Auto => {}
                    precision => drop(inputs.insert(DTYPE.to_owned(), precision.to_string().into())),
                }
                if on_gpu(&run.config)? {
                    inputs.insert(DEVICE.to_owned(), "gpu".into());
                }
            }
            Need::Corpora => {
                let sources = sources()?;
                for id in &run.config.corpora {
                    inputs.insert(id.clone(), sources.get(id, SourceKind::Text)?.sha256.clone().into());
                }
            }
            Need::Documents => inputs.extend(documents::digests(&run.paths.root, &run.config.heldout.domains)?),
            Need::Tasks(tasks) => {
                let sources = sources()?;
                for id in task_texts(tasks(&run.config))? {
                    inputs.insert(id.to_owned(), sources.get(id, SourceKind::Tasks)?.sha256.clone().into());
                }
            }
            Need::Schemes(schemes) => {
                // With tensors, sums have another order than in the kernels.
                match run.config.attention()? {
                    Attention::Auto => {}
                    attention => drop(inputs.insert(ATTENTION.to_owned(), attention.to_string().into())),
                }
                for (file, digest) in digests(run, schemes(&run.config))? {
                    inputs.insert(file, digest.into());
                }
            }
        }
    }
    Ok(inputs)
}

/// Ids of the texts that `tasks` of the suite (tasks and groups) are built from.
fn task_texts(tasks: &[String]) -> Result<Vec<&'static str>> {
    Ok(Suite::embedded().sources(tasks)?)
}

/// The inputs of `data/sources.toml` that the run's stages read: ids with their kinds, each once.
pub fn downloads(run: &Run) -> Result<Vec<(String, SourceKind)>> {
    let mut wanted = Vec::new();
    for declaration in run.stages.iter().map(|stage| stage.declaration()) {
        for need in declaration.needs {
            let found: Vec<(String, SourceKind)> = match need {
                Need::Corpora => run.config.corpora.iter().map(|id| (id.clone(), SourceKind::Text)).collect(),
                Need::Tasks(tasks) => task_texts(tasks(&run.config))
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

/// Whether a GPU computes. The machine that submits jobs may have none: for jobs, the configuration says what the nodes have.
fn on_gpu(config: &Config) -> Result<bool> {
    Ok(match config.device.as_str() {
        "cpu" => false,
        "auto" if config.executor.kind == Kind::Slurm => cfg!(feature = "cuda") && config.executor.gpus > 0,
        "auto" => !kvcsr_model::find_device("auto")?.is_cpu(),
        _ => true,
    })
}
