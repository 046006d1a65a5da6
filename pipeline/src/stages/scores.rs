//! What the stages share that run schemes: what these are built from, the loop over tasks with its progress, and the tables.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kvcsr_cache::schemes::lexico;
use kvcsr_cache::{CacheError, Geometry, Scheme, SchemeContext, registry};
use kvcsr_eval::longbench::evaluate::{Progress, Summary, Work, answer_all};
use kvcsr_eval::longbench::predictions::Predictions;
use kvcsr_eval::longbench::results::{LengthResult, OverallResult, TaskResult};
use kvcsr_eval::longbench::runner::Runner;
use kvcsr_eval::longbench::score::BucketScore;
use kvcsr_report::files;
use kvcsr_report::records::{Bucket, LengthRow, OverallRow, TaskRow};
use serde_json::{Map, Value};

use crate::manifest::Manifest;
use crate::stage::Run;
use crate::stages::provenance::Owner;
use crate::stages::{calibrate_peers, dictionaries};
use crate::ui;

/// The stage that makes what the calibrated peers are built from.
pub const PEERS: &str = "calibrate-peers";
/// The stages that make what schemes are built from.
const ARTEFACTS: [&str; 5] = ["train", "train-best", "train-rope", "allocate", PEERS];

/// Folder of the answers.
pub const PREDICTIONS: &str = "predictions";
/// File of the scores per task and scheme.
pub const RESULTS: &str = "results.jsonl";
/// File of the averages per scheme.
pub const OVERALL: &str = "overall.jsonl";
/// The scores per task and scheme again, for spreadsheets.
pub const TABLE: &str = "results.csv";

