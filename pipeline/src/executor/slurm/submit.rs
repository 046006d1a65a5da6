//! Turns a plan into jobs: writes their scripts, and submits them in order.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use jiff::Timestamp;
use rand::RngExt;

use super::commands;
use super::jobs::{Entry, Submitted};
use super::script::{self, Job, LOGS, Place, TOKEN, Tasks};
use super::{FOLDER, folder};
use crate::config::sections::executor::Settings;
use crate::executor::plan::{Plan, Step};
use crate::stage::{self, Part, Run};
use crate::{atomic, manifest, ui};

/// Submits the steps of the plan that still have to be made, and prints which are up to date.
///
/// # Errors
/// If jobs of this run are queued or running, Slurm's commands are missing, or a job is refused. After a refusal, the jobs that
/// were submitted before it are cancelled.
pub fn stages(plan: &Plan, run: &Run) -> Result<()> {
    let _lock = refuse_if_live(run)?;
    let todo = unfinished(plan, run)?;
    let jobs: Vec<Job> = todo.iter().flat_map(|&at| jobs_of(plan, at, &todo, run)).collect();
    if jobs.is_empty() {
        println!("all stages are up to date: nothing was submitted");
        return Ok(());
    }
    submit(&jobs, run)
}

/// Locks the run so that no other process submits jobs for it, if none of its jobs are queued or running.
///
/// # Errors
/// If jobs are queued or running, with what to do.
pub fn refuse_if_live(run: &Run) -> Result<stage::Lock> {
    let lock = stage::lock(&run.paths.run, FOLDER)?;
    let Some(record) = Submitted::read(&folder(run))? else {
        // Without a cluster this fails before anything is made.
        commands::queue()?;
        return Ok(lock);
    };
    let live = commands::queue()?;
    let left: Vec<String> = record
        .jobs
        .iter()
        .filter(|job| live.keys().any(|(id, _)| *id == job.id))
        .map(|job| format!("{} ({})", job.name, job.id))
        .collect();
    if !left.is_empty() {
        bail!(
            "run `{}` has jobs that are queued or running: {}. `{}` shows them, `{}` cancels them",
            run.label(),
            left.join(", "),
            run.command("status"),
            run.command("cancel")
        );
    }
    Ok(lock)
}

/// The indices of the steps that have to be made, and of all steps that depend on them. The other steps print that they are up to
/// date.
fn unfinished(plan: &Plan, run: &Run) -> Result<Vec<usize>> {
    let mut todo: Vec<usize> = Vec::new();
    for (at, step) in plan.steps.iter().enumerate() {
        if step.needs.iter().any(|need| todo.contains(need)) || !stage::is_made(step.stage, run)? {
            todo.push(at);
        } else {
            stage::run(step.stage, run)?;
        }
    }
    Ok(todo)
}

/// The job of a step, or the array of its slices and the job that joins them.
fn jobs_of(plan: &Plan, at: usize, todo: &[usize], run: &Run) -> Vec<Job> {
    let Step { stage, slices, needs } = &plan.steps[at];
    let name = stage.name();
    let last = |step: &Step| last_job(step.stage.name(), step.slices);
    let after = needs.iter().filter(|need| todo.contains(need)).map(|&need| last(&plan.steps[need])).collect();
    let command = |more: &[String]| [&[name.to_owned()], &arguments(run)[..], more].concat();
    if *slices == 1 {
        let makes = vec![name.to_owned()];
        return vec![Job { name: name.to_owned(), command: command(&[]), tasks: Tasks::One, makes, after }];
    }
    let array = Job {
        name: name.to_owned(),
        command: command(&[]),
        tasks: Tasks::Slices(*slices),
        makes: Part::all(*slices).map(|part| part.folder(name)).collect(),
        after,
    };
    let merge = Job {
        name: last_job(name, *slices),
        command: command(&["--merge".to_owned(), slices.to_string()]),
        tasks: Tasks::One,
        makes: vec![name.to_owned()],
        after: vec![name.to_owned()],
    };
    vec![array, merge]
}

/// The name of the last job of a stage.
fn last_job(stage: &str, slices: usize) -> String {
    if slices == 1 { stage.to_owned() } else { format!("{stage}-merge") }
}

/// The arguments of a job's command: the configuration of this run, and as many threads as the job has cores.
pub fn arguments(run: &Run) -> Vec<String> {
    let mut arguments = run.arguments.clone();
    let cpus = run.config.executor.cpus;
    if cpus > 0 && run.config.threads == 0 {
        arguments.extend(["--set".to_owned(), format!("threads={cpus}")]);
    }
    if run.force {
        arguments.push("--force".to_owned());
    }
    arguments
}

