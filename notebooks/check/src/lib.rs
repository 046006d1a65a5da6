//! The cells of every notebook, as one function each, in order. Nothing here runs: that it compiles is the check.
#![allow(warnings, clippy::all, clippy::pedantic, clippy::unwrap_used)]

include!(concat!(env!("OUT_DIR"), "/notebooks.rs"));
