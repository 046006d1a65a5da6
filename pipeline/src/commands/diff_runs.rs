//! diff-runs: parameters and scores of two runs side by side.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use kvcsr_report::records::OverallRow;
use kvcsr_report::{HeldoutRow, Kind, ReconstructionRow, aggregate, files};
use serde_json::Value;

use super::keep::finished;
use crate::manifest::Manifest;
use crate::paths::Paths;
use crate::stages::evaluate::RECONSTRUCTION;
use crate::stages::heldout;
use crate::stages::scores::OVERALL;

/// Which runs to compare.
#[derive(Debug, Args)]
pub struct DiffRunsArgs {
    /// A profile, or PROFILE+NAME for a named or kept run
    #[arg(value_name = "A")]
    pub a: String,
    /// The other run, in the same form
    #[arg(value_name = "B")]
    pub b: String,
}

/// Prints the parameters that differ, then the scores that both runs have.
pub fn run(args: &DiffRunsArgs) -> Result<()> {
    let (a, b) = (Folders::of(&args.a)?, Folders::of(&args.b)?);
    let parameters = parameters(&a, &b);
    let scores = scores(&a, &b)?;
    println!("parameters that differ");
    print!("{}", if parameters.is_empty() { "  none\n".to_owned() } else { aligned(&args.a, &args.b, &parameters) });
    println!("\nscores that both have (B - A in brackets; lower is better, except recovery, top-1 and task means)");
    print!("{}", if scores.is_empty() { "  none\n".to_owned() } else { aligned(&args.a, &args.b, &scores) });
    Ok(())
}

/// The folders of a run, its own first. A named run takes what it has not made itself from its profile's run.
struct Folders(Vec<PathBuf>);

impl Folders {
    fn of(name: &str) -> Result<Self> {
        let own = Paths::find(name)?.run;
        let mut folders = vec![own.clone()];
        if let Some((profile, _)) = name.split_once('+') {
            folders.push(Paths::find(profile)?.run);
        }
        if finished(&own)?.is_empty() {
            bail!(
                "{} has no finished stage: name a profile that was run, or PROFILE+NAME of a named run",
                own.display()
            );
        }
        Ok(Self(folders))
    }

    fn stage(&self, stage: &str) -> Option<(PathBuf, Manifest)> {
        self.0.iter().map(|folder| folder.join(stage)).find_map(|dir| Some((dir.clone(), Manifest::read(&dir)?)))
    }

