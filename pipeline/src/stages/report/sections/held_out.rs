//! Quality after compression on held-out text: the headline figure and table, and what docs/RESULTS.md shows of them.

use anyhow::Result;
use kvcsr_report::figures::QualityBits;
use kvcsr_report::records::Comparison;
use kvcsr_report::records::heldout::ALL;
use kvcsr_report::save::Figure;
use kvcsr_report::{HeldoutRow, ReconstructionRow, SchemeSummary, aggregate, files, tables};

use super::provenance::circumstances;
use crate::stage::Run;
use crate::stages::evaluate::RECONSTRUCTION;
use crate::stages::heldout;
use crate::stages::report::section::Section;
use crate::stages::report::sheet::{PAGE, RESULTS, Sheet};

/// See the module.
pub struct HeldOut;

impl Section for HeldOut {
    fn title(&self) -> &'static str {
        "CSR by level, on single long documents"
    }

    fn stages(&self) -> &'static [&'static str] {
        &["calibrate", "merge", "train", "evaluate"]
    }

    fn write(&self, run: &Run, sheet: &mut Sheet<'_>) -> Result<()> {
        let rows: Vec<HeldoutRow> = files::read_jsonl(&run.stage_dir("evaluate").join(heldout::ROWS))?;
        let restored: Vec<ReconstructionRow> = files::read_jsonl(&run.stage_dir("evaluate").join(RECONSTRUCTION))?;
        let (overall, domains): (Vec<SchemeSummary>, Vec<SchemeSummary>) =
            aggregate::summarise(&rows, heldout::statistics(&run.config))?
                .into_iter()
                .partition(|row| row.domain == ALL);
        let results = tables::results_markdown(&overall, false)?;
        let circumstances = circumstances(run, &rows)?;
        sheet.markdown(&circumstances);
        sheet.figure::<QualityBits>(&rows)?;
        sheet.markdown(&results);
        sheet.folded("By domain", &tables::results_markdown(&domains, true)?);
        let mut comparisons = aggregate::compare_heldout(&domains);
        let reconstruction = aggregate::compare_reconstruction(&restored);
        let verdict = format!(
            "{}\n\n{}",
            sentence("Reconstruction of held-out vectors, per layer, kind and level", &reconstruction)?,
            sentence("KL on held-out text, per domain and level", &comparisons)?
        );
        sheet.markdown(&format!("### NeuralDict against its own k-means start\n\n{verdict}"));
        comparisons.extend(reconstruction);
        sheet.table("results", &overall)?;
        sheet.table("results-by-domain", &domains)?;
        sheet.table("documents", &rows)?;
        sheet.table("neuraldict-against-kmeans", &comparisons)?;

        let link = sheet.link();
        let shown = format!(
            "{circumstances}\n\n{results}\n{verdict}\n\n![Quality against measured bits per channel]({link}/{}.svg)\n\n\
             Tables, figures and the data of each: [`{folder}`]({link}/{PAGE}).\n",
            QualityBits::NAME,
            folder = link.trim_start_matches("../"),
        );
        sheet.show_in(&RESULTS, "results", &shown)
    }
}

fn sentence(what: &str, comparisons: &[Comparison]) -> Result<String> {
    Ok(format!("{what}: {}", tables::losses_markdown(comparisons)?.trim_end()))
}
