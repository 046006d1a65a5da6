//! sweep: runs the stages at every point of the profile's `[sweep]`, and makes one table and one figure of all points.
//!
//! Every point is a named run beside the profile's own. A stage that no swept parameter affects is taken from the profile's run, so
//! calibration is not repeated. A point with the profile's own parameters costs nothing. A rerun skips whatever is up to date,
//! and a killed sweep continues where it stopped.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use kvcsr_report::figures::SweepQuality;
use kvcsr_report::page::{Block, Page, Section};
use kvcsr_report::save::{self, Figure};
use kvcsr_report::{HeldoutRow, SweepRow, aggregate, files, html, sweep};
use toml::Value;

use super::fetch;
use crate::atomic;
use crate::config::Config;
use crate::config::sections::executor::Kind;
use crate::executor::slurm::{self, Job, Tasks};
use crate::paths::Paths;
use crate::stage::{self, Run, Stage};
use crate::stages::all;
use crate::stages::calibrate::Calibrate;
use crate::stages::evaluate::Evaluate;
use crate::stages::heldout;
use crate::ui;

/// Folder of the table and figure, beside the stages of the profile's run.
const FOLDER: &str = "sweep";

/// Name of the job that runs the points.
const POINTS: &str = "points";

/// Runs every point, then writes `sweep.csv`, the figure and the page.
pub fn run(base: &Run) -> Result<()> {
    let sweep = &base.config.sweep;
    if base.paths.base.is_some() {
        bail!("a sweep names its runs itself: leave out run=");
    }
    if sweep.is_empty() || sweep.values().any(Vec::is_empty) {
        bail!(
            "profile `{0}` sweeps nothing: give it a list, in its file as\n  [sweep]\n  \"train.atoms\" = [512, 1024]\n\
             or here as\n  just sweep profile={0} set='sweep={{\"train.atoms\"=[512,1024]}}'",
            base.profile
        );
    }
    // All points are checked first: a mistake in the last one should show before the first one is trained.
    let points = points(sweep);
    let runs = points.iter().map(|point| named(base, point)).collect::<Result<Vec<Run>>>()?;
    if base.config.executor.kind == Kind::Slurm {
        return submit(base, &points);
    }
    // Every point that does not sweep calibration uses the profile's own.
    stage::run(&Calibrate, &plain(base))?;
    let mut rows = Vec::new();
    for (point, run) in points.iter().zip(&runs) {
        let shown = describe(point);
        ui::line("sweep", &format!("{} of {}: {shown}, in {}", rows_done(&rows) + 1, runs.len(), run.label()));
        for stage in all::leading_to(&[&Evaluate], &run.config)? {
            stage::run(stage, run).with_context(|| shown.clone())?;
        }
        let heldout: Vec<HeldoutRow> = files::read_jsonl(&run.stage_dir("evaluate").join(heldout::ROWS))?;
        rows.extend(aggregate::overall(&heldout)?.into_iter().map(|s| SweepRow {
            point: shown.clone(),
            scheme: s.label(),
            nominal_bits: s.nominal_bits,
            measured_bits: s.measured_bits,
            shared_bytes: s.shared_bytes,
            perplexity: s.ppl,
            kl: s.kl,
            recovery: s.recovery,
            top1_percent: 100.0 * s.top1,
        }));
    }
    write(base, &base.paths.run.join(FOLDER), &rows)
}

/// Submits the sweep as jobs: calibration, then one job for each point, then a job that finds all points made and draws them.
fn submit(base: &Run, points: &[Point]) -> Result<()> {
    let _lock = slurm::submit::refuse_if_live(base)?;
    fetch::run(base)?;
    let job = |name: &str, words: &[&str], tasks: Tasks, after: &[&str]| {
        // The last job takes the points as they are and does not force them.
        let force = base.force && !after.contains(&POINTS);
        let arguments = slurm::submit::arguments(&Run { force, ..base.clone() });
        let command = words.iter().map(|&word| word.to_owned()).chain(arguments).collect();
        let after = after.iter().map(|&name| name.to_owned()).collect();
        Job { name: name.to_owned(), command, tasks, makes: Vec::new(), after }
    };
    // Otherwise a profile whose executor is a cluster would submit jobs again.
    let here = ["--executor", "local"];
    let arguments = |point: &Point| {
        let set = point.iter().flat_map(|(path, value)| ["--set".to_owned(), format!("{path}={value}")]);
        ["--run".to_owned(), name(point)].into_iter().chain(set).collect()
    };
    let each = Tasks::Each(points.iter().map(arguments).collect());
    let reproduce = [&["reproduce", "--to", Evaluate.name()], &here[..]].concat();
    let jobs = [
        job(Calibrate.name(), &[Calibrate.name()], Tasks::One, &[]),
        job(POINTS, &reproduce, each, &[Calibrate.name()]),
        job("sweep", &[&["sweep"], &here[..]].concat(), Tasks::One, &[POINTS]),
    ];
    slurm::submit::submit(&jobs, base)
}

fn rows_done(rows: &[SweepRow]) -> usize {
    let mut points: Vec<&str> = rows.iter().map(|row| row.point.as_str()).collect();
    points.dedup();
    points.len()
}

