//! report: makes one page (Markdown and self-contained HTML) of sections, with tables (CSV, Parquet) and figures (SVG, PNG).
//!
//! Each section is one file of [`sections`]. If a section's stage has not been run, the section says so and names the command. With
//! `report.publish`, the files that a repository needs are copied to `data/results/<profile>`, each once: the page in Markdown, its
//! figures as SVG and its tables as CSV. The parts of README.md, docs/RESULTS.md and docs/CLAIMS.md between markers are generated.

pub mod section;
pub mod sections;
pub mod sheet;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kvcsr_report::page::Page;
use kvcsr_report::{html, splice};
use serde_json::{Map, Value};

use self::section::Section;
use self::sheet::{CLAIMS, PAGE, README, RESULTS, Sheet};
use crate::stage::{Declaration, Output, Run, Stage, parameters_of};
use crate::stages::ablate;
use crate::{atomic, manifest, ui};

/// The same page for browsers.
pub const HTML: &str = "report.html";
/// Endings of the files that are published.
const PUBLISHED: [&str; 3] = ["md", "svg", "csv"];

/// See the module.
pub struct Report;

static DECLARATION: Declaration = Declaration {
    name: "report",
    about: "Draw figures and tables; publish them to data/results and the docs if the profile says so",
    version: 4,
    makes: &[Output::rows(PAGE), Output::rows(HTML)],
    reproduced: true,
    follows_all: true,
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
        let mut parameters = parameters_of(&run.config.report)?;
        // Intervals and marks depend on these.
        parameters.insert("training_noise".into(), run.config.heldout.training_noise.into());
        parameters.insert("resamples".into(), run.config.resamples.into());
        parameters.insert("seed".into(), run.config.seed.into());
        Ok(parameters)
    }

    fn inputs(&self, run: &Run) -> Result<Map<String, Value>> {
        // A stage that was not run is left out; one whose outputs were changed since is an error.
        let digest =
            |stage: &str| -> Result<Value> { Ok(run.made(stage)?.map_or(Value::Null, |record| record.digest.into())) };
        let mut inputs = shown(run)
            .into_iter()
            .map(|stage| Ok((stage.to_owned(), digest(stage)?)))
            .collect::<Result<Map<String, Value>>>()?;
        // If there is nothing at all to report, this is an error. Otherwise the report shows what there is.
        if inputs.values().all(Value::is_null) {
            run.finished("calibrate")?;
        }
        if let Some(peers) = ablate::page::peers(&run.stage_dir("ablate")) {
            inputs.insert("peers".into(), manifest::hash(&peers)?.into());
        }
        Ok(inputs)
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        let mut page = Page { title: format!("Results of profile `{}`", run.label()), ..Page::default() };
        page.lead = sections::provenance::lead(run);
        for section in in_order(run) {
            let mut sheet = Sheet::new(run, dir, section.title(), &section.command(run));
            let mut missing = Vec::new();
            for &stage in section.stages() {
                if run.made(stage)?.is_none() {
                    missing.push(stage);
                }
            }
            if missing.is_empty() {
                section.write(run, &mut sheet).with_context(|| format!("section \"{}\"", section.title()))?;
            } else {
                sheet.absent(&format!("Not run: {}.", missing.join(", ")));
            }
            page.sections.push(sheet.into_section());
        }
        let mut sheet = Sheet::new(run, dir, sections::provenance::TITLE, &run.command("reproduce"));
        sections::provenance::write(run, &shown(run), &mut sheet)?;
        page.sections.push(sheet.into_section());
        // Sections that this run has not made keep their published text, in the page as in its files.
        let published = std::fs::read_to_string(run.paths.results.join(PAGE)).unwrap_or_default();
        let published = if publishes(run) { published } else { String::new() };
        atomic::write(&dir.join(PAGE), page.markdown_over(&published).as_bytes())?;
        atomic::write(&dir.join(HTML), html::html(&page).as_bytes())
    }

    fn finish(&self, run: &Run, dir: &Path) -> Result<()> {
        if !publishes(run) {
            return Ok(());
        }
        let target = &run.paths.results;
        std::fs::create_dir_all(target).with_context(|| target.display().to_string())?;
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
            let shown = [README, RESULTS, CLAIMS]
                .into_iter()
                .find_map(|document| Some((document.marker(name)?, document.path)));
            if let Some((marker, document)) = shown {
                let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                let document = run.paths.root.join(document);
                splice::splice_file(&document, &part_of(&document, marker, &run.label())?, &text)?;
            } else if path.extension().is_some_and(|extension| PUBLISHED.iter().any(|kept| extension == *kept)) {
                atomic::copy_if_changed(&path, &target.join(name))?;
            }
        }
        for stage in shown(run) {
            let path = run.stage_dir(stage).join(manifest::FILE);
            if path.is_file() {
                atomic::copy_if_changed(&path, &target.join(format!("{stage}.manifest.json")))?;
            }
        }
        let documents = format!("{}, {} and {}", README.path, RESULTS.path, CLAIMS.path);
        ui::line(self.name(), &format!("published in {}, {documents}", run.paths.show(target)));
        Ok(())
    }

    fn copies(&self, run: &Run) -> Option<PathBuf> {
        publishes(run).then(|| run.paths.results.clone())
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
            format!("figures  {} (SVG and PNG each): {}", run.paths.show(dir), figures.join(", ")),
        ])
    }
}

/// The marker of the part of a document that a profile writes: its own, `marker-profile`, if the document has it, else `marker`.
fn part_of(document: &Path, marker: &str, profile: &str) -> Result<String> {
    let text = std::fs::read_to_string(document).with_context(|| document.display().to_string())?;
    let own = format!("{marker}-{profile}");
    Ok(if splice::has(&text, &own) { own } else { marker.to_owned() })
}

/// Whether the profile's report is published. If the profile sweeps, its sweep is published instead.
fn publishes(run: &Run) -> bool {
    run.config.report.publish && run.config.sweep.is_empty()
}

/// The sections in the order of the page: those of the last stage first.
fn in_order(run: &Run) -> Vec<&'static dyn Section> {
    let place = |section: &&dyn Section| {
        let of = |name: &&str| run.stages.iter().position(|stage| stage.name() == *name);
        std::cmp::Reverse(section.stages().iter().filter_map(of).max())
    };
    let mut sections = sections::ALL.to_vec();
    sections.sort_by_key(place);
    sections
}

/// Every stage that a section shows, in the order in which stages are run.
fn shown(run: &Run) -> Vec<&'static str> {
    let shows = |name: &&str| sections::ALL.iter().any(|section| section.stages().contains(name));
    run.stages.iter().map(|stage| stage.name()).filter(shows).collect()
}
