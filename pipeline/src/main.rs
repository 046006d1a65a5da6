//! The `kvcsr` command: stages, manifests and profiles around the library crates.

mod cli;
mod commands;
mod config;
mod machine;
mod manifest;
mod paths;
mod sources;
mod stage;
mod stages;
mod text;
mod ui;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;

use crate::cli::{Cli, Command, RunArgs};
use crate::config::Config;
use crate::paths::Paths;
use crate::sources::{SourceKind, Sources};
use crate::stage::{Run, Stage};
use crate::stages::{
    calibrate::Calibrate, evaluate::Evaluate, longbench::LongBench, merge::Merge, report::Report, train::Train,
};

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Reproduce(args) => reproduce(&prepare(args)?),
        Command::Fetch(args) => fetch(&prepare(args)?),
        Command::DataVerify => data_verify(),
        Command::Calibrate(args) => single(args, &Calibrate),
        Command::Merge(args) => single(args, &Merge),
        Command::Train(args) => single(args, &Train),
        Command::Evaluate(args) => single(args, &Evaluate),
        Command::Longbench(args) => single(args, &LongBench),
        Command::Report(args) => single(args, &Report),
        Command::Sweep(args) => commands::sweep::run(&prepare(args)?),
        Command::DiffRuns(args) => commands::diff_runs::run(&args),
        Command::Keep { profile, name } => commands::keep::run(&profile, &name),
        Command::Generate(args) => commands::generate::run(&args),
        Command::Logits(args) => commands::logits::run(&args),
        Command::Score(args) => commands::score::run(&args),
        Command::Schemes { json } => schemes(json),
    }
}

fn prepare(args: RunArgs) -> Result<Run> {
    let args = args.resolve()?;
    let paths = match &args.run {
        None => Paths::find(&args.profile)?,
        Some(name) if config::plain(name) => Paths::find_run(&args.profile, name)?,
        Some(name) => anyhow::bail!("run `{name}`: a name of letters, digits, dots and dashes is expected"),
    };
    let mut config = Config::load(&paths.root.join("pipeline/profiles"), &args.profile, &args.overrides)?;
    // The README shows the profile itself, not an experiment beside it.
    config.report.publish &= args.run.is_none();
    rayon::ThreadPoolBuilder::new().num_threads(config.threads).build_global().context("thread pool")?;
    Ok(Run { profile: args.profile, config, paths, force: args.force })
}

fn single(args: RunArgs, stage: &dyn Stage) -> Result<()> {
    stage::run(stage, &prepare(args)?)
}

fn reproduce(run: &Run) -> Result<()> {
    let started = Instant::now();
    let c = &run.config;
    println!("profile `{}`: {} on {}", run.profile, c.model, c.corpora.join(", "));
    println!("  fetch      the model and the texts, once");
    println!(
        "  calibrate  keys and values of {} tokens, and of {} held-out ones",
        c.calibrate.tokens, c.calibrate.heldout_tokens
    );
    println!("  merge      divergence between layers, and groups of layers that share a dictionary");
    println!(
        "  train      one dictionary of {} atoms per group and kind, {} epochs after k-means",
        c.train.atoms, c.train.epochs
    );
    println!("  evaluate   {} schemes on {} documents of each text", c.evaluate.schemes.len(), c.evaluate.documents);
    println!("  report     tables and figures");
    fetch(run)?;
    for stage in [&Calibrate as &dyn Stage, &Merge, &Train, &Evaluate, &Report] {
        stage::run(stage, run)?;
    }
    println!("all stages done in {}", ui::duration(started.elapsed()));
    Ok(())
}

fn fetch(run: &Run) -> Result<()> {
    let sources = Sources::load(&run.paths.root)?;
    let mut wanted = vec![sources.get(&run.config.model, SourceKind::Model)?];
    for id in &run.config.corpora {
        wanted.push(sources.get(id, SourceKind::Text)?);
    }
    let files = wanted.len();
    sources::fetch(wanted, &run.paths)?;
    ui::line("fetch", &format!("{files} files present, sha256 verified"));
    Ok(())
}

fn data_verify() -> Result<()> {
    let paths = Paths::find("smol")?;
    let mut wrong = 0;
    for source in Sources::load(&paths.root)?.all() {
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
            "not fetched".to_owned()
        };
        println!("{:<24} {state}", source.id);
        println!("{:<24} {} {}, {}", "", source.package, source.version, source.licence);
        println!("{:<24} {}", "", source.purpose);
    }
    if wrong > 0 {
        anyhow::bail!("{wrong} files are not what data/sources.toml names; `just fetch` fetches them again");
    }
    Ok(())
}

fn schemes(json: bool) -> Result<()> {
    let entries = kvcsr_cache::registry::ENTRIES;
    if json {
        println!("{}", serde_json::to_string_pretty(entries)?);
    } else {
        for entry in entries {
            println!("{:<12} {}", entry.pattern, entry.summary);
            if !entry.citation.is_empty() {
                println!("{:<12} {}", "", entry.citation);
            }
        }
    }
    Ok(())
}
