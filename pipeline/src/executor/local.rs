//! Runs the plan in this process, one step after another.

use anyhow::Result;

use super::plan::{Plan, Step};
use crate::stage::{self, Part, Run, Slice};

/// Runs every step.
///
/// # Errors
/// The error of the first step that fails.
pub fn run(plan: &Plan, run: &Run) -> Result<()> {
    plan.steps.iter().try_for_each(|step| self::step(step, run))
}

/// Runs one step. If it has slices, makes them one after another and then joins them, as a cluster would.
fn step(step: &Step, run: &Run) -> Result<()> {
    if step.slices == 1 || stage::is_made(step.stage, run)? {
        return stage::run(step.stage, run);
    }
    for part in Part::all(step.slices) {
        stage::run(step.stage, &run.with_slice(Slice::One(part)))?;
    }
    stage::run(step.stage, &run.with_slice(Slice::Merge(step.slices)))
}
