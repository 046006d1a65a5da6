//! Our own tasks under every scheme, and the retrieval grids.

use anyhow::Result;
use kvcsr_report::figures::RetrievalGrid;

use crate::stage::Run;
use crate::stages::report::parts::Part;
use crate::stages::report::sheet::Sheet;
use crate::stages::suite::Section;

/// See the module.
pub struct Suite;

impl Part for Suite {
    fn title(&self) -> &'static str {
        "The suite"
    }

    fn stages(&self) -> &'static [&'static str] {
        &["suite"]
    }

    fn write(&self, run: &Run, sheet: &mut Sheet<'_>) -> Result<()> {
        let suite = Section::read(run)?;
        sheet.markdown(&suite.page()?);
        if !suite.grid.is_empty() {
            sheet.figure::<RetrievalGrid>(&suite.grid)?;
        }
        sheet.readme("suite", &suite.readme())
    }
}
