//! What a section writes: its text into the page, its figures and tables into files beside it.

use std::path::Path;

use anyhow::Result;
use kvcsr_report::page::{Block, Section};
use kvcsr_report::save::{self, Figure};
use kvcsr_report::{csv, records::Row, tables};

use crate::atomic;
use crate::stage::Run;

/// The page with tables, captions and circumstances.
pub const PAGE: &str = "report.md";

/// A document that shows parts of the report between its markers.
pub struct Document {
    /// Its path from the root of the repository.
    pub path: &'static str,
    /// The text between the markers `name` is the file `<prefix><name>.md` of the report.
    prefix: &'static str,
}

/// The first page: the headline alone.
pub const README: Document = Document { path: "README.md", prefix: "readme-" };
/// Every table that is published.
pub const RESULTS: Document = Document { path: "docs/RESULTS.md", prefix: "results-" };

/// The paper's claims, a part for each profile.
pub const CLAIMS: Document = Document { path: "docs/CLAIMS.md", prefix: "claims-" };

impl Document {
    /// The marker that a file of the report belongs to, if it is one of this document's.
    pub fn marker<'n>(&self, file: &'n str) -> Option<&'n str> {
        file.strip_prefix(self.prefix)?.strip_suffix(".md")
    }

    /// The file of the report whose text is shown at `marker`.
    pub fn file(&self, marker: &str) -> String {
        format!("{}{marker}.md", self.prefix)
    }
}

/// One unfinished section.
pub struct Sheet<'a> {
    dir: &'a Path,
    /// Where the page will be published, as [`RESULTS`] links to it.
    link: String,
    section: Section,
}

impl<'a> Sheet<'a> {
    /// An empty section whose files go to `dir`.
    pub fn new(run: &Run, dir: &'a Path, title: &str, command: &str) -> Self {
        let section = Section { title: title.to_owned(), command: command.to_owned(), blocks: Vec::new() };
        Self { dir, link: format!("../data/results/{}", run.label()), section }
    }

    /// Paragraphs and tables in Markdown.
    pub fn markdown(&mut self, text: &str) {
        self.section.blocks.push(Block::Markdown(text.to_owned()));
    }

    /// Markdown that is folded under a line: for long tables and settings.
    pub fn folded(&mut self, summary: &str, text: &str) {
        self.section.blocks.push(Block::Folded { summary: summary.to_owned(), text: text.to_owned() });
    }

    /// Says why there is nothing to show.
    pub fn absent(&mut self, reason: &str) {
        self.section.blocks.push(Block::Absent(reason.to_owned()));
    }

    /// Draws `rows` as SVG and PNG, and puts the drawing into the page with its caption. [`Sheet::table`] writes the rows
    /// themselves.
    pub fn figure<F: Figure>(&mut self, rows: &[F::Row]) -> Result<()> {
        self.figure_as::<F>(F::NAME, rows)
    }

    /// Like [`Sheet::figure`], with files that are called `stem`: for a figure that is drawn more than once.
    pub fn figure_as<F: Figure>(&mut self, stem: &str, rows: &[F::Row]) -> Result<()> {
        let drawn = save::drawing::<F>(self.dir, stem, rows)?;
        let svg = std::fs::read_to_string(drawn.svg)?;
        self.section.blocks.push(Block::Figure { name: stem.to_owned(), svg, caption: F::caption(rows) });
        Ok(())
    }

    /// Writes `rows` as CSV and Parquet, and links the CSV in the page: it is the one that is published.
    pub fn table<R: Row>(&mut self, name: &str, rows: &[R]) -> Result<()> {
        let file = format!("{name}.csv");
        csv::write(&self.dir.join(&file), rows)?;
        tables::write_parquet(&self.dir.join(format!("{name}.parquet")), rows)?;
        match self.section.blocks.last_mut() {
            Some(Block::Files(linked)) => linked.push(file),
            _ => self.section.blocks.push(Block::Files(vec![file])),
        }
        Ok(())
    }

    /// Writes the text that `document` gets between `<!-- BEGIN marker -->` and its END when the report is published.
    pub fn show_in(&self, document: &Document, marker: &str, text: &str) -> Result<()> {
        atomic::write(&self.dir.join(document.file(marker)), text.as_bytes())
    }

    /// The folder where the report is published, as [`RESULTS`] links to it.
    pub fn link(&self) -> &str {
        &self.link
    }

    /// The finished section.
    pub fn into_section(self) -> Section {
        self.section
    }
}
