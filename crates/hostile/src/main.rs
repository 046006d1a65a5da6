//! `just fuzz`: as many hostile inputs as requested.
//!
//! ```text
//! just fuzz                                   # until each target has had 10^7 inputs in all, over the runs so far
//! just fuzz executions=200000 targets=gguf,wheel jobs=1
//! just fuzz publish                           # the counts so far into docs/RELIABILITY.md
//! just fuzz corpus                            # the files that the project's writers make, into the corpus again
//! just fuzz replay gguf FILE                  # one input, and what it does
//! ```

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use kvcsr_hostile::campaign::{self, Plan, State};
use kvcsr_hostile::{ALL, allocation, named, place, run, seeds, table};
use kvcsr_report::splice;

#[global_allocator]
static ALLOCATOR: allocation::Counting = allocation::Counting;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["child", task] => campaign::child(task).map(|()| true),
        ["corpus"] => seeds::write().map(|()| true),
        ["publish"] => publish().map(|()| true),
        ["replay", target, files @ ..] => replay(target, files),
        words => fuzz(words),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The folder with counts and finds.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/runs/hostile")
}

/// Runs inputs. Returns true if nothing was found.
fn fuzz(words: &[&str]) -> Result<bool> {
    let mut plan = Plan {
        targets: ALL.iter().collect(),
        executions: 10_000_000,
        jobs: std::thread::available_parallelism().map_or(1, usize::from),
        seed: 1,
        folder: folder(),
        verbose: true,
    };
    for word in words {
        let (key, value) = word.split_once('=').with_context(|| format!("`{word}`: expected key=value"))?;
        let number = || value.parse::<u64>().with_context(|| format!("{key}={value}: a number is expected"));
        match key {
            "executions" => plan.executions = number()?,
            "jobs" => plan.jobs = number()?.try_into()?,
            "seed" => plan.seed = number()?,
            "out" => plan.folder = value.into(),
            "targets" => {
                let find = |name: &str| {
                    let known = || ALL.iter().map(|target| target.name).collect::<Vec<_>>().join(", ");
                    named(name).with_context(|| format!("no target `{name}`; there are {}", known()))
                };
                plan.targets = value.split(',').map(find).collect::<Result<_>>()?;
            }
            _ => bail!("`{key}`: expected executions, targets, jobs, seed or out"),
        }
    }
    // A new checkout continues from the published counts.
    let counted = folder().join("state.json");
    if plan.folder == folder() && !counted.exists() {
        std::fs::create_dir_all(&plan.folder).with_context(|| plan.folder.display().to_string())?;
        State::load(&table::committed())?.save(&counted)?;
    }
    let state = campaign::run(&plan)?;
    print!("{}", table::markdown(&state));
    let mut sound = true;
    for target in &plan.targets {
        let Some(counts) = state.targets.get(target.name) else { continue };
        for (said, find) in &counts.finds {
            sound = false;
            println!("{}: {said}, {} times: {}", target.name, find.times, find.inputs.join(" "));
        }
        for (said, times) in &counts.caught {
            println!("{}: caught {times} times: {said}", target.name);
        }
    }
    if !sound {
        println!("inputs of finds are in {}", plan.folder.join("finds").display());
    }
    Ok(sound)
}

fn publish() -> Result<()> {
    let state = State::load(&folder().join("state.json"))?;
    state.save(&table::committed())?;
    let (path, marker) = table::document();
    splice::splice_file(&path, marker, &table::markdown(&state))?;
    Ok(())
}

/// Runs files one after the other. Returns true if nothing was found.
fn replay(target: &str, files: &[&str]) -> Result<bool> {
    let target = named(target).with_context(|| format!("no target `{target}`"))?;
    let (mut sound, place) = (true, place::Place::new()?);
    for file in files {
        let input = std::fs::read(file).with_context(|| (*file).to_owned())?;
        // The first run may make tables that later runs reuse.
        let (_, outcome) = [(); 2].map(|()| run::once(target, &input, &place)).into();
        println!("{file}: {} bytes, {outcome:?}", input.len());
        sound &= outcome.find.is_none();
    }
    Ok(sound)
}
