//! draw: makes the two drawings of the README, computed by the code that they show.

mod chain;
mod code;
mod paper;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use crate::atomic;
use crate::ui;

/// Where the drawings go.
#[derive(Debug, Args)]
pub struct DrawArgs {
    /// The folder to write the drawings to
    #[arg(default_value = "docs/drawings", value_name = "FOLDER")]
    pub folder: PathBuf,
}

/// Writes both drawings.
///
/// # Errors
/// If the folder cannot be written to.
pub fn run(args: &DrawArgs) -> Result<()> {
    std::fs::create_dir_all(&args.folder).with_context(|| args.folder.display().to_string())?;
    for (name, drawing) in drawings()? {
        let path = args.folder.join(name);
        atomic::write(&path, drawing.as_bytes())?;
        ui::line("draw", &path.display().to_string());
    }
    Ok(())
}

/// Every drawing under the name of its file.
fn drawings() -> Result<[(&'static Path, String); 2]> {
    Ok([(Path::new("code.svg"), code::draw()?), (Path::new("pipeline.svg"), chain::draw()?)])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn committed_drawings_are_those_that_the_command_makes() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/drawings");
        for (name, drawing) in drawings().unwrap() {
            let committed = std::fs::read_to_string(folder.join(name)).unwrap();
            assert!(committed == drawing, "{}: run `just drawings`", name.display());
            assert!(drawing.contains("prefers-color-scheme: dark") && drawing.contains("<title>"));
        }
    }
}
