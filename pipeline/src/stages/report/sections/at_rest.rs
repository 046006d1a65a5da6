//! Prompts kept as files: what they lose, and their bytes and times.

use anyhow::Result;
use kvcsr_report::compare::{self, LEGEND};
use kvcsr_report::table::Table;
use kvcsr_report::{HeldoutRow, RestFileRow, SchemeSummary, aggregate, files};

use crate::stage::Run;
use crate::stages::report::section::Section;
use crate::stages::report::sections::compare::MEMORY;
use crate::stages::report::sections::provenance::made_by;
use crate::stages::report::sheet::{RESULTS, Sheet};
use crate::stages::{at_rest, heldout};

/// See the module.
pub struct AtRest;

/// The text above the tables.
const ABOUT: &str = "A prompt is coded as a file of about B bits per channel holds it (`rest@B`), restored, and continued with an exact cache. \
     The measured bits of `rest@B` are those of the file and its token ids; those of the others are what they take in memory.";

impl Section for AtRest {
    fn title(&self) -> &'static str {
        "Prompts as files"
    }

    fn stages(&self) -> &'static [&'static str] {
        &["at-rest"]
    }

    fn write(&self, run: &Run, sheet: &mut Sheet<'_>) -> Result<()> {
        let dir = run.stage_dir("at-rest");
        let documents: Vec<HeldoutRow> = files::read_jsonl(&dir.join(heldout::ROWS))?;
        let rows = aggregate::summarise(&documents, heldout::statistics(&run.config))?;
        let times: Vec<RestFileRow> = files::read_jsonl(&dir.join(at_rest::FILES))?;
        let mut text = format!("{ABOUT}\n\n{}\n", files_markdown(&times));
        for &context in &run.config.at_rest.contexts {
            let own: Vec<SchemeSummary> = rows.iter().filter(|row| row.context == context).cloned().collect();
            let n = own.iter().map(|row| row.n).max().unwrap_or(0);
            text += &format!("\n{context} tokens, n = {n} long documents:\n\n{}", compare::markdown(&own));
            text += &format!("\n{MEMORY}\n\n{}", compare::memory_markdown(&own));
        }
        sheet.markdown(&text);
        sheet.folded("What the columns mean", LEGEND);
        let published = format!("`{}`. {}\n\n{text}", run.config.model, made_by(run, "at-rest")?);
        sheet.show_in(&RESULTS, "at-rest", &published)?;
        sheet.table("at-rest", &rows)?;
        sheet.table("at-rest-files", &times)
    }
}

/// Bytes and times of files.
fn files_markdown(rows: &[RestFileRow]) -> String {
    let numbers = [
        "bits asked for",
        "bits taken",
        "file, MB",
        "of f16, %",
        "prefill, s",
        "write, s",
        "restore, s",
        "prefill / restore",
    ];
    let mut table = Table::of(["prompt"], numbers);
    for row in rows {
        table.row([
            format!("{} tokens", row.tokens),
            format!("{}", row.bits),
            format!("{:.2}", 16.0 * row.file_bytes as f64 / row.f16_bytes as f64),
            format!("{:.2}", row.file_bytes as f64 / 1e6),
            format!("{:.1}", 100.0 * row.file_bytes as f64 / row.f16_bytes as f64),
            format!("{:.2}", row.prefill_ms / 1e3),
            format!("{:.2}", row.write_ms / 1e3),
            format!("{:.2}", row.restore_ms / 1e3),
            format!("{:.1}", row.prefill_ms / row.restore_ms),
        ]);
    }
    table.into_text()
}
