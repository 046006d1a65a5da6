//! Cancels the jobs of a run.

use anyhow::Result;

use super::commands;
use super::folder;
use super::jobs::Submitted;
use crate::stage::Run;

/// Cancels all jobs of the run that are queued or running, and prints them.
///
/// # Errors
/// If the record cannot be read, or Slurm's commands are missing or fail.
pub fn run(run: &Run) -> Result<()> {
    let Some(record) = Submitted::read(&folder(run))? else {
        println!("run `{}`: nothing was submitted", run.label());
        return Ok(());
    };
    let live = commands::queue()?;
    let left: Vec<_> = record.jobs.iter().filter(|job| live.keys().any(|(id, _)| *id == job.id)).collect();
    if left.is_empty() {
        println!("run `{}`: no job is queued or running", run.label());
        return Ok(());
    }
    commands::scancel(&left.iter().map(|job| job.id).collect::<Vec<_>>())?;
    for job in &left {
        println!("cancelled {:<24} job {}", job.name, job.id);
    }
    println!("finished outputs are kept; `{} executor=slurm` continues from there", run.command("reproduce"));
    Ok(())
}