    fn stages(&self) -> Result<BTreeSet<String>> {
        Ok(self.0.iter().map(|folder| finished(folder)).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    fn rows<R: serde::de::DeserializeOwned>(&self, stage: &str, file: &str) -> Result<Vec<R>> {
        match self.stage(stage) {
            Some((dir, _)) if dir.join(file).is_file() => Ok(files::read_jsonl(&dir.join(file))?),
            _ => Ok(Vec::new()),
        }
    }
}

type Line = (String, String, String);

/// Every parameter and stage version that differs, and stages that only one run has.
fn parameters(a: &Folders, b: &Folders) -> Vec<Line> {
    let mut lines = Vec::new();
    let names: BTreeSet<String> = [a, b].iter().flat_map(|run| run.stages().unwrap_or_default()).collect();
    // The report measures nothing.
    for stage in names.iter().filter(|name| *name != "report") {
        let (left, right) = (a.stage(stage), b.stage(stage));
        let (Some((_, left)), Some((_, right))) = (&left, &right) else {
            let ran = |run: &Option<_>| if run.is_some() { "run" } else { "not run" }.to_owned();
            lines.push((stage.clone(), ran(&left), ran(&right)));
            continue;
        };
        if left.recipe.version != right.recipe.version {
            lines.push((format!("{stage} version"), left.recipe.version.to_string(), right.recipe.version.to_string()));
        }
        let keys: BTreeSet<&String> = left.recipe.parameters.keys().chain(right.recipe.parameters.keys()).collect();
        for key in keys {
            let of = |m: &Manifest| m.recipe.parameters.get(key).map_or_else(|| "-".to_owned(), Value::to_string);
            if of(left) != of(right) {
                lines.push((format!("{stage}.{key}"), of(left), of(right)));
            }
        }
    }
    lines
}

/// Held-out scores per scheme, mean reconstruction errors per kind, dictionary and level, and averages of the task suites.
fn scores(a: &Folders, b: &Folders) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    let summary = |run: &Folders| {
        Ok::<_, anyhow::Error>(aggregate::overall(&run.rows::<HeldoutRow>("evaluate", heldout::ROWS)?)?)
    };
    let (left, right) = (summary(a)?, summary(b)?);
    for one in &left {
        let Some(other) = right.iter().find(|o| o.scheme == one.scheme && o.dictionary == one.dictionary) else {
            continue;
        };
        let name = one.label();
        for (metric, decimals, x, y) in [
            ("recovery", 3, one.recovery.unwrap_or(f64::NAN), other.recovery.unwrap_or(f64::NAN)),
            ("perplexity", 2, one.ppl, other.ppl),
            ("KL (nats)", 4, one.kl, other.kl),
            ("top-1 (%)", 1, 100.0 * one.top1, 100.0 * other.top1),
            ("measured bits", 2, one.measured_bits, other.measured_bits),
        ] {
            lines.push(line(format!("{name} {metric}"), decimals, x, y));
        }
    }
    let (left, right): (Vec<ReconstructionRow>, Vec<ReconstructionRow>) =
        (a.rows("evaluate", RECONSTRUCTION)?, b.rows("evaluate", RECONSTRUCTION)?);
    let mut settings: Vec<_> = left.iter().map(|r| (r.kind, r.dictionary, r.level())).collect();
    settings.sort_unstable();
    settings.dedup();
    for (kind, dictionary, level) in settings {
        let mean = |rows: &[ReconstructionRow]| {
            let same = |r: &&ReconstructionRow| (r.kind, r.dictionary, r.level()) == (kind, dictionary, level);
            let errors: Vec<f64> = rows.iter().filter(same).map(|r| r.relative).collect();
            (!errors.is_empty()).then(|| errors.iter().sum::<f64>() / errors.len() as f64)
        };
        let (Some(x), Some(y)) = (mean(&left), mean(&right)) else { continue };
        let what = if kind == Kind::Key { "keys" } else { "values" };
        lines.push(line(format!("restored {what}, level {level}@{dictionary}"), 4, x, y));
    }
    for (stage, tasks) in [("suite", "suite"), ("longbench", "LongBench")] {
        let (left, right): (Vec<OverallRow>, Vec<OverallRow>) = (a.rows(stage, OVERALL)?, b.rows(stage, OVERALL)?);
        for one in &left {
            let Some(other) = right.iter().find(|other| other.scheme == one.scheme) else { continue };
            let name = |what: &str| format!("{} {tasks} {what}", one.scheme);
            lines.push(line(name("task mean"), 2, one.task_mean, other.task_mean));
            // Means over different tasks or records are hard to compare, so the counts are shown.
            if (one.tasks, one.n) != (other.tasks, other.n) {
                let counts = |o: &OverallRow| format!("{} of {} tasks", o.n, o.tasks);
                lines.push((name("records"), counts(one), counts(other)));
            }
        }
    }
    Ok(lines)
}

fn line(name: String, decimals: usize, x: f64, y: f64) -> Line {
    (name, format!("{x:.decimals$}"), format!("{y:.decimals$} ({:+.decimals$})", y - x))
}

fn aligned(a: &str, b: &str, lines: &[Line]) -> String {
    let width = |of: fn(&Line) -> &String, least: usize| {
        lines.iter().map(|line| of(line).chars().count()).max().unwrap_or(0).max(least)
    };
    let (first, second) = (width(|l| &l.0, 0), width(|l| &l.1, a.chars().count()));
    let mut text = format!("  {:first$}  {a:>second$}  {b}\n", "");
    for (name, x, y) in lines {
        text += &format!("  {name:first$}  {x:>second$}  {y}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn averages_of_both_suites_stand_side_by_side() {
        let home = tempfile::tempdir().unwrap();
        let row = |scheme: &str, n: usize, task_mean: f64| {
            serde_json::json!({
                "scheme": scheme, "tasks": 3, "n": n, "task_mean": task_mean, "category_mean": 0.0, "difference": null,
                "rank": null, "tied": false, "nominal_bits": 4.0, "measured_bits": 4.1, "tokens": 900.0, "encode_ms_per_1k": 1.0,
                "decode_ms_per_token": 1.0, "cut": 0, "best": false
            })
            .to_string()
        };
        let manifest =
            std::fs::read_to_string(Paths::find("smol").unwrap().root.join("data/results/smol/suite.manifest.json"))
                .unwrap();
        let run = |name: &str, stage: &str, rows: &[String]| {
            let run = home.path().join(name);
            let dir = run.join(stage);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join(OVERALL), rows.join("\n") + "\n").unwrap();
            std::fs::write(dir.join(crate::manifest::FILE), &manifest).unwrap();
            Folders(vec![run])
        };
        run("a", "suite", &[row("dense", 6, 20.0), row("csr-8", 6, 18.0)]);
        let a = run("a", "longbench", &[row("csr-8", 22, 30.0)]);
        run("b", "suite", &[row("csr-8", 9, 19.5), row("kivi-2", 9, 1.0)]);
        let b = run("b", "longbench", &[row("csr-8", 22, 28.0)]);
        let lines = scores(&a, &b).unwrap();
        let expected = [
            ("csr-8 suite task mean", "18.00", "19.50 (+1.50)"),
            ("csr-8 suite records", "6 of 3 tasks", "9 of 3 tasks"),
            ("csr-8 LongBench task mean", "30.00", "28.00 (-2.00)"),
        ];
        let found: Vec<(&str, &str, &str)> =
            lines.iter().map(|(name, x, y)| (name.as_str(), x.as_str(), y.as_str())).collect();
        assert_eq!(found, expected);
    }
}
