//! Where a section puts what it shows: its text into the page, its figures and tables into files beside it.

use std::path::Path;

use anyhow::Result;
use kvcsr_report::page::{Block, Section};
use kvcsr_report::save::{self, Figure};
use kvcsr_report::{csv, records::Row, tables};

use crate::atomic;
use crate::stage::Run;

/// Files of this prefix, `readme-<marker>.md`, hold what is spliced into the README between the markers of that name.
pub const README_PREFIX: &str = "readme-";

/// One section in the making.
pub struct Sheet<'a> {
    dir: &'a Path,
    /// Where the page will be published, relative to the README.
    link: String,
    section: Section,
}

impl<'a> Sheet<'a> {
    /// An empty section whose files go to `dir`.
    pub fn new(run: &Run, dir: &'a Path, title: &str, command: &str) -> Self {
        let section = Section { title: title.to_owned(), command: command.to_owned(), blocks: Vec::new() };
        Self { dir, link: format!("data/results/{}", run.label()), section }
    }

    /// Paragraphs and tables in Markdown.
    pub fn markdown(&mut self, text: &str) {
        self.section.blocks.push(Block::Markdown(text.to_owned()));
    }

    /// Markdown under a line that opens it: long tables, settings.
    pub fn folded(&mut self, summary: &str, text: &str) {
        self.section.blocks.push(Block::Folded { summary: summary.to_owned(), text: text.to_owned() });
    }

    /// Says why there is nothing to show.
    pub fn absent(&mut self, reason: &str) {
        self.section.blocks.push(Block::Absent(reason.to_owned()));
    }

    /// Draws `rows`: SVG, PNG and CSV, and the drawing in the page with its caption.
    pub fn figure<F: Figure>(&mut self, rows: &[F::Row]) -> Result<()> {
        self.figure_as::<F>(F::NAME, rows)
    }

    /// [`Sheet::figure`] whose files are called `stem`: for a figure that is drawn more than once.
    pub fn figure_as<F: Figure>(&mut self, stem: &str, rows: &[F::Row]) -> Result<()> {
        let drawn = save::drawing::<F>(self.dir, stem, rows)?;
        csv::write(&drawn.svg.with_extension("csv"), rows)?;
        let svg = std::fs::read_to_string(drawn.svg)?;
        self.section.blocks.push(Block::Figure { name: stem.to_owned(), svg, caption: F::caption(rows) });
        Ok(())
    }

    /// Writes `rows` as CSV and Parquet, and links them in the page.
    pub fn table<R: Row>(&mut self, name: &str, rows: &[R]) -> Result<()> {
        let files = [format!("{name}.csv"), format!("{name}.parquet")];
        csv::write(&self.dir.join(&files[0]), rows)?;
        tables::write_parquet(&self.dir.join(&files[1]), rows)?;
        match self.section.blocks.last_mut() {
            Some(Block::Files(linked)) => linked.extend(files),
            _ => self.section.blocks.push(Block::Files(files.into())),
        }
        Ok(())
    }

    /// What stands in the README between `<!-- BEGIN marker -->` and its END once the report is published.
    pub fn readme(&self, marker: &str, text: &str) -> Result<()> {
        atomic::write(&self.dir.join(format!("{README_PREFIX}{marker}.md")), text.as_bytes())
    }

    /// The folder where the report is published, as the README names it.
    pub fn link(&self) -> &str {
        &self.link
    }

    /// The finished section.
    pub fn into_section(self) -> Section {
        self.section
    }
}