/// One value of every swept parameter.
type Point = Vec<(String, Value)>;

/// All combinations of the lists. The last parameter changes fastest.
fn points(sweep: &BTreeMap<String, Vec<Value>>) -> Vec<Point> {
    sweep.iter().fold(vec![Vec::new()], |points, (path, values)| {
        let extended = |point: &Point| {
            let with = |value: &Value| [point.clone(), vec![(path.clone(), value.clone())]].concat();
            values.iter().map(with).collect::<Vec<Point>>()
        };
        points.iter().flat_map(extended).collect()
    })
}

/// `train.atoms = 512, train.epochs = 4`.
fn describe(point: &Point) -> String {
    point.iter().map(|(path, value)| format!("{path} = {value}")).collect::<Vec<_>>().join(", ")
}

/// `train.atoms-512`: the name of the run, with characters that the name of a folder may have.
fn name(point: &Point) -> String {
    let text = point.iter().map(|(path, value)| format!("{path}-{value}")).collect::<Vec<_>>().join("-");
    let safe: String =
        text.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect();
    safe.replace("__", "_").trim_matches('_').to_owned()
}

fn named(base: &Run, point: &Point) -> Result<Run> {
    let overrides: Vec<String> = point.iter().map(|(path, value)| format!("{path}={value}")).collect();
    let config = base.config.with(&overrides).and_then(all::checked).with_context(|| describe(point))?;
    let mut config = Config { sweep: BTreeMap::new(), ..config };
    config.report.publish = false;
    let found = Paths::find_run(&base.profile, &name(point))?;
    Ok(Run { config, paths: found, ..base.clone() })
}

/// The profile's run without its sweep.
fn plain(base: &Run) -> Run {
    let config = Config { sweep: BTreeMap::new(), ..base.config.clone() };
    Run { config, force: false, ..base.clone() }
}

fn write(base: &Run, dir: &Path, rows: &[SweepRow]) -> Result<()> {
    let drawn = save::drawing::<SweepQuality>(dir, SweepQuality::NAME, rows)?;
    kvcsr_report::csv::write(&dir.join("sweep.csv"), rows)?;
    let figure = Block::Figure {
        name: SweepQuality::NAME.to_owned(),
        svg: std::fs::read_to_string(drawn.svg)?,
        caption: SweepQuality::caption(rows),
    };
    let mut blocks = vec![figure, Block::Markdown(sweep::scores_markdown(rows))];
    if let Some(spread) = sweep::spread_markdown(rows) {
        blocks.push(Block::Markdown(format!(
            "How far a scheme's scores lie apart. Where the points are seeds, this is the noise of training.\n\n{spread}"
        )));
    }
    blocks.push(Block::Files(vec!["sweep.csv".to_owned()]));
    let page = Page {
        title: format!("Sweep of profile `{}`", base.profile),
        lead: format!("`{}` on {}.", base.config.model, base.config.corpora.join(", ")),
        sections: vec![Section { title: "Scores at every point".to_owned(), command: base.command("sweep"), blocks }],
    };
    atomic::write(&dir.join("sweep.md"), page.markdown().as_bytes())?;
    atomic::write(&dir.join("sweep.html"), html::html(&page).as_bytes())?;
    for file in ["sweep.html", "sweep.md", "sweep.csv"] {
        ui::line("sweep", &base.paths.show(&dir.join(file)).to_string());
    }
    if base.config.report.publish && is_the_profile(base)? {
        publish(base, dir)?;
    }
    Ok(())
}

/// Whether the configuration is that of the profile's file; threads, device and executor may differ. A run with other overrides
/// is an experiment, which is not published.
fn is_the_profile(base: &Run) -> Result<bool> {
    let profiles = base.paths.root.join("pipeline/profiles");
    let own = Config::load(&profiles, &base.profile, &[])?;
    let here = Config {
        threads: own.threads,
        device: own.device.clone(),
        executor: own.executor.clone(),
        ..base.config.clone()
    };
    Ok(here == own)
}

/// Copies the page, its figure and its rows to the published results.
fn publish(base: &Run, dir: &Path) -> Result<()> {
    let target = &base.paths.results;
    std::fs::create_dir_all(target).with_context(|| target.display().to_string())?;
    for file in ["sweep.md", "sweep.csv", "sweep-quality.svg"] {
        atomic::copy_if_changed(&dir.join(file), &target.join(file))?;
    }
    ui::line("sweep", &format!("published in {}", base.paths.show(target)));
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn points_are_the_product_and_names_are_plain() {
        let table: toml::Table =
            "\"train.atoms\" = [512, 1024]\n\"train.gradient\" = [\"atoms\", \"coefficients\"]".parse().unwrap();
        let sweep = table.into_iter().map(|(k, v)| (k, v.as_array().unwrap().clone())).collect();
        let points = points(&sweep);
        let names: Vec<String> = points.iter().map(name).collect();
        assert_eq!(names.len(), 4);
        assert_eq!(names[1], "train.atoms-512-train.gradient-_coefficients");
        assert_eq!(describe(&points[2]), "train.atoms = 1024, train.gradient = \"atoms\"");
    }
}
