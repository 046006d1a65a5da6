//! Our own tasks under every scheme, and the retrieval grids.

use anyhow::Result;
use kvcsr_eval::longbench::evaluate::Summary;
use kvcsr_report::figures::RetrievalGrid;
use kvcsr_report::save::Figure;

use crate::stage::Run;
use crate::stages::report::section::Section;
use crate::stages::report::sheet::{RESULTS, Sheet};
use crate::stages::suite;

/// See the module.
pub struct Suite;

impl Section for Suite {
    fn title(&self) -> &'static str {
        "The suite"
    }

    fn stages(&self) -> &'static [&'static str] {
        &["suite"]
    }

    fn write(&self, run: &Run, sheet: &mut Sheet<'_>) -> Result<()> {
        let suite = suite::Section::read(run)?;
        sheet.markdown(&suite.page()?);
        let Summary { tasks, overall } = suite.summary();
        if !tasks.is_empty() {
            sheet.table("suite", tasks)?;
            sheet.table("suite-schemes", overall)?;
        }
        if !suite.grid.is_empty() {
            sheet.figure::<RetrievalGrid>(&suite.grid)?;
            sheet.table(RetrievalGrid::NAME, &suite.grid)?;
        }
        sheet.show_in(&RESULTS, "suite", &suite.shown())
    }
}
