//! The `kvcsr` command: stages, manifests and profiles around the library crates.

mod atomic;
mod cli;
mod commands;
mod config;
mod documents;
mod executor;
mod hub;
mod interrupt;
mod longbench_hub;
mod machine;
mod manifest;
mod models;
mod paths;
mod plans;
pub mod readers;
mod remedy;
mod room;
mod sources;
mod stage;
mod stages;
mod text;
mod ui;
mod workers;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use kvcsr_codec::kernels;

use crate::cli::{Cli, Command, RunArgs, Tool, Whole};
use crate::config::Config;
use crate::config::sections::executor::Kind;
use crate::executor::Plan;
use crate::paths::Paths;
use crate::sources::Sources;
use crate::stage::Run;
use crate::stages::all;

/// Runs the command that the program's arguments name.
pub fn main() -> ExitCode {
    // If a reader of the output, such as `head`, ends early, this program ends as other programs do.
    sigpipe::reset();
    let command = Cli::parse().command;
    // The peers of `bench` run as fast as they can. All other commands give the same bits on every machine.
    let beside_peers = matches!(&command, Command::Tool(tool) if matches!(**tool, Tool::Bench(_)));
    for (variable, value) in kvcsr_neuraldict::device::SAME_EVERYWHERE.into_iter().filter(|_| !beside_peers) {
        if std::env::var_os(variable).is_none() {
            // SAFETY: no other thread runs yet, so none reads the environment.
            unsafe { std::env::set_var(variable, value) };
        }
    }
    let ended = interrupt::watch(goes_on(&command)).and_then(|()| run(command));
    interrupt::settle();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = chain(&error);
            eprintln!("error: {text}");
            if let Some(remedy) = remedy::of(&text) {
                eprintln!("{remedy}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Whether an interrupted command continues where it stopped when it is run again.
fn goes_on(command: &Command) -> bool {
    match command {
        Command::Stage(..) => true,
        Command::Whole(whole) => matches!(whole, Whole::Reproduce { .. } | Whole::Fetch(_) | Whole::Sweep { .. }),
        Command::Tool(_) => false,
    }
}

/// An error with its causes. A cause that the text before it already contains is left out.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    let mut before = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.is_empty() && before.contains(&cause) {
            continue;
        }
        if !text.is_empty() {
            text += ": ";
        }
        text += &cause;
        before = cause;
    }
    text
}

fn run(command: Command) -> Result<()> {
    if let Ok(width) = std::env::var("KVCSR_SIMD") {
        kernels::limit_to(width.parse().context("KVCSR_SIMD")?);
    }
    match command {
        Command::Stage(stage, args) => stage::run(stage, &prepare(args)?),
        Command::Whole(Whole::Reproduce { args, to, executor }) => reproduce(&prepare_for(args, executor)?, &to),
        Command::Whole(Whole::Status(args)) => status(&prepare(args)?),
        Command::Whole(Whole::Cancel(args)) => executor::slurm::cancel::run(&prepare(args)?),
        Command::Whole(Whole::Fetch(args)) if args.words == [longbench_hub::WORD] => {
            longbench_hub::fetch(&Paths::find("smol")?)
        }
        Command::Whole(Whole::Fetch(args)) => commands::fetch::run(&prepare(args)?),
        Command::Whole(Whole::DataVerify) => data_verify(),
        Command::Whole(Whole::Sweep { args, executor }) => commands::sweep::run(&prepare_for(args, executor)?),
        Command::Whole(Whole::DiffRuns(args)) => commands::diff_runs::run(&args),
        Command::Whole(Whole::Keep { profile, name }) => commands::keep::run(&profile, &name),
        Command::Tool(tool) => match *tool {
            Tool::Footprint(args) => commands::footprint::run(&args),
            Tool::Generate(args) => commands::generate::run(&args),
            Tool::Logits(args) => commands::logits::run(&args),
            Tool::Bench(args) => commands::bench::run(&args),
            Tool::Draw(args) => commands::draw::run(&args),
            Tool::GpuCheck(args) => commands::gpu_check::run(&args),
            Tool::Score(args) => commands::score::run(&args),
            Tool::StageTimes(args) => commands::stage_times::run(&args),
            Tool::Schemes(args) => commands::schemes::run(&args),
            Tool::Plan(args) => commands::plan::run(&args),
        },
    }
}