/// Writes the scripts, submits them in order, and records each job.
pub fn submit(jobs: &[Job], run: &Run) -> Result<()> {
    let place = prepare(run)?;
    let folder = &place.folder;
    let submitted = manifest::to_the_second(Timestamp::now());
    let mut record = Submitted { run: run.label(), submitted, jobs: Vec::new() };
    for job in jobs {
        let file = folder.join(format!("{}.sh", job.name));
        atomic::write(&file, script::text(job, &place).as_bytes())
            .map_err(|error| undo(&record, run, anyhow!(error).context(file.display().to_string())))?;
        let of = |name: &String| record.jobs.iter().find(|entry| entry.name == *name).map(|entry| entry.id);
        let after: Vec<u64> = job.after.iter().filter_map(of).collect();
        let options = options(job, &after, &run.config.executor, &run.label(), folder);
        let id = match commands::sbatch(&options, &file) {
            Ok(id) => id,
            Err(error) => return Err(undo(&record, run, error).context(format!("job {}", job.name))),
        };
        let Job { name, tasks, makes, after, .. } = job.clone();
        record.jobs.push(Entry { name, id, tasks: tasks.count(), makes, after, options });
        record.write(folder).map_err(|error| undo(&record, run, error))?;
    }
    for job in &record.jobs {
        let tasks = if job.tasks == 1 { "1 task".to_owned() } else { format!("{} tasks", job.tasks) };
        let after = if job.after.is_empty() { String::new() } else { format!(", after {}", job.after.join(", ")) };
        ui::line("slurm", &format!("{:<24} job {}, {tasks}{after}", job.name, job.id));
    }
    println!("`{}` shows their state, `{}` cancels them", run.command("status"), run.command("cancel"));
    Ok(())
}

/// Cancels the jobs that were submitted before one was refused or could not be recorded.
fn undo(record: &Submitted, run: &Run, error: anyhow::Error) -> anyhow::Error {
    if record.jobs.is_empty() {
        return error;
    }
    match commands::scancel(&record.ids()) {
        Ok(()) => error.context("not all jobs were submitted; those that were are cancelled"),
        Err(_) => error.context(format!(
            "not all jobs were submitted, and those that were could not be cancelled: see `{}` and `squeue`",
            run.command("status")
        )),
    }
}

/// Makes an empty folder for scripts and logs, with a new token. The nodes must share its file system.
fn prepare(run: &Run) -> Result<Place> {
    let folder = folder(run);
    stage::remove_dir(&folder)?;
    let logs = folder.join(LOGS);
    std::fs::create_dir_all(&logs).with_context(|| logs.display().to_string())?;
    // The current folder of a node may be another, so the path is absolute.
    let folder = folder.canonicalize().with_context(|| folder.display().to_string())?;
    let token = format!("{:032x}", rand::rng().random::<u128>());
    atomic::write(&folder.join(TOKEN), format!("{token}\n").as_bytes())?;
    Ok(Place {
        folder,
        token,
        program: std::env::current_exe().context("the path of this program")?,
        current: std::env::current_dir()?,
        environment: environment(std::env::vars_os().filter_map(|(name, value)| {
            // A variable that is no valid text is not ours.
            Some((name.into_string().ok()?, value.into_string().ok()?))
        })),
        retries: run.config.executor.retries,
    })
}

/// Variables that the program reads, or that it needs to start.
fn environment(all: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    let named = |name: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        name == "LD_LIBRARY_PATH" || (name.starts_with("KVCSR_") && name.chars().all(plain))
    };
    let wanted: BTreeSet<(String, String)> = all.filter(|(name, _)| named(name)).collect();
    wanted.into_iter().collect()
}

