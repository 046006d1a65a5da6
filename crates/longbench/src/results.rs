//! From predictions to what a table shows: scores per task and scheme, overall averages, differences to the uncompressed run.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::average::averages;
use crate::error::Result;
use crate::predictions::PredictionRow;
use crate::score::{TaskScore, dataset_score};
use crate::stats::{Bootstrap, Interval};
use crate::tasks::TaskTable;

/// The scheme that all others are compared with.
pub const REFERENCE: &str = "dense";

/// One scheme on one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// The task.
    pub task: String,
    /// The scheme's label.
    pub scheme: String,
    /// Records scored.
    pub n: usize,
    /// Records of the full task in LongBench. Where `n` is smaller, the score is not comparable with published ones.
    pub samples: usize,
    /// LongBench's score, 0 to 100, two decimals.
    pub score: f64,
    /// Difference to the uncompressed run over the same records, in points; none for that run itself, without it, and for
    /// fewer than two records in common.
    pub difference: Option<Interval>,
    /// Mean over the records of the measured bits per channel.
    pub measured_bits: f64,
    /// Mean time to compress a prompt.
    pub encode_ms: f64,
    /// Mean time per generated token.
    pub decode_ms_per_token: f64,
}

/// One scheme over all tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OverallResult {
    /// The scheme's label.
    pub scheme: String,
    /// Tasks scored.
    pub tasks: usize,
    /// Records scored, all tasks.
    pub n: usize,
    /// Mean over the task scores, as papers report it.
    pub task_mean: f64,
    /// Mean over the category means, as LongBench reports it.
    pub category_mean: f64,
    /// Difference of the task means to the uncompressed run, in points, over the tasks and records that both answered.
    pub difference: Option<Interval>,
}

/// Scores of every task and scheme in `rows`, tasks in the order of `tasks`, schemes in that of `schemes`.
#[must_use]
pub fn by_task(
    table: &TaskTable,
    rows: &[PredictionRow],
    tasks: &[&str],
    schemes: &[String],
    bootstrap: Bootstrap,
) -> Vec<TaskResult> {
    let grouped = group(rows);
    let mut results = Vec::new();
    for &task in tasks {
        for scheme in schemes {
            let Some(own) = grouped.get(&(task, scheme.clone())) else { continue };
            let scores: Vec<f64> = own.iter().map(|row| row.score).collect();
            let mean = |of: fn(&PredictionRow) -> f64| own.iter().map(|row| of(row)).sum::<f64>() / own.len() as f64;
            let generated = mean(|row| row.generated as f64);
            results.push(TaskResult {
                task: task.to_owned(),
                scheme: scheme.clone(),
                n: own.len(),
                samples: table.get(task).map_or(own.len(), |task| task.samples),
                score: dataset_score(&scores),
                difference: differences(&grouped, task, scheme).and_then(|of| bootstrap.interval(&[of])),
                measured_bits: mean(|row| row.measured_bits),
                encode_ms: mean(|row| row.encode_ms),
                decode_ms_per_token: mean(|row| row.decode_ms) / generated.max(1.0),
            });
        }
    }
    results
}

/// Averages of every scheme over the tasks of `results`, which [`by_task`] made from `rows`.
///
/// # Errors
/// As [`averages`].
pub fn overall(
    table: &TaskTable,
    rows: &[PredictionRow],
    results: &[TaskResult],
    schemes: &[String],
    bootstrap: Bootstrap,
) -> Result<Vec<OverallResult>> {
    let grouped = group(rows);
    let mut overall = Vec::new();
    for scheme in schemes {
        let own: Vec<&TaskResult> = results.iter().filter(|result| result.scheme == *scheme).collect();
        if own.is_empty() {
            continue;
        }
        let scores: Vec<TaskScore> =
            own.iter().map(|r| TaskScore { task: r.task.clone(), n: r.n, score: r.score }).collect();
        let averages = averages(table, &scores)?;
        let paired: Vec<Vec<f64>> = own.iter().filter_map(|r| differences(&grouped, &r.task, scheme)).collect();
        overall.push(OverallResult {
            scheme: scheme.clone(),
            tasks: own.len(),
            n: own.iter().map(|r| r.n).sum(),
            task_mean: averages.task_mean,
            category_mean: averages.category_mean,
            difference: bootstrap.interval(&paired),
        });
    }
    Ok(overall)
}