/// A run whose stages run in this process.
fn prepare(args: RunArgs) -> Result<Run> {
    let args = args.resolve()?;
    if args.executor.is_some() {
        anyhow::bail!("executor= is for `reproduce` and `sweep`: a single command runs here");
    }
    run_of(args)
}

/// A run whose stages run where the option or the word `executor` says, or else the profile.
fn prepare_for(args: RunArgs, executor: Option<String>) -> Result<Run> {
    let mut args = args.resolve()?;
    let kind = executor.or(args.executor.take());
    let arguments = args.arguments();
    args.overrides.extend(kind.map(|kind| format!("executor.kind={kind}")));
    Ok(Run { arguments, ..run_of(args)? })
}

fn run_of(args: RunArgs) -> Result<Run> {
    let paths = match &args.run {
        None => Paths::find(&args.profile)?,
        Some(name) if config::plain(name) => Paths::find_run(&args.profile, name)?,
        Some(name) => anyhow::bail!("run `{name}`: a name of letters, digits, dots and dashes is expected"),
    };
    let profiles = paths.root.join("pipeline/profiles");
    let mut config = all::checked(Config::load(&profiles, &args.profile, &args.overrides)?)?;
    // README and docs show the profile itself, not a named run beside it.
    config.report.publish &= args.run.is_none();
    rayon::ThreadPoolBuilder::new().num_threads(config.threads).build_global().context("thread pool")?;
    let (arguments, slice) = (args.arguments(), args.slice.parse()?);
    Ok(Run { profile: args.profile, arguments, config, paths, force: args.force, slice, stages: all::ALL })
}

/// Runs the stages that the profile's results need, or the stages `to` and those that they need.
fn reproduce(run: &Run, to: &[String]) -> Result<()> {
    let started = Instant::now();
    let goal = |name: &String| {
        let known = || all::ALL.iter().map(|stage| stage.name()).collect::<Vec<_>>().join(", ");
        let goal = all::ALL.iter().copied().find(|stage| stage.name() == name);
        goal.with_context(|| format!("--to {name}: no stage; there are {}", known()))
    };
    let stages = if to.is_empty() {
        all::reproduced(&run.config)?
    } else {
        all::leading_to(&to.iter().map(goal).collect::<Result<Vec<_>>>()?, &run.config)?
    };
    println!("profile `{}`: {} on {}", run.profile, run.config.model, run.config.corpora.join(", "));
    println!("  {:<10} the model and the texts, once", "fetch");
    for stage in &stages {
        println!("  {:<10} {}", stage.name(), stage.plan(run));
    }
    commands::fetch::run(run)?;
    // The model's configuration tells this now. The stage itself would fail only after hours of other stages.
    let positions = models::Opened::of(&run.config.model, &run.paths)?.arch()?.max_positions;
    stages.iter().try_for_each(|stage| stage.fits(&run.config, positions))?;
    executor::execute(&Plan::of(run, &stages)?, run)?;
    if run.config.executor.kind == Kind::Local {
        println!("all stages done in {}", ui::duration(started.elapsed()));
    }
    Ok(())
}

/// Prints the state of a run's jobs, or which stages are made if no jobs were submitted.
fn status(run: &Run) -> Result<()> {
    executor::slurm::status::run(run, || Plan::of(run, &all::reproduced(&run.config)?))
}

fn data_verify() -> Result<()> {
    let paths = Paths::find("smol")?;
    let mut wrong = 0;
    let sources = Sources::load(&paths.root)?;
    for source in sources.all().chain(&sources.documents()) {
        let path = source.path(&paths);
        let state = if path.is_file() {
            match source.verify(&path) {
                Ok(()) => "ok".to_owned(),
                Err(error) => {
                    wrong += 1;
                    format!("WRONG: {error:#}")
                }
            }
        } else {
            source.missing(&path)
        };
        println!("{:<24} {state}", source.id);
        println!("{:<24} {}, {}", "", source.packages(), source.licence);
        println!("{:<24} {}", "", source.purpose);
    }
    if wrong > 0 {
        anyhow::bail!(
            "{wrong} files are not what data/sources.toml names; `just fetch profile=NAME` of a profile that uses them fetches them again"
        );
    }
    Ok(())
}
