//! Hostile input: every reader of this project gets damaged and invented bytes.
//!
//! A [`Target`] is one reader. Its body gives any bytes to the reader as the file, and asserts what must be true for
//! every file: there is no panic, what the reader accepts is within bounds and is the same after writing and reading it
//! again, and no path leaves its folder. [`run::once`] also checks that memory stays below a stated multiple of the
//! input.
//!
//! The same bodies run in three ways:
//!
//! - `cargo test`: the committed [corpus], and a few thousand [changes](mutate) of it per target;
//! - `just fuzz`: as many inputs as requested, on both cores. Each [child](campaign) is watched for crashes and hangs;
//! - `cargo +nightly fuzz run NAME` in `crates/hostile/fuzz`, guided by coverage.
//!
//! docs/RELIABILITY.md says how many inputs were run, and what they found.

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