type Grouped<'r> = BTreeMap<(&'r str, String), Vec<&'r PredictionRow>>;

fn group(rows: &[PredictionRow]) -> Grouped<'_> {
    let mut grouped = Grouped::new();
    for row in rows {
        grouped.entry((row.task.as_str(), row.label())).or_default().push(row);
    }
    grouped
}

/// Points that `scheme` gains over the reference on each record of `task` that both answered; `None` for the reference itself
/// and where no record is common.
fn differences(grouped: &Grouped<'_>, task: &str, scheme: &str) -> Option<Vec<f64>> {
    if scheme == REFERENCE {
        return None;
    }
    let rows = |scheme: &str| grouped.iter().find(|((t, s), _)| *t == task && s == scheme).map(|(_, rows)| rows);
    let reference: HashMap<&str, f64> = rows(REFERENCE)?.iter().map(|row| (row.id.as_str(), row.score)).collect();
    let paired: Vec<f64> =
        rows(scheme)?.iter().filter_map(|row| Some(100.0 * (row.score - reference.get(row.id.as_str())?))).collect();
    (!paired.is_empty()).then_some(paired)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::predictions::tests::row;

    const BOOTSTRAP: Bootstrap = Bootstrap { resamples: 200, level: 0.95, seed: 1 };

    #[test]
    fn scores_differences_and_averages_agree() {
        let rows = [
            row("qasper", "a", "dense", 1.0),
            row("qasper", "b", "dense", 0.5),
            row("qasper", "b", "csr-8", 0.25),
            row("qasper", "a", "csr-8", 0.75),
            row("trec", "a", "dense", 0.0),
            row("trec", "b", "dense", 0.0),
            row("trec", "a", "csr-8", 1.0),
            row("trec", "b", "csr-8", 1.0),
            row("trec", "c", "csr-8", 0.0),
            row("lcc", "a", "dense", 0.3),
            row("lcc", "a", "csr-8", 0.4),
        ];
        let table = TaskTable::embedded();
        let schemes = ["dense".to_owned(), "csr-8".to_owned(), "csr-4".to_owned()];
        let results = by_task(table, &rows, &["trec", "qasper"], &schemes, BOOTSTRAP);
        let shown: Vec<(&str, &str, usize, f64)> =
            results.iter().map(|r| (r.task.as_str(), r.scheme.as_str(), r.n, r.score)).collect();
        assert_eq!(
            shown,
            [
                ("trec", "dense", 2, 0.0),
                ("trec", "csr-8", 3, 66.67),
                ("qasper", "dense", 2, 75.0),
                ("qasper", "csr-8", 2, 50.0)
            ]
        );
        assert_eq!(results[0].difference, None);
        // Records are paired by id, not by place: each of qasper loses a quarter.
        assert_eq!(results[3].difference, Some(Interval { difference: -25.0, low: -25.0, high: -25.0 }));
        // Record c of trec has no uncompressed answer.
        assert_eq!(results[1].difference.unwrap().difference, 100.0);
        assert_eq!((results[1].samples, results[1].decode_ms_per_token), (200, 5.0));

        let overall = overall(table, &rows, &results, &schemes, BOOTSTRAP).unwrap();
        assert_eq!(overall.len(), 2);
        assert_eq!((overall[0].task_mean, overall[0].difference), (37.5, None));
        assert_eq!((overall[1].tasks, overall[1].n, overall[1].task_mean), (2, 5, 58.335));
        assert_eq!(overall[1].difference.unwrap().difference, 37.5);

        let one = by_task(table, &rows, &["lcc"], &schemes, BOOTSTRAP);
        assert_eq!((one[1].score, one[1].difference), (40.0, None), "one record shows no spread");
    }
}
