//! fetch: the model and the texts of a profile, downloaded once and checked.

use anyhow::Result;

use crate::sources::{self, Sources};
use crate::stage::{self, Run};
use crate::{documents, models, ui};

/// Downloads what is missing.
///
/// # Errors
/// If a download fails or is not what data/sources.toml names.
pub fn run(run: &Run) -> Result<()> {
    let sources = Sources::load(&run.paths.root)?;
    let model = models::fetch(&run.config.model, &run.paths)?;
    let mut wanted: Vec<&sources::Source> = model.iter().collect();
    for (id, kind) in stage::downloads(run)? {
        wanted.push(sources.get(&id, kind)?);
    }
    let documents = documents::sources(&run.paths.root, &run.config.heldout.domains)?;
    wanted.extend(&documents);
    let files = wanted.len();
    sources::fetch(wanted, &run.paths)?;
    ui::line("fetch", &format!("{files} files present, sha256 verified"));
    Ok(())
}
