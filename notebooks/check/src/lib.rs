//! The cells of every notebook, as one function each, in order, and the example of README.md. Nothing here runs: that it compiles is the
//! check.
#![allow(warnings, clippy::all, clippy::pedantic, clippy::unwrap_used)]

include!(concat!(env!("OUT_DIR"), "/notebooks.rs"));

/// The example is a documentation test of this crate, compiled by `cargo test`.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
pub struct Readme;
