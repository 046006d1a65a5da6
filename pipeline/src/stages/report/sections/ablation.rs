//! Dictionary training, varied: the paper's Table 3, trainer options and peers, merged layers, Figures 2a and 2b.

use anyhow::Result;
use kvcsr_report::figures::{PromptScatter, RotaryScatter};
use kvcsr_report::save::Figure;

use crate::stage::Run;
use crate::stages::ablate::page;
use crate::stages::report::section::Section;
use crate::stages::report::sheet::{RESULTS, Sheet};

/// See the module.
pub struct Ablation;

impl Section for Ablation {
    fn title(&self) -> &'static str {
        "Dictionary training, varied"
    }

    fn stages(&self) -> &'static [&'static str] {
        &["ablate"]
    }

    fn write(&self, run: &Run, sheet: &mut Sheet<'_>) -> Result<()> {
        let section = page::Section::read(run)?;
        sheet.markdown(&section.circumstances(run));
        sheet.markdown(&format!("### The paper's Table 3\n\n{}", section.table3()));
        sheet.markdown(&format!("### Trainers\n\n{}", section.trainers()));
        if let Some(merged) = section.merged() {
            sheet.markdown(&format!("### Merged layers\n\n{merged}"));
        }
        sheet.figure::<PromptScatter>(&section.prompts)?;
        sheet.figure::<RotaryScatter>(&section.positions)?;
        sheet.table("ablation", &section.rows)?;
        sheet.table(PromptScatter::NAME, &section.prompts)?;
        sheet.table(RotaryScatter::NAME, &section.positions)?;
        let shown = section.shown(run, sheet.link());
        sheet.show_in(&RESULTS, "ablation", &shown)
    }
}
