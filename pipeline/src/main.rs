//! The `kvcsr` command: stages, manifests and profiles around the library crates.

mod cli;
mod commands;
mod config;
mod hub;
mod longbench_hub;
mod machine;
mod manifest;
mod models;
mod paths;
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

use crate::cli::{Cli, Command, RunArgs};
use crate::config::Config;
use crate::paths::Paths;
use crate::sources::{SourceKind, Sources};
use crate::stage::{Run, Stage};
use crate::stages::{
    ablate::Ablate, allocate::Allocate, calibrate::Calibrate, calibrate_peers::CalibratePeers, compare::Compare,
    evaluate::Evaluate, longbench::LongBench, merge::Merge, report::Report, suite::Suite, train::Train,
    train_best::TrainBest, train_rope::TrainRope,
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
        Command::Fetch(args) if args.words == [longbench_hub::WORD] => longbench_hub::fetch(&Paths::find("smol")?),
        Command::Fetch(args) => fetch(&prepare(args)?),
        Command::DataVerify => data_verify(),
        Command::Calibrate(args) => single(args, &Calibrate),
        Command::Merge(args) => single(args, &Merge),
        Command::Train(args) => single(args, &Train),
        Command::TrainBest(args) => single(args, &TrainBest),
        Command::TrainRope(args) => single(args, &TrainRope),
        Command::Allocate(args) => single(args, &Allocate),
        Command::Ablate(args) => single(args, &Ablate),
        Command::Evaluate(args) => single(args, &Evaluate),
        Command::Longbench(args) => single(args.resolve(), &LongBench),
        Command::Suite(args) => single(args, &Suite),
        Command::CalibratePeers(args) => single(args, &CalibratePeers),
        Command::Compare(args) => single(args, &Compare),
        Command::Report(args) => single(args, &Report),
        Command::Sweep(args) => commands::sweep::run(&prepare(args)?),
        Command::DiffRuns(args) => commands::diff_runs::run(&args),
        Command::Keep { profile, name } => commands::keep::run(&profile, &name),
        Command::Footprint(args) => commands::footprint::run(&args),
        Command::Generate(args) => commands::generate::run(&args),
        Command::Logits(args) => commands::logits::run(&args),
        Command::Score(args) => commands::score::run(&args),
        Command::Schemes(args) => commands::schemes::run(&args),
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
    let needed = stages::scores::needed(&c.evaluate.schemes)?;
    let needs = |stage: &str| needed.contains(&stage);
    if needs("train-best") {
        println!(
            "  train-best the same with options beyond the paper: keys {}, values {}",
            c.train_best.keys, c.train_best.values
        );
    }
    if needs("train-rope") {
        println!("  train-rope the same for keys after position embedding");
    }
    if needs("allocate") {
        println!("  allocate   what each layer's keys and values cost in KL, and levels that spend atoms accordingly");
    }
    println!("  evaluate   {} schemes on {} documents of each text", c.evaluate.schemes.len(), c.evaluate.documents);
    println!("  suite      {} schemes on {} records of each task", c.suite.schemes.len(), c.suite.limit);
    println!("  report     tables and figures");
    fetch(run)?;
    let mut all: Vec<&dyn Stage> = vec![&Calibrate, &Merge, &Train];
    if needs("train-best") {
        all.push(&TrainBest);
    }
    if needs("train-rope") {
        all.push(&TrainRope);
    }
    if needs("allocate") {
        all.push(&Allocate);
    }
    all.extend([&Evaluate as &dyn Stage, &Suite, &Report]);
    for stage in all {
        stage::run(stage, run)?;
    }
    println!("all stages done in {}", ui::duration(started.elapsed()));
    Ok(())
}

fn fetch(run: &Run) -> Result<()> {
    let sources = Sources::load(&run.paths.root)?;
    let model = models::fetch(run)?;
    let mut wanted: Vec<&sources::Source> = model.iter().collect();
    for id in &run.config.corpora {
        wanted.push(sources.get(id, SourceKind::Text)?);
    }
    let mut tasks = stages::suite::sources(&run.config.suite.tasks).context("suite.tasks")?;
    for id in stages::suite::sources(&run.config.compare.tasks).context("compare.tasks")? {
        if !tasks.contains(&id) {
            tasks.push(id);
        }
    }
    for id in tasks {
        wanted.push(sources.get(id, SourceKind::Tasks)?);
    }
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
