//! How alike layers are, and which share a dictionary: the paper's Figure 3.

use anyhow::Result;
use kvcsr_report::figures::LayerDivergence;
use kvcsr_report::{DivergenceRow, files};

use crate::stage::Run;
use crate::stages::merge::DIVERGENCE;
use crate::stages::report::section::Section;
use crate::stages::report::sheet::Sheet;

/// See the module.
pub struct Merging;

impl Section for Merging {
    fn title(&self) -> &'static str {
        "Layer merging"
    }

    fn stages(&self) -> &'static [&'static str] {
        &["merge"]
    }

    fn write(&self, run: &Run, sheet: &mut Sheet<'_>) -> Result<()> {
        let rows: Vec<DivergenceRow> = files::read_jsonl(&run.stage_dir("merge").join(DIVERGENCE))?;
        sheet.figure::<LayerDivergence>(&rows)?;
        sheet.table("divergence", &rows)
    }
}
