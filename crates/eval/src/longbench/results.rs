//! From predictions to what a table shows: scores per task and scheme, overall averages, differences to the uncompressed run.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::longbench::average::averages;
use crate::longbench::predictions::PredictionRow;
use crate::longbench::score::{BucketScore, TaskScore, bucket_scores, dataset_score};
use crate::longbench::tasks::TaskTable;
use crate::stats::{Bootstrap, Interval, RANKED_FROM};

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
    /// Bits per channel as the scheme's paper counts them.
    pub nominal_bits: f64,
    /// Mean over the records of the measured bits per channel.
    pub measured_bits: f64,
    /// Mean tokens of a prompt, which the measured bits are over.
    pub tokens: f64,
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
    /// Place among the schemes, from 1; none where a task has fewer than [`RANKED_FROM`] records.
    pub rank: Option<Rank>,
    /// Bits per channel as the scheme's paper counts them.
    pub nominal_bits: f64,
    /// Mean over all records of the measured bits per channel.
    pub measured_bits: f64,
    /// Mean tokens of a prompt.
    pub tokens: f64,
    /// Mean time to compress 1000 tokens.
    pub encode_ms_per_1k: f64,
    /// Mean time per generated token.
    pub decode_ms_per_token: f64,
    /// Answers that ended because the model had no position left. Written where there are any.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cut: usize,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// A scheme's place: one more than the schemes that are better beyond doubt, which is that the interval of the difference
/// excludes zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rank {
    /// From 1.
    pub place: usize,
    /// Whether another scheme has the same place.
    pub tied: bool,
}

/// One scheme on one task of LongBench-E, by sample length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LengthResult {
    /// The task.
    pub task: String,
    /// The scheme's label.
    pub scheme: String,
    /// Buckets `0-4k`, `4-8k` and `8k+` of `length`; the score of an empty one is null.
    pub buckets: [BucketScore; 3],
}

