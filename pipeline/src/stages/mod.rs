//! The stages, one file or folder each.
//!
//! To add a stage, write its file with a [`Declaration`](crate::stage::Declaration), its line in [`all`], its type in
//! [`sections`](crate::config::sections) if it has parameters, and its command in the justfile. A test checks that command.

pub mod ablate;
pub mod all;
pub mod allocate;
pub mod artefacts;
pub mod at_rest;
pub mod calibrate;
pub mod calibrate_peers;
pub mod ceiling;
pub mod compare;
pub mod evaluate;
pub mod gather;
pub mod heldout;
pub mod importance;
pub mod inputs;
pub mod longbench;
pub mod merge;
pub mod provenance;
pub mod report;
pub mod scores;
pub mod sizes;
pub mod suite;
pub mod train;
pub mod train_best;
pub mod train_plus;
pub mod train_rope;
