//! Where the stages of a plan run: here, one after another, or as jobs of a Slurm cluster. Both run the same plan.

pub mod local;
pub mod plan;
pub mod slurm;

use anyhow::Result;

pub use self::plan::Plan;
use crate::config::sections::executor::Kind;
use crate::stage::Run;

/// Runs or submits the plan, as the profile's executor says.
pub fn execute(plan: &Plan, run: &Run) -> Result<()> {
    match run.config.executor.kind {
        Kind::Local => local::run(plan, run),
        Kind::Slurm => slurm::submit::stages(plan, run),
    }
}
