//! What a section of the report is.

use anyhow::Result;

use super::sheet::Sheet;
use crate::stage::Run;

/// One section.
pub trait Section: Sync {
    /// Its heading.
    fn title(&self) -> &'static str;
    /// The stages whose outputs it shows. If one of them has not been run, the section says so and [`Section::write`] is not
    /// called.
    fn stages(&self) -> &'static [&'static str];
    /// The command that makes the outputs that it shows.
    fn command(&self, run: &Run) -> String {
        self.stages().last().map_or_else(String::new, |stage| run.command(stage))
    }
    /// Writes its texts, tables and figures.
    fn write(&self, run: &Run, sheet: &mut Sheet<'_>) -> Result<()>;
}