/// The stages that make what schemes called `names` are built from, in the order of [`ARTEFACTS`].
pub fn needed(names: &[String]) -> Result<Vec<&'static str>> {
    let bare = SchemeContext::new(Geometry { layers: 32, kv_heads: 8, head_dim: 128 });
    let mut needed = HashSet::new();
    for name in names {
        match registry::build(name, &bare) {
            Err(CacheError::MissingDictionaries { dictionaries, .. }) if dictionaries == lexico::DICTIONARIES => {
                needed.insert(PEERS);
            }
            Err(CacheError::MissingCodebooks { .. }) => {
                needed.insert(PEERS);
            }
            Err(CacheError::MissingDictionaries { .. }) => {
                needed.insert("train");
                needed.extend(dictionaries::optional(name));
            }
            Err(error @ CacheError::UnknownScheme { .. }) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(ARTEFACTS.into_iter().filter(|stage| needed.contains(stage)).collect())
}

/// Where a stage's artefacts are taken from. An empty `profile` is the run's own.
fn folder(run: &Run, profile: &str, stage: &str) -> PathBuf {
    match profile.is_empty() || profile == run.profile {
        true => run.stage_dir(stage),
        false => run.paths.run.with_file_name(profile).join(stage),
    }
}

/// What a stage made that artefacts are taken from, and its record. An empty `profile` is the run's own.
fn artefacts(run: &Run, profile: &str, stage: &str) -> Result<(PathBuf, Manifest)> {
    let folder = folder(run, profile, stage);
    if profile.is_empty() || profile == run.profile {
        return Ok((folder, run.finished(stage)?));
    }
    let record = Manifest::read(&folder).with_context(|| {
        format!("stage `{stage}` has not been run for profile `{profile}`: run `just {stage} profile={profile}`")
    })?;
    Ok((folder, record))
}

/// Adds to the inputs of a stage what schemes called `names` are built from: what `profile` made.
///
/// # Errors
/// If a stage that makes it has not run.
pub fn add_inputs(run: &Run, names: &[String], profile: &str, inputs: &mut Map<String, Value>) -> Result<()> {
    for stage in needed(names)? {
        inputs.insert(stage.to_owned(), artefacts(run, profile, stage)?.1.digest.into());
    }
    Ok(())
}

/// The schemes called `names`, from the dictionaries and codebooks of `profile` where they need any.
pub fn schemes(run: &Run, names: &[String], profile: &str, geometry: Geometry) -> Result<Vec<Box<dyn Scheme>>> {
    let mut context = SchemeContext::new(geometry);
    let needed = needed(names)?;
    if needed.contains(&"train") {
        artefacts(run, profile, "train")?;
        let stage_dir = |stage: &str| folder(run, profile, stage);
        let sets = dictionaries::load(stage_dir, &Owner::of(run, geometry)?)?;
        context = dictionaries::add_to(context, stage_dir, sets)?;
    }
    if needed.contains(&PEERS) {
        context = calibrate_peers::add_to(&artefacts(run, profile, PEERS)?.0, context)?;
    }
    names.iter().map(|name| Ok(registry::build(name, &context)?)).collect()
}

/// Lets every scheme answer every record that `dir` lacks, under a bar.
pub fn answer(
    stage: &'static str,
    runner: &Runner<'_>,
    work: &[Work<'_>],
    schemes: &[Box<dyn Scheme>],
    dir: &Path,
) -> Result<Predictions> {
    let mut predictions = Predictions::open(&dir.join(PREDICTIONS))?;
    let total: usize = work.iter().map(|work| work.records.len() * schemes.len()).sum();
    let bar = ui::bar(stage, total as u64, "records x schemes");
    answer_all(runner, work, schemes, &mut predictions, &mut |progress| match progress {
        Progress::Found(answers) => bar.inc(answers as u64),
        Progress::Answered(row) => {
            bar.set_message(format!("{} {} {}", row.task, row.id, row.label()));
            bar.inc(1);
        }
    })?;
    bar.finish();
    Ok(predictions)
}

/// Writes the scores and averages into `dir`.
pub fn write(dir: &Path, summary: &Summary) -> Result<()> {
    files::write_jsonl(&dir.join(RESULTS), &summary.tasks)?;
    files::write_jsonl(&dir.join(OVERALL), &summary.overall)?;
    kvcsr_report::csv::write(&dir.join(TABLE), &task_rows(&summary.tasks))?;
    Ok(())
}

/// The scores and averages that [`write()`] wrote.
pub fn read(dir: &Path) -> Result<Summary> {
    Ok(Summary { tasks: files::read_jsonl(&dir.join(RESULTS))?, overall: files::read_jsonl(&dir.join(OVERALL))? })
}

/// One line per scheme, for the terminal.
pub fn lines(dir: &Path) -> Result<Vec<String>> {
    let line = |o: OverallResult| {
        let less = o
            .difference
            .map_or_else(String::new, |d| format!(", less dense {:+.2} [{:+.2}, {:+.2}]", d.difference, d.low, d.high));
        format!(
            "{:<16} {:.2} over {} tasks, n = {}{less}, {:.2} measured bits at {:.0} tokens",
            o.scheme, o.task_mean, o.tasks, o.n, o.measured_bits, o.tokens
        )
    };
    Ok(read(dir)?.overall.into_iter().map(line).collect())
}

/// Scores as rows of tables.
pub fn task_rows(results: &[TaskResult]) -> Vec<TaskRow> {
    let row = |result: &TaskResult| TaskRow {
        task: result.task.clone(),
        scheme: result.scheme.clone(),
        n: result.n,
        samples: result.samples,
        score: result.score,
        difference: result.difference.map(|d| d.difference),
        low: result.difference.map(|d| d.low),
        high: result.difference.map(|d| d.high),
        nominal_bits: result.nominal_bits,
        measured_bits: result.measured_bits,
        tokens: result.tokens,
        encode_ms: result.encode_ms,
        decode_ms_per_token: result.decode_ms_per_token,
    };
    results.iter().map(row).collect()
}

/// Averages as rows of tables.
pub fn overall_rows(results: &[OverallResult]) -> Vec<OverallRow> {
    let row = |result: &OverallResult| OverallRow {
        scheme: result.scheme.clone(),
        tasks: result.tasks,
        n: result.n,
        task_mean: result.task_mean,
        category_mean: result.category_mean,
        difference: result.difference.map(|d| d.difference),
        low: result.difference.map(|d| d.low),
        high: result.difference.map(|d| d.high),
        rank: result.rank.map(|rank| rank.place),
        tied: result.rank.is_some_and(|rank| rank.tied),
        nominal_bits: result.nominal_bits,
        measured_bits: result.measured_bits,
        tokens: result.tokens,
        encode_ms_per_1k: result.encode_ms_per_1k,
        decode_ms_per_token: result.decode_ms_per_token,
    };
    results.iter().map(row).collect()
}

/// LongBench-E's scores as rows of its table.
pub fn length_rows(results: &[LengthResult]) -> Vec<LengthRow> {
    let bucket = |bucket: BucketScore| Bucket { n: bucket.n, score: (bucket.n > 0).then_some(bucket.score) };
    let row = |result: &LengthResult| LengthRow {
        task: result.task.clone(),
        scheme: result.scheme.clone(),
        buckets: result.buckets.map(bucket),
    };
    results.iter().map(row).collect()
}

/// The distinct tasks of `results`, in their order.
pub fn tasks(results: &[TaskResult]) -> Vec<String> {
    let mut tasks: Vec<String> = Vec::new();
    for result in results {
        if !tasks.contains(&result.task) {
            tasks.push(result.task.clone());
        }
    }
    tasks
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_the_stages_are_asked_for_that_some_scheme_is_built_from() {
        let needs = |names: &[&str]| needed(&names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>());
        assert!(needs(&["dense", "dense-f16", "kivi-2", "svdq-2"]).unwrap().is_empty());
        assert_eq!(needs(&["csr-8@kmeans", "csr-8+window"]).unwrap(), ["train"]);
        assert_eq!(needs(&["csr-8+rope"]).unwrap(), ["train", "train-rope"]);
        assert_eq!(needs(&["dense", "csr-8+refit@best"]).unwrap(), ["train", "train-best"]);
        assert_eq!(needs(&["csr-8+budget"]).unwrap(), ["train", "allocate"]);
        for calibrated in ["lexico-8", "cq-8c8b", "cq-8c8b+window", "commvq-k-1", "svdq-2(basis=calibrated)"] {
            assert_eq!(needs(&["dense", calibrated]).unwrap(), [PEERS], "{calibrated}");
        }
        assert!(needs(&["densest"]).is_err());
    }
}
