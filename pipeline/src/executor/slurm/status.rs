//! The state of a run's jobs.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::Result;

use super::commands::{self, Live, TaskId};
use super::folder;
use super::jobs::{Entry, Submitted};
use super::script::task_file;
use crate::executor::plan::Plan;
use crate::manifest::Manifest;
use crate::stage::{Part, Run};
use crate::ui;

/// Number of lines that are shown of the log of a failed task.
const LINES: usize = 5;
/// Number of logs that are shown for one job.
const SHOWN: usize = 3;

/// The state of a task.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Done,
    Running,
    Waiting(String),
    Failed(String),
    /// It is not queued, and nothing says how it ended.
    Unknown,
}

impl State {
    fn is_failed(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::Unknown)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::Running => f.write_str("running"),
            Self::Waiting(reason) => write!(f, "waiting ({reason})"),
            Self::Failed(how) => write!(f, "ended: {how}"),
            Self::Unknown => f.write_str("ended without a trace"),
        }
    }
}

/// Prints the state of every job, the last lines of the logs of failed tasks, and what to do next. If no jobs were submitted,
/// prints which stages of the plan are made.
///
/// # Errors
/// If the record cannot be read, or Slurm's commands are missing or fail.
pub fn run(run: &Run, plan: impl FnOnce() -> Result<Plan>) -> Result<()> {
    let folder = folder(run);
    let Some(record) = Submitted::read(&folder)? else {
        println!("run `{}`: nothing was submitted to a cluster", run.label());
        plan()?.steps.iter().for_each(|step| ui::line(step.stage.name(), &made(run, step.stage.name(), step.slices)));
        return Ok(());
    };
    let live = commands::queue()?;
    let gone = record.jobs.iter().filter(|job| (1..=job.tasks).any(|task| !live.contains_key(&(job.id, task))));
    let ended = commands::ended(&gone.map(|job| job.id).collect::<Vec<_>>());
    println!("run `{}`, submitted {}: {} jobs", run.label(), record.submitted, record.jobs.len());
    let (mut left, mut failed) = (0, 0);
    for job in &record.jobs {
        let states: Vec<State> =
            (1..=job.tasks).map(|task| state(run, &record, job, task, &live, &ended, &folder)).collect();
        println!("{:<24} job {:<8} {}", job.name, job.id, counts(&states));
        left += states.iter().filter(|state| matches!(state, State::Running | State::Waiting(_))).count();
        failed += states.iter().filter(|state| state.is_failed()).count();
        let wrong = (1..).zip(&states).filter(|(_, state)| state.is_failed()).take(SHOWN);
        wrong.for_each(|(task, state)| print_log(&folder, &job.name, task, state));
    }
    match (left, failed) {
        (0, 0) => println!("all jobs are done"),
        (0, _) => println!(
            "{failed} tasks did not end well. Fix what their logs report, then submit again with executor=slurm: finished outputs \
             are kept, the rest continues"
        ),
        _ => println!("{left} tasks are queued or running; `{}` cancels them", run.command("cancel")),
    }
    Ok(())
}

/// The state of a task: from the queue if it is there; else from the status that its script wrote; else from what Slurm
/// remembers; else from the outputs.
fn state(
    run: &Run,
    record: &Submitted,
    job: &Entry,
    task: usize,
    live: &BTreeMap<TaskId, Live>,
    ended: &BTreeMap<TaskId, String>,
    folder: &Path,
) -> State {
    let id = (job.id, task);
    if let Some(Live { state, detail }) = live.get(&id) {
        return match state.as_str() {
            "PENDING" => State::Waiting(detail.clone()),
            _ => State::Running,
        };
    }
    let written = std::fs::read_to_string(folder.join(task_file(&job.name, task, "status"))).unwrap_or_default();
    match written.trim().parse::<i32>() {
        Ok(0) => return State::Done,
        Ok(status) => return State::Failed(format!("status {status}")),
        Err(_) => {}
    }
    match ended.get(&id).map(String::as_str) {
        Some("COMPLETED") => return State::Done,
        Some(state) if !["PENDING", "RUNNING"].contains(&state) => return State::Failed(state.to_owned()),
        _ => {}
    }
    let finished = job.makes.get(task - 1).and_then(|made| Manifest::read(&run.paths.run.join(made)));
    match finished.is_some_and(|made| made.finished >= record.submitted) {
        true => State::Done,
        false => State::Unknown,
    }
}

