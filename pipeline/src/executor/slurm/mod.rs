//! Jobs of a Slurm cluster: what is submitted, how it stands, and its end.
//!
//! A step is an array of jobs, one for each slice, and a job that puts the slices together; a step that cannot be sliced is one job. Slurm
//! starts each when what it needs has ended well, runs it again where a node failed, and cancels what can no longer run. Everything that
//! is known of the jobs lies in the folder `slurm` of the run: scripts, logs, and the record of what was submitted.

pub mod cancel;
mod commands;
mod jobs;
mod script;
pub mod status;
pub mod submit;

use std::path::PathBuf;

pub use self::script::{Job, Tasks};
use crate::stage::Run;

/// The folder of a run that holds what belongs to its jobs.
const FOLDER: &str = "slurm";

fn folder(run: &Run) -> PathBuf {
    run.paths.run.join(FOLDER)
}