/// The options of `sbatch` for a job.
fn options(job: &Job, after: &[u64], settings: &Settings, run: &str, folder: &Path) -> Vec<String> {
    // In the name of a log, `%` starts a field that Slurm replaces.
    let folder = folder.to_string_lossy().replace('%', "%%");
    let task = if job.tasks == Tasks::One { "1" } else { "%a" };
    let mut options = vec![
        "--parsable".to_owned(),
        format!("--job-name=kvcsr:{run}:{}", job.name),
        format!("--output={folder}/{LOGS}/{}-{task}.log", job.name),
        // If a node fails, the log that its job has written is kept.
        "--open-mode=append".to_owned(),
        "--requeue".to_owned(),
        "--kill-on-invalid-dep=yes".to_owned(),
        "--nodes=1".to_owned(),
        "--ntasks=1".to_owned(),
    ];
    if job.tasks != Tasks::One {
        options.push(format!("--array=1-{}", job.tasks.count()));
    }
    if !after.is_empty() {
        let ids: Vec<String> = after.iter().map(u64::to_string).collect();
        options.push(format!("--dependency=afterok:{}", ids.join(":")));
    }
    let Settings { partition, account, gpus, cpus, memory_gb, time, .. } = settings;
    for (name, value) in [("partition", partition), ("account", account), ("time", time)] {
        if !value.is_empty() {
            options.push(format!("--{name}={value}"));
        }
    }
    if *gpus > 0 {
        options.push(format!("--gres=gpu:{gpus}"));
    }
    if *cpus > 0 {
        options.push(format!("--cpus-per-task={cpus}"));
    }
    if *memory_gb > 0.0 {
        options.push(format!("--mem={}M", (memory_gb * 1024.0).ceil()));
    }
    options.extend(settings.extra.iter().cloned());
    options
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::executor::plan::tests::run_in;
    use crate::stages::all::ALL;

    fn step(name: &str, slices: usize, needs: &[usize]) -> Step {
        let stage = *ALL.iter().find(|stage| stage.name() == name).unwrap();
        Step { stage, slices, needs: needs.into() }
    }

    #[test]
    fn slices_are_an_array_and_what_follows_waits_for_their_merge() {
        let run = run_in(Path::new("/nowhere"), &["executor.cpus=4"]);
        let steps =
            vec![step("calibrate", 1, &[]), step("merge", 1, &[0]), step("train", 3, &[0, 1]), step("suite", 1, &[2])];
        let plan = Plan { steps };
        let jobs = |todo: &[usize]| todo.iter().flat_map(|&at| jobs_of(&plan, at, todo, &run)).collect::<Vec<Job>>();
        let all = jobs(&[0, 1, 2, 3]);
        let told: Vec<(&str, usize, Vec<&str>)> = all
            .iter()
            .map(|job| (job.name.as_str(), job.tasks.count(), job.after.iter().map(String::as_str).collect()))
            .collect();
        assert_eq!(
            told,
            [
                ("calibrate", 1, vec![]),
                ("merge", 1, vec!["calibrate"]),
                ("train", 3, vec!["calibrate", "merge"]),
                ("train-merge", 1, vec!["train"]),
                ("suite", 1, vec!["train-merge"]),
            ]
        );
        let shared = ["train", "--profile", "smoke", "--set", "threads=4"];
        assert_eq!(all[2].command, shared);
        assert_eq!(all[3].command, [&shared[..], &["--merge", "3"]].concat());
        assert_eq!((all[2].makes[1].as_str(), all[3].makes[0].as_str()), ("train-2-of-3", "train"));
        // No job waits for a step that is up to date.
        assert!(jobs(&[2, 3])[0].after.is_empty());
    }

    #[test]
    fn jobs_ask_for_what_the_profile_says() {
        let run = run_in(
            Path::new("/nowhere"),
            &[
                "executor.partition=gpu",
                "executor.account=lab",
                "executor.gpus=1",
                "executor.cpus=8",
                "executor.memory_gb=0.5",
                "executor.time=1-00:00:00",
                "executor.extra=[\"--constraint=a100\"]",
            ],
        );
        let job = Job {
            name: "train".into(),
            command: Vec::new(),
            tasks: Tasks::Slices(3),
            makes: Vec::new(),
            after: Vec::new(),
        };
        let told = options(&job, &[7, 9], &run.config.executor, "smoke", Path::new("/data/10%/slurm"));
        let expected = "--parsable --job-name=kvcsr:smoke:train --output=/data/10%%/slurm/logs/train-%a.log --open-mode=append --requeue \
             --kill-on-invalid-dep=yes --nodes=1 --ntasks=1 --array=1-3 --dependency=afterok:7:9 --partition=gpu --account=lab \
             --time=1-00:00:00 --gres=gpu:1 --cpus-per-task=8 --mem=512M --constraint=a100";
        assert_eq!(told.join(" "), expected);
        let plain = run_in(Path::new("/nowhere"), &[]);
        let told = options(&Job { tasks: Tasks::One, ..job }, &[], &plain.config.executor, "smoke", Path::new("/d"));
        assert!(told.iter().all(|option| !option.contains("array") && !option.contains("dependency")), "{told:?}");
        assert!(told.contains(&"--output=/d/logs/train-1.log".to_owned()));
    }

    #[test]
    fn only_what_the_program_needs_of_the_environment_is_written_down() {
        let all =
            [("PATH", "/bin"), ("KVCSR_DATA", "/d"), ("KVCSR_X;rm", "y"), ("LD_LIBRARY_PATH", "/l"), ("SECRET", "s")];
        let found = environment(all.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["KVCSR_DATA", "LD_LIBRARY_PATH"]);
    }
}
