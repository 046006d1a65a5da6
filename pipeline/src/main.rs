//! The `kvcsr` command: stages, manifests and profiles around the library crates.

mod atomic;
mod cli;
mod commands;
mod config;
mod documents;
mod hub;
mod interrupt;
mod longbench_hub;
mod machine;
mod manifest;
mod models;
mod paths;
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

use crate::cli::{Cli, Command, RunArgs, Tool, Whole};
use crate::config::Config;
use crate::paths::Paths;
use crate::sources::Sources;
use crate::stage::Run;
use crate::stages::all;

fn main() -> ExitCode {
    // A reader that has seen enough, such as `head`, ends the program as it ends others.
    sigpipe::reset();
    let command = Cli::parse().command;
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

/// Whether a command that was interrupted goes on where it stopped.
fn goes_on(command: &Command) -> bool {
    match command {
        Command::Stage(..) => true,
        Command::Whole(whole) => matches!(whole, Whole::Reproduce { .. } | Whole::Fetch(_) | Whole::Sweep(_)),
        Command::Tool(_) => false,
    }
}

/// An error with its causes, those left out that the one before has in it already.
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
    match command {
        Command::Stage(stage, args) => stage::run(stage, &prepare(args)?),
        Command::Whole(Whole::Reproduce { args, to }) => reproduce(&prepare(args)?, to.as_deref()),
        Command::Whole(Whole::Fetch(args)) if args.words == [longbench_hub::WORD] => {
            longbench_hub::fetch(&Paths::find("smol")?)
        }
        Command::Whole(Whole::Fetch(args)) => fetch(&prepare(args)?),
        Command::Whole(Whole::DataVerify) => data_verify(),
        Command::Whole(Whole::Sweep(args)) => commands::sweep::run(&prepare(args)?),
        Command::Whole(Whole::DiffRuns(args)) => commands::diff_runs::run(&args),
        Command::Whole(Whole::Keep { profile, name }) => commands::keep::run(&profile, &name),
        Command::Tool(tool) => match *tool {
            Tool::Footprint(args) => commands::footprint::run(&args),
            Tool::Generate(args) => commands::generate::run(&args),
            Tool::Logits(args) => commands::logits::run(&args),
            Tool::Draw(args) => commands::draw::run(&args),
            Tool::GpuCheck(args) => commands::gpu_check::run(&args),
            Tool::Score(args) => commands::score::run(&args),
            Tool::Schemes(args) => commands::schemes::run(&args),
        },
    }
}

fn prepare(args: RunArgs) -> Result<Run> {
    let args = args.resolve()?;
    let paths = match &args.run {
        None => Paths::find(&args.profile)?,
        Some(name) if config::plain(name) => Paths::find_run(&args.profile, name)?,
        Some(name) => anyhow::bail!("run `{name}`: a name of letters, digits, dots and dashes is expected"),
    };
    let profiles = paths.root.join("pipeline/profiles");
    let mut config = all::checked(Config::load(&profiles, &args.profile, &args.overrides)?)?;
    // README and docs show the profile itself, not an experiment beside it.
    config.report.publish &= args.run.is_none();
    rayon::ThreadPoolBuilder::new().num_threads(config.threads).build_global().context("thread pool")?;
    Ok(Run { profile: args.profile, config, paths, force: args.force, stages: all::ALL })
}

/// Runs the stages that the profile's results need, or those that lead to the stage `to`.
fn reproduce(run: &Run, to: Option<&str>) -> Result<()> {
    let started = Instant::now();
    let stages = match to {
        None => all::reproduced(&run.config)?,
        Some(name) => {
            let known = || all::ALL.iter().map(|stage| stage.name()).collect::<Vec<_>>().join(", ");
            let goal = all::ALL.iter().copied().find(|stage| stage.name() == name);
            all::leading_to(
                &[goal.with_context(|| format!("--to {name}: no stage; there are {}", known()))?],
                &run.config,
            )?
        }
    };
    println!("profile `{}`: {} on {}", run.profile, run.config.model, run.config.corpora.join(", "));
    println!("  {:<10} the model and the texts, once", "fetch");
    for stage in &stages {
        println!("  {:<10} {}", stage.name(), stage.plan(run));
    }
    fetch(run)?;
    // Known from the model's configuration; the stage itself would say so after hours of others.
    let positions = models::Opened::of(&run.config.model, &run.paths)?.arch()?.max_positions;
    stages.iter().try_for_each(|stage| stage.fits(&run.config, positions))?;
    for stage in stages {
        stage::run(stage, run)?;
    }
    println!("all stages done in {}", ui::duration(started.elapsed()));
    Ok(())
}

fn fetch(run: &Run) -> Result<()> {
    let sources = Sources::load(&run.paths.root)?;
    let model = models::fetch(&run.config.model, &run.paths)?;
    let mut wanted: Vec<&sources::Source> = model.iter().collect();
    for (id, kind) in stage::downloads(run)? {
        wanted.push(sources.get(&id, kind)?);
    }
    let documents = documents::sources(&run.paths.root, &run.config.heldout.domains)?;
    wanted.extend(&documents);
    let files = wanted.len();
    sources::fetch(wanted, &run.paths)?;
    ui::line("fetch", &format!("{files} files present, sha256 verified"));
    Ok(())
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
        anyhow::bail!("{wrong} files are not what data/sources.toml names; `just fetch` fetches them again");
    }
    Ok(())
}
