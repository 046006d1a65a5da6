//! Injects faults while stages run: kills, signals, full disks, missing permissions, limits, broken downloads, tampered outputs,
//! several runs at once. Whatever happens, no finished output is lost, an error names the path and what to do, and the next run
//! ends with the bytes of an undisturbed one.
//!
//! The stages run on the texts of the profile `smoke` (`just fetch`), with a model of three layers and random weights, so that a
//! stage takes a second. `just torture` runs the long form and prints what it did; a short form runs with the other tests. If
//! something that a case needs is missing (root, strace, control groups), the case is skipped and says so. docs/RELIABILITY.md
//! has the results.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod disk;
mod downloads;
mod durable;
mod estimates;
mod home;
mod kills;
mod limits;
mod machines;
mod model;
mod permissions;
mod registry;
mod shims;
mod signals;
mod tamper;
mod together;
mod trace;
