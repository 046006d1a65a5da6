//! The sections of the report, one file each.
//!
//! To add a section, write one file with a [`Section`] and its line in [`ALL`]. The page shows the results of the last stage first;
//! sections of one stage have the same order as here. How everything was made ([`provenance`]) comes last.

pub mod ablation;
pub mod at_rest;
pub mod ceiling;
pub mod claims;
pub mod compare;
pub mod held_out;
pub mod memory;
pub mod merging;
pub mod provenance;
pub mod reconstruction;
pub mod suite;
pub mod training;

use super::section::Section;

/// All sections.
pub const ALL: &[&dyn Section] = &[
    &held_out::HeldOut,
    &compare::Compare,
    &claims::Claims,
    &at_rest::AtRest,
    &suite::Suite,
    &reconstruction::Reconstruction,
    &training::Training,
    &merging::Merging,
    &ceiling::Ceiling,
    &ablation::Ablation,
    &memory::Memory,
];