/// The states with their numbers, such as `2 done, 1 running`; without numbers if there is one task.
fn counts(states: &[State]) -> String {
    if let [state] = states {
        return state.to_string();
    }
    let mut counts: BTreeMap<&State, usize> = BTreeMap::new();
    states.iter().for_each(|state| *counts.entry(state).or_default() += 1);
    counts.iter().map(|(state, count)| format!("{count} {state}")).collect::<Vec<_>>().join(", ")
}

fn print_log(folder: &Path, job: &str, task: usize, state: &State) {
    let path = folder.join(task_file(job, task, "log"));
    println!("    {job} {task} {state}: {}", path.display());
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(LINES)..].iter().for_each(|line| println!("    | {line}"));
        }
        Err(_) => println!("    | no log: it never started, or its node does not share this folder"),
    }
}

/// How much of a stage is on the disk.
fn made(run: &Run, stage: &str, slices: usize) -> String {
    if let Some(made) = Manifest::read(&run.stage_dir(stage)) {
        return format!("made {}", made.finished);
    }
    let is_there = |part: &Part| Manifest::read(&run.paths.run.join(part.folder(stage))).is_some();
    match Part::all(slices).filter(is_there).count() {
        0 => "not made yet".to_owned(),
        some => format!("{some} of {slices} slices made"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::script::LOGS;
    use super::*;
    use crate::executor::plan::tests::run_in;

    #[test]
    fn what_is_newest_and_surest_says_how_a_task_stands() {
        let home = tempfile::tempdir().unwrap();
        let run = run_in(home.path(), &[]);
        let folder = folder(&run);
        std::fs::create_dir_all(folder.join(LOGS)).unwrap();
        let text = |name: &str| vec![name.to_owned()];
        let job = Entry {
            name: "train".into(),
            id: 7,
            tasks: 4,
            makes: text("train"),
            after: text("merge"),
            options: Vec::new(),
        };
        let record = Submitted { run: "smoke".into(), submitted: jiff::Timestamp::UNIX_EPOCH, jobs: vec![job.clone()] };
        record.write(&folder).unwrap();
        assert_eq!(Submitted::read(&folder).unwrap().unwrap(), record);
        let mut live = BTreeMap::new();
        let mut ended = BTreeMap::new();
        let of = |task, live: &BTreeMap<TaskId, Live>, ended: &BTreeMap<TaskId, String>| {
            state(&run, &record, &job, task, live, ended, &folder)
        };
        assert_eq!(of(1, &live, &ended), State::Unknown);
        ended.insert((7, 1), "NODE_FAIL".to_owned());
        ended.insert((7, 2), "COMPLETED".to_owned());
        assert_eq!(of(1, &live, &ended), State::Failed("NODE_FAIL".into()));
        assert_eq!(of(2, &live, &ended), State::Done);
        std::fs::write(folder.join(task_file("train", 2, "status")), "running\n").unwrap();
        assert_eq!(of(2, &live, &ended), State::Done, "a script that is being run says nothing of its end");
        std::fs::write(folder.join(task_file("train", 2, "status")), "3\n").unwrap();
        assert_eq!(of(2, &live, &ended), State::Failed("status 3".into()));
        live.insert((7, 2), Live { state: "PENDING".into(), detail: "BeginTime".into() });
        live.insert((7, 3), Live { state: "RUNNING".into(), detail: "node1".into() });
        assert_eq!(of(2, &live, &ended), State::Waiting("BeginTime".into()), "queued again");
        let states: Vec<State> = (1..=4).map(|task| of(task, &live, &ended)).collect();
        assert_eq!(counts(&states), "1 running, 1 waiting (BeginTime), 1 ended: NODE_FAIL, 1 ended without a trace");
        assert_eq!(counts(&[State::Running]), "running");
    }
}
