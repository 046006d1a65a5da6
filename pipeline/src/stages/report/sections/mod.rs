//! The sections of the report, one file each, in the order of the page.
//!
//! A new section is one file with a [`Section`] and its line in [`ALL`].

pub mod ablation;
pub mod compare;
pub mod held_out;
pub mod memory;
pub mod merging;
pub mod provenance;
pub mod reconstruction;
pub mod suite;
pub mod training;

use anyhow::Result;

use crate::stage::Run;
use crate::stages::report::sheet::Sheet;

/// One section.
pub trait Section: Sync {
    /// Its heading.
    fn title(&self) -> &'static str;
    /// The stages whose outputs it shows. Where one of them has not been run, the section says so and [`Section::write`] is not called.
    fn stages(&self) -> &'static [&'static str];
    /// What makes the outputs that it shows.
    fn command(&self, run: &Run) -> String {
        self.stages().last().map_or_else(String::new, |stage| run.command(stage))
    }
    /// Writes its texts, tables and figures.
    fn write(&self, run: &Run, sheet: &mut Sheet<'_>) -> Result<()>;
}

/// All sections.
pub const ALL: &[&dyn Section] = &[
    &held_out::HeldOut,
    &compare::Compare,
    &suite::Suite,
    &reconstruction::Reconstruction,
    &training::Training,
    &merging::Merging,
    &ablation::Ablation,
    &memory::Memory,
    &provenance::Provenance,
];

/// Every stage that a section shows, once, in the order of first use.
pub fn stages() -> Vec<&'static str> {
    let mut stages = Vec::new();
    for stage in ALL.iter().flat_map(|part| part.stages()) {
        if !stages.contains(stage) {
            stages.push(*stage);
        }
    }
    stages
}
