//! Jobs of a Slurm cluster: their submission, their state, and how they are cancelled.
//!
//! A step is an array of jobs, one for each slice, and a job that joins the slices. A step that cannot be sliced is one job. Slurm
//! starts a job when the jobs that it needs have succeeded, runs it again if its node fails, and cancels jobs that can no longer
//! run. The folder `slurm` of the run holds the scripts, the logs, and the record of the submitted jobs.

pub mod cancel;
mod commands;
mod jobs;
mod script;
pub mod status;
pub mod submit;

use std::path::PathBuf;

pub use self::script::{Job, Tasks};
use crate::stage::Run;

/// The folder of a run that holds the scripts, logs and record of its jobs.
const FOLDER: &str = "slurm";

fn folder(run: &Run) -> PathBuf {
    run.paths.run.join(FOLDER)
}
