//! Hostile input: every reader of this project fed with damaged and made-up bytes.
//!
//! A [`Target`] is one reader. Its body gives it any bytes as the file, and asserts what must hold of every file: no panic, what is
//! taken is within bounds and comes back when it is written, no path leaves its folder. [`run::once`] adds that memory stays below a
//! stated multiple of the input.
//!
//! The same bodies run in three ways:
//!
//! - `cargo test`: the committed [corpus], and a few thousand [changes](mutate) of it per target;
//! - `just fuzz`: as many as asked for, over both cores, each [child](campaign) watched for crashes and hangs;
//! - `cargo +nightly fuzz run NAME` in `crates/hostile/fuzz`, guided by coverage.
//!
//! docs/RELIABILITY.md says how many were run, and what was found.

pub mod allocation;
pub mod campaign;
pub mod corpus;
pub mod mutate;
pub mod place;
pub mod run;
pub mod seeds;
pub mod table;
pub mod targets;

pub use targets::{ALL, Target, Verdict, named};
