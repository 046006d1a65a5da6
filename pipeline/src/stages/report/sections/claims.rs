//! The paper's claims, one by one: docs/CLAIMS.md.

use anyhow::Result;
use kvcsr_report::claims::{self, NEAR};
use kvcsr_report::{HeldoutRow, files};

use crate::stage::Run;
use crate::stages::compare::Measured;
use crate::stages::heldout;
use crate::stages::report::section::Section;
use crate::stages::report::sections::provenance::made_by;
use crate::stages::report::sheet::{CLAIMS, Sheet};

/// The name of the table's files.
pub const TABLE: &str = "claims";

/// See the module.
pub struct Claims;

impl Section for Claims {
    fn title(&self) -> &'static str {
        "The paper's claims"
    }

    fn stages(&self) -> &'static [&'static str] {
        &["compare"]
    }

    fn write(&self, run: &Run, sheet: &mut Sheet<'_>) -> Result<()> {
        let of = |stage: &str| -> Result<Vec<HeldoutRow>> {
            Ok(match run.finished(stage) {
                Ok(_) => files::read_jsonl(&run.stage_dir(stage).join(heldout::ROWS))?,
                Err(_) => Vec::new(),
            })
        };
        let (compared, evaluated) = (of("compare")?, of("evaluate")?);
        let rows = claims::test(&[&compared, &evaluated], heldout::statistics(&run.config));
        let text = claims::markdown(&rows, &Measured::read(run)?.rows);
        let about = format!(
            "A claim of \"better\" holds if the paired 95 % interval of the difference lies above 0 and above the noise of training, one of \"about as good\" if it lies above \
             -{NEAR}; it does not hold if the interval lies below; else it is open."
        );
        sheet.markdown(&format!("{about}\n\n{text}"));
        sheet.table(TABLE, &rows)?;
        let shown = format!("`{}`. {}\n\n{text}", run.config.model, made_by(run, "compare")?);
        sheet.show_in(&CLAIMS, &run.label(), &shown)
    }
}
