//! Runs Slurm's commands, and reads what they print.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// A task of a job: the number of the job and the number of the task, which is 1 if the job is no array.
pub type TaskId = (u64, usize);

/// A task that is queued or running.
#[derive(Debug, Clone, PartialEq)]
pub struct Live {
    /// Slurm's word: `PENDING`, `RUNNING`, `COMPLETING`, ...
    pub state: String,
    /// Why it waits, or where it runs.
    pub detail: String,
}

/// What a command prints; an error if it fails.
fn output(program: &str, arguments: &[String]) -> Result<String> {
    let out = Command::new(program).args(arguments).output().map_err(|error| match error.kind() {
        ErrorKind::NotFound => anyhow::anyhow!(
            "{program} was not found: executor=slurm needs Slurm's commands on the machine that submits, for example a login node of a \
             cluster (Debian: apt-get install slurm-client). Without a cluster leave executor=slurm out: the same plan runs here"
        ),
        _ => anyhow::Error::new(error).context(program.to_owned()),
    })?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr).trim().to_owned();
        bail!("{program} failed ({}): {said}", out.status);
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn list(ids: &[u64]) -> String {
    ids.iter().map(u64::to_string).collect::<Vec<_>>().join(",")
}

/// Submits a script with these options, and returns the job's number.
///
/// # Errors
/// If `sbatch` is missing or refuses the job.
pub fn sbatch(options: &[String], script: &Path) -> Result<u64> {
    let arguments = [options, &[script.to_string_lossy().into_owned()]].concat();
    let said = output("sbatch", &arguments)?;
    // The job's number, followed by the cluster's name if there are several clusters.
    let number = said.trim().lines().last().and_then(|line| line.split(';').next()?.parse().ok());
    number.with_context(|| format!("sbatch: a job's number is expected, found {said:?}"))
}

/// All tasks of this user that are queued or running.
///
/// # Errors
/// If `squeue` is missing or fails.
pub fn queue() -> Result<BTreeMap<TaskId, Live>> {
    let arguments = ["--noheader", "--array", "--me", "--format=%F|%K|%T|%r|%N"].map(str::to_owned);
    Ok(parse_queue(&output("squeue", &arguments)?))
}

fn parse_queue(text: &str) -> BTreeMap<TaskId, Live> {
    let line = |line: &str| {
        let mut parts = line.trim().split('|');
        let job = parts.next()?.parse().ok()?;
        let task = parts.next()?.parse().unwrap_or(1);
        let (state, reason, nodes) = (parts.next()?.to_owned(), parts.next()?, parts.next()?);
        let detail = if nodes.is_empty() { reason } else { nodes }.to_owned();
        Some(((job, task), Live { state, detail }))
    };
    text.lines().filter_map(line).collect()
}

/// How the tasks of these jobs ended, if Slurm still knows. The answer comes from Slurm's accounting. On clusters without
/// accounting it comes from the controller, which forgets jobs after some minutes. Forgotten tasks are left out.
pub fn ended(ids: &[u64]) -> BTreeMap<TaskId, String> {
    if ids.is_empty() {
        return BTreeMap::new();
    }
    let accounting =
        ["--noheader", "--parsable2", "--allocations", "--format=JobID,State", "--jobs"].map(str::to_owned);
    if let Ok(text) = output("sacct", &[&accounting[..], &[list(ids)]].concat()) {
        return parse_accounting(&text);
    }
    let of = |id: &u64| output("scontrol", &["show", "job", "--oneliner", &id.to_string()].map(str::to_owned));
    // For a forgotten job the command fails.
    ids.iter().filter_map(|id| of(id).ok()).flat_map(|text| parse_jobs(&text)).collect()
}

fn parse_accounting(text: &str) -> BTreeMap<TaskId, String> {
    let line = |line: &str| {
        let (id, state) = line.split_once('|')?;
        let (job, task) = id.split_once('_').unwrap_or((id, "1"));
        Some(((job.parse().ok()?, task.parse().ok()?), first_word(state)))
    };
    text.lines().filter_map(line).collect()
}

fn parse_jobs(text: &str) -> BTreeMap<TaskId, String> {
    let line = |line: &str| {
        let of = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let job = of("ArrayJobId").or_else(|| of("JobId"))?.parse().ok()?;
        let task = match of("ArrayTaskId") {
            Some(task) => task.parse().ok()?,
            None => 1,
        };
        Some(((job, task), first_word(of("JobState")?)))
    };
    text.lines().filter_map(line).collect()
}

/// `CANCELLED by 1000` is `CANCELLED`.
fn first_word(state: &str) -> String {
    state.split_whitespace().next().unwrap_or_default().to_owned()
}

/// Cancels jobs.
///
/// # Errors
/// If `scancel` is missing or fails.
pub fn scancel(ids: &[u64]) -> Result<()> {
    let arguments: Vec<String> = ids.iter().map(u64::to_string).collect();
    output("scancel", &arguments).map(drop)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tasks_that_are_queued_or_run_are_read() {
        let text = "6|4|PENDING|Resources|\n7|N/A|PENDING|Dependency|\n6|3|RUNNING|None|node1\n\nodd\n";
        let found = parse_queue(text);
        assert_eq!(found.len(), 3);
        assert_eq!((found[&(6, 3)].state.as_str(), found[&(6, 3)].detail.as_str()), ("RUNNING", "node1"));
        assert_eq!(found[&(7, 1)].detail, "Dependency");
    }

    #[test]
    fn ends_are_read_from_accounting_and_from_the_controller() {
        let found = parse_accounting("6_1|COMPLETED\n6_2|CANCELLED by 0\n7|FAILED\n6_[3-4]|PENDING\n");
        assert_eq!(found.into_values().collect::<Vec<_>>(), ["COMPLETED", "CANCELLED", "FAILED"]);
        let text = "JobId=6 ArrayJobId=6 ArrayTaskId=4 JobName=x JobState=COMPLETED Reason=None\n\
                    JobId=9 ArrayJobId=6 ArrayTaskId=2 JobName=x JobState=NODE_FAIL Reason=None\n\
                    JobId=7 JobName=y JobState=FAILED Reason=NonZeroExitCode\n";
        let found = parse_jobs(text);
        assert_eq!(
            (found[&(6, 4)].as_str(), found[&(6, 2)].as_str(), found[&(7, 1)].as_str()),
            ("COMPLETED", "NODE_FAIL", "FAILED")
        );
    }
}