/// LongBench-E's scores of every task and scheme in `rows`, in the given orders.
#[must_use]
pub fn by_length(rows: &[PredictionRow], tasks: &[&str], schemes: &[String]) -> Vec<LengthResult> {
    let grouped = group(rows);
    let mut results = Vec::new();
    for &task in tasks {
        for scheme in schemes {
            if let Some(own) = grouped.get(&(task, scheme.clone())) {
                let buckets = bucket_scores(own.iter().map(|row| (row.length, row.score)));
                results.push(LengthResult { task: task.to_owned(), scheme: scheme.clone(), buckets });
            }
        }
    }
    results
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
                difference: differences(&grouped, task, scheme, REFERENCE).and_then(|of| bootstrap.interval(&[of])),
                nominal_bits: mean(|row| row.nominal_bits),
                measured_bits: mean(|row| row.measured_bits),
                tokens: mean(|row| row.tokens as f64),
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
    let (mut overall, mut places) = (Vec::new(), Vec::new());
    for scheme in schemes {
        let own: Vec<&TaskResult> = results.iter().filter(|result| result.scheme == *scheme).collect();
        if own.is_empty() {
            continue;
        }
        let scores: Vec<TaskScore> =
            own.iter().map(|r| TaskScore { task: r.task.clone(), n: r.n, score: r.score }).collect();
        let averages = averages(table, &scores)?;
        let against = |reference: &str| -> Option<Interval> {
            let paired: Vec<Vec<f64>> =
                own.iter().filter_map(|r| differences(&grouped, &r.task, scheme, reference)).collect();
            bootstrap.interval(&paired)
        };
        let others: Vec<&String> =
            schemes.iter().filter(|&s| s != scheme && results.iter().any(|r| r.scheme == *s)).collect();
        let ranked = own.iter().all(|result| result.n >= RANKED_FROM);
        let intervals: Option<Vec<Interval>> =
            if ranked { others.iter().map(|other| against(other)).collect() } else { None };
        let n: usize = own.iter().map(|r| r.n).sum();
        let mean = |of: fn(&TaskResult) -> f64| own.iter().map(|r| of(r) * r.n as f64).sum::<f64>() / n as f64;
        places.push(intervals.map(|all| 1 + all.iter().filter(|interval| interval.high < 0.0).count()));
        overall.push(OverallResult {
            scheme: scheme.clone(),
            tasks: own.len(),
            n,
            task_mean: averages.task_mean,
            category_mean: averages.category_mean,
            difference: if scheme == REFERENCE { None } else { against(REFERENCE) },
            rank: None,
            nominal_bits: mean(|r| r.nominal_bits),
            measured_bits: mean(|r| r.measured_bits),
            tokens: mean(|r| r.tokens),
            encode_ms_per_1k: 1e3 * mean(|r| r.encode_ms) / mean(|r| r.tokens),
            decode_ms_per_token: mean(|r| r.decode_ms_per_token),
            cut: own
                .iter()
                .filter_map(|r| grouped.get(&(r.task.as_str(), scheme.clone())))
                .flatten()
                .filter(|row| row.cut)
                .count(),
        });
    }
    for (result, place) in overall.iter_mut().zip(&places) {
        let shared = places.iter().filter(|other| *other == place).count();
        result.rank = place.map(|place| Rank { place, tied: shared > 1 });
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

/// Points that `scheme` gains over `reference` on each record of `task` that both answered; `None` for the reference itself
/// and where no record is common.
fn differences(grouped: &Grouped<'_>, task: &str, scheme: &str, reference: &str) -> Option<Vec<f64>> {
    if scheme == reference {
        return None;
    }
    let rows = |scheme: &str| grouped.iter().find(|((t, s), _)| *t == task && s == scheme).map(|(_, rows)| rows);
    let reference: HashMap<&str, f64> = rows(reference)?.iter().map(|row| (row.id.as_str(), row.score)).collect();
    let paired: Vec<f64> =
        rows(scheme)?.iter().filter_map(|row| Some(100.0 * (row.score - reference.get(row.id.as_str())?))).collect();
    (!paired.is_empty()).then_some(paired)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::longbench::predictions::tests::row;

    const BOOTSTRAP: Bootstrap = Bootstrap { resamples: 200, level: 0.95, seed: 1 };

    #[test]
    fn what_cannot_be_told_apart_shares_a_place() {
        let rows: Vec<PredictionRow> = (0..RANKED_FROM)
            .flat_map(|i| {
                let even = (i % 2) as f64;
                [("dense", 1.0), ("csr-8", even), ("csr-4", 1.0 - even), ("csr-16", 1.0)]
                    .map(|(scheme, score)| row("qasper", &i.to_string(), scheme, score))
            })
            .collect();
        let table = TaskTable::embedded();
        let schemes = ["dense", "csr-8", "csr-4", "csr-16"].map(str::to_owned);
        let results = by_task(table, &rows, &["qasper"], &schemes, BOOTSTRAP);
        let overall = overall(table, &rows, &results, &schemes, BOOTSTRAP).unwrap();
        let places: Vec<(usize, bool)> = overall.iter().map(|o| o.rank.map(|r| (r.place, r.tied)).unwrap()).collect();
        assert_eq!(places, [(1, true), (3, true), (3, true), (1, true)]);
    }

    #[test]
    fn a_difference_beyond_doubt_ranks_and_one_record_less_ranks_nothing() {
        let rows = |count: usize| -> Vec<PredictionRow> {
            let of =
                |i: usize| [("dense", 0.5), ("csr-8", 0.75)].map(|(s, score)| row("qasper", &i.to_string(), s, score));
            (0..count).flat_map(of).collect()
        };
        let schemes = ["dense", "csr-8"].map(str::to_owned);
        let places = |rows: &[PredictionRow]| -> Vec<Option<Rank>> {
            let table = TaskTable::embedded();
            let results = by_task(table, rows, &["qasper"], &schemes, BOOTSTRAP);
            overall(table, rows, &results, &schemes, BOOTSTRAP).unwrap().iter().map(|o| o.rank).collect()
        };
        let of = |place| Some(Rank { place, tied: false });
        assert_eq!(places(&rows(RANKED_FROM)), [of(2), of(1)]);
        assert_eq!(places(&rows(RANKED_FROM - 1)), [None, None]);
    }

    #[test]
    fn lengths_fall_into_buckets_per_scheme() {
        let at = |length, score| PredictionRow { length, ..row("qasper", &length.to_string(), "dense", score) };
        let rows = [at(10, 1.0), at(3999, 0.0), at(4000, 0.25)];
        let found = by_length(&rows, &["qasper", "trec"], &["dense".to_owned()]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].buckets.map(|bucket| bucket.n), [2, 1, 0]);
        assert_eq!((found[0].buckets[0].score, found[0].buckets[1].score), (50.0, 25.0));
        let text = serde_json::to_string(&found[0]).unwrap();
        let read: LengthResult = serde_json::from_str(&text).unwrap();
        assert!(read.buckets[2].score.is_nan(), "{text}");
    }

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
        assert!(overall.iter().all(|o| o.rank.is_none()), "two and three records a task are too few to rank");
        assert_eq!((overall[1].tokens, overall[1].decode_ms_per_token), (30.0, 5.0));
        assert!((overall[1].encode_ms_per_1k - 1e4 / 30.0).abs() < 1e-9);

        let one = by_task(table, &rows, &["lcc"], &schemes, BOOTSTRAP);
        assert_eq!((one[1].score, one[1].difference), (40.0, None), "one record shows no spread");
    }
}
