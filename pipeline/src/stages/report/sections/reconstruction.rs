//! How well held-out vectors are restored, layer by layer.

use anyhow::Result;
use kvcsr_report::figures::LayerError;
use kvcsr_report::{ReconstructionRow, files};

use crate::stage::Run;
use crate::stages::evaluate::RECONSTRUCTION;
use crate::stages::report::section::Section;
use crate::stages::report::sheet::Sheet;

/// See the module.
pub struct Reconstruction;

impl Section for Reconstruction {
    fn title(&self) -> &'static str {
        "Reconstruction by layer"
    }

    fn stages(&self) -> &'static [&'static str] {
        &["evaluate"]
    }

    fn write(&self, run: &Run, sheet: &mut Sheet<'_>) -> Result<()> {
        let rows: Vec<ReconstructionRow> = files::read_jsonl(&run.stage_dir("evaluate").join(RECONSTRUCTION))?;
        sheet.figure::<LayerError>(&rows)?;
        sheet.table("reconstruction", &rows)
    }
}
