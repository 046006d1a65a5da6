//! The loss curves of the dictionaries.

use anyhow::Result;
use kvcsr_report::figures::TrainingLoss;
use kvcsr_report::{EpochRow, files};

use crate::stage::Run;
use crate::stages::report::section::Section;
use crate::stages::report::sheet::Sheet;
use crate::stages::train::EPOCHS;

/// See the module.
pub struct Training;

impl Section for Training {
    fn title(&self) -> &'static str {
        "Training"
    }

    fn stages(&self) -> &'static [&'static str] {
        &["train"]
    }

    fn write(&self, run: &Run, sheet: &mut Sheet<'_>) -> Result<()> {
        let rows: Vec<EpochRow> = files::read_jsonl(&run.stage_dir("train").join(EPOCHS))?;
        sheet.figure::<TrainingLoss>(&rows)?;
        sheet.table("training", &rows)
    }
}
