//! report: one page (Markdown and self-contained HTML) of sections, with tables (CSV, Parquet) and figures (SVG, PNG, CSV).
//!
//! Each section is one file of [`parts`]. A section whose stage has not been run says so, with the command. With `report.publish`,
//! everything is copied to `data/results/<profile>` and the README's parts are generated between their markers.

pub mod parts;
pub mod sheet;

use std::path::Path;

use anyhow::{Context, Result};
use kvcsr_report::page::Page;
use kvcsr_report::{html, splice};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::stage::{Declaration, Output, Run, Stage, parameters_of};
use crate::stages::ablate;
use crate::stages::report::sheet::{README_PREFIX, Sheet};
use crate::{atomic, manifest, ui};

/// Tables that also lie beside the profiles' folders, as `data/results/<name>`.
const SHARED: [&str; 2] = ["compare.csv", "compare.parquet"];

/// The page with tables, captions and circumstances.
pub const PAGE: &str = "report.md";
/// The same for browsers.
pub const HTML: &str = "report.html";

/// The section `[report]`; `profiles/defaults.toml` explains every parameter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub memory_tokens: usize,
    pub publish: bool,
}

/// See the module.
pub struct Report;

static DECLARATION: Declaration = Declaration {
    name: "report",
    about: "Draw figures and tables; publish them to data/results and the README if the profile says so",
    version: 3,
    makes: &[Output::rows(PAGE), Output::rows(HTML)],
    reproduced: true,
    ..Declaration::EMPTY
};

impl Stage for Report {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn plan(&self, _run: &Run) -> String {
        "tables and figures".to_owned()
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        parameters_of(&run.config.report)
    }

    fn inputs(&self, run: &Run) -> Result<Map<String, Value>> {
        // Nothing at all to report on is a mistake; anything else is reported as far as it goes.
        run.finished("calibrate")?;
        let digest = |stage: &&str| run.finished(stage).map_or(Value::Null, |record| record.digest.into());
        let mut inputs: Map<String, Value> =
            parts::stages().iter().map(|stage| ((*stage).to_owned(), digest(stage))).collect();
        if let Some(peers) = ablate::page::peers(&run.stage_dir("ablate")) {
            inputs.insert("peers".into(), manifest::hash(&peers)?.into());
        }
        Ok(inputs)
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        let mut page = Page { title: format!("Results of profile `{}`", run.label()), ..Page::default() };
        page.lead = parts::provenance::lead(run);
        for part in parts::ALL {
            let mut sheet = Sheet::new(run, dir, part.title(), &part.command(run));
            let missing: Vec<&str> =
                part.stages().iter().copied().filter(|stage| run.finished(stage).is_err()).collect();
            if missing.is_empty() {
                part.write(run, &mut sheet).with_context(|| format!("section \"{}\"", part.title()))?;
            } else {
                sheet.absent(&format!("Not run: {}.", missing.join(", ")));
            }
            page.sections.push(sheet.into_section());
        }
        atomic::write(&dir.join(PAGE), page.markdown().as_bytes())?;
        atomic::write(&dir.join(HTML), html::html(&page).as_bytes())
    }

    fn finish(&self, run: &Run, dir: &Path) -> Result<()> {
        if !run.config.report.publish {
            return Ok(());
        }
        let target = &run.paths.results;
        std::fs::create_dir_all(target).with_context(|| target.display().to_string())?;
        let readme = run.paths.root.join("README.md");
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
            if name != manifest::FILE {
                copy_if_changed(&path, &target.join(name))?;
            }
            if let Some(results) = target.parent().filter(|_| SHARED.contains(&name)) {
                copy_if_changed(&path, &results.join(name))?;
            }
            if let Some(marker) = name.strip_prefix(README_PREFIX).and_then(|rest| rest.strip_suffix(".md")) {
                let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                splice::splice_file(&readme, marker, &text)?;
            }
        }
        for stage in parts::stages() {
            let path = run.stage_dir(stage).join(manifest::FILE);
            if path.is_file() {
                copy_if_changed(&path, &target.join(format!("{stage}.manifest.json")))?;
            }
        }
        ui::line(self.name(), &format!("published in {} and README.md", run.paths.show(target)));
        Ok(())
    }

    fn summary(&self, run: &Run, dir: &Path) -> Result<Vec<String>> {
        let mut figures: Vec<String> = std::fs::read_dir(dir)?
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok())
            .filter(|n| n.ends_with(".svg"))
            .collect();
        figures.sort();
        Ok(vec![
            format!("page     {} (and {PAGE})", run.paths.show(&dir.join(HTML))),
            format!("figures  {} (SVG, PNG, CSV each): {}", run.paths.show(dir), figures.join(", ")),
        ])
    }
}

fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let bytes = std::fs::read(from).with_context(|| from.display().to_string())?;
    if std::fs::read(to).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    atomic::write(to, &bytes)
}
