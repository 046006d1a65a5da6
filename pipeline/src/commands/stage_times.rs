//! stage-times: writes time, memory and disk use of the stages behind the published results, from their manifests, into
//! docs/REPRODUCING.md.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use kvcsr_report::splice::splice_file;

use crate::manifest::Manifest;
use crate::ui;

/// The end of the name of a published manifest, after the name of its stage.
const ENDING: &str = ".manifest.json";
/// The marker of the table in docs/REPRODUCING.md.
const MARKER: &str = "stage-times";

/// The folder of the manifests and the document of the table.
#[derive(Debug, Args)]
pub struct StageTimesArgs {
    /// The folder with a folder for each published profile
    #[arg(long, default_value = "data/results", value_name = "FOLDER")]
    results: PathBuf,
    /// The document to put the table into, between the markers `stage-times`
    #[arg(default_value = "docs/REPRODUCING.md", value_name = "FILE")]
    document: PathBuf,
}

/// Puts the table into the document.
///
/// # Errors
/// If a manifest cannot be read, or the document has no markers.
pub fn run(args: &StageTimesArgs) -> Result<()> {
    splice_file(&args.document, MARKER, &table(&args.results)?)?;
    ui::line("times", &args.document.display().to_string());
    Ok(())
}

/// A row for each published stage, by profile and in the order in which they ended.
fn table(results: &Path) -> Result<String> {
    let mut found = Vec::new();
    for profile in entries(results)? {
        if !profile.is_dir() {
            continue;
        }
        for path in entries(&profile)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.ends_with(ENDING) {
                let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
                let manifest: Manifest = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
                found.push((profile.file_name().unwrap_or_default().to_string_lossy().into_owned(), manifest));
            }
        }
    }
    found.sort_by(|a, b| (&a.0, a.1.finished).cmp(&(&b.0, b.1.finished)));
    let mut table = String::from("| profile | command | time | memory | disk | machine |\n|---|---|--:|--:|--:|---|\n");
    for (profile, manifest) in found {
        let time = ui::duration(Duration::from_secs_f64(manifest.wall_seconds));
        let memory = manifest.peak_memory_bytes.map_or("?".to_owned(), |bytes| format!("{:.1} GB", bytes as f64 / 1e9));
        let disk = manifest.outputs.iter().map(|output| output.bytes).sum::<u64>() as f64 / 1e6;
        let (stage, machine) = (&manifest.recipe.stage, &manifest.machine);
        writeln!(
            table,
            "| `{profile}` | `just {stage}` | {time} | {memory} | {disk:.1} MB | {}, {} cores |",
            machine.cpu, machine.cores
        )?;
    }
    Ok(table)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    Ok(read.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<_>>()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_committed_table_is_that_of_the_published_manifests() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let document = std::fs::read_to_string(root.join("docs/REPRODUCING.md")).unwrap();
        let table = table(&root.join("data/results")).unwrap();
        assert!(table.lines().count() > 10 && table.contains("| `smol` | `just evaluate` |"));
        assert!(document.contains(&table), "run `just stage-times`; expected\n{table}");
    }
}
