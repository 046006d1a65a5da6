//! Computes from predictions what tables show: scores per task and scheme, overall averages, and differences to the uncompressed
//! run.

use std::collections::{BTreeMap, HashMap};

use kvcsr_records::{LengthRow, OverallRow, TaskRow};

use crate::error::Result;
use crate::longbench::average::averages;
use crate::longbench::predictions::PredictionRow;
use crate::longbench::score::{TaskScore, bucket_scores, dataset_score};
use crate::longbench::tasks::TaskTable;
use crate::stats::{Bootstrap, Column, Interval, RANKED_FROM};

/// The scheme with which all others are compared.
pub const REFERENCE: &str = "dense";

/// Bits per channel of a cache in f16. A scheme compresses if it measures fewer bits.
const UNCOMPRESSED_BITS: f64 = 16.0;

/// LongBench-E's scores of every task and scheme in `rows`, in the given orders.
#[must_use]
pub fn by_length(rows: &[PredictionRow], tasks: &[&str], schemes: &[String]) -> Vec<LengthRow> {
    let grouped = group(rows);
    let mut results = Vec::new();
    for &task in tasks {
        for scheme in schemes {
            if let Some(own) = grouped.get(&(task, scheme.clone())) {
                let buckets = bucket_scores(own.iter().map(|row| (row.length, row.score)));
                results.push(LengthRow { task: task.to_owned(), scheme: scheme.clone(), buckets });
            }
        }
    }
    results
}

/// Scores of every task and scheme in `rows`. Tasks are in the order of `tasks`, schemes in that of `schemes`.
///
/// [`TaskRow::best`] marks the compressing schemes for which no other compressing scheme is better by a paired interval above
/// zero. This needs at least [`RANKED_FROM`] records of the task that they answered. A scheme compresses if it measures fewer
/// than 16 bits per channel.
#[must_use]
pub fn by_task(
    table: &TaskTable,
    rows: &[PredictionRow],
    tasks: &[&str],
    schemes: &[String],
    bootstrap: Bootstrap,
) -> Vec<TaskRow> {
    let grouped = group(rows);
    let mut results = Vec::new();
    for &task in tasks {
        let from = results.len();
        for scheme in schemes {
            let Some(own) = grouped.get(&(task, scheme.clone())) else { continue };
            let scores: Vec<f64> = own.iter().map(|row| row.score).collect();
            let mean = |of: fn(&PredictionRow) -> f64| own.iter().map(|row| of(row)).sum::<f64>() / own.len() as f64;
            // The first token comes from the logits of the prefill.
            let decoded = mean(|row| row.generated.saturating_sub(1) as f64);
            // If a few records have the same difference, the interval has no width. That does not make it certain.
            let shows_spread = |of: &Interval| own.len() >= RANKED_FROM || of.low < of.high;
            let interval = differences(&grouped, task, scheme, REFERENCE).and_then(|of| bootstrap.interval(&[of]));
            results.push(TaskRow {
                task: task.to_owned(),
                scheme: scheme.clone(),
                n: own.len(),
                samples: table.get(task).map_or(own.len(), |task| task.samples),
                score: dataset_score(&scores),
                difference: interval.map(|of| of.difference),
                low: interval.filter(shows_spread).map(|of| of.low),
                high: interval.filter(shows_spread).map(|of| of.high),
                nominal_bits: mean(|row| row.nominal_bits),
                measured_bits: mean(|row| row.measured_bits),
                tokens: mean(|row| row.tokens as f64),
                encode_ms: mean(|row| row.encode_ms),
                decode_ms_per_token: mean(|row| row.decode_ms) / decoded.max(1.0),
                best: false,
            });
        }
        let compressing = compressing(results[from..].iter().map(|row| (row.scheme.as_str(), row.measured_bits)));
        let best = best(&grouped, &[task], &compressing, bootstrap);
        for row in &mut results[from..] {
            row.best = best.contains(&row.scheme);
        }
    }
    results
}

/// Averages of every scheme over the tasks of `results`, which [`by_task`] computed from `rows`.
///
/// A scheme's rank is one plus the number of schemes that are better by an interval above zero. There is no rank if a task has
/// fewer than [`RANKED_FROM`] records.
///
/// # Errors
/// The same as [`averages`].
pub fn overall(
    table: &TaskTable,
    rows: &[PredictionRow],
    results: &[TaskRow],
    schemes: &[String],
    bootstrap: Bootstrap,
) -> Result<Vec<OverallRow>> {
    let grouped = group(rows);
    let mut overall = Vec::new();
    for scheme in schemes {
        let own: Vec<&TaskRow> = results.iter().filter(|result| result.scheme == *scheme).collect();
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
        let mean = |of: fn(&TaskRow) -> f64| own.iter().map(|r| of(r) * r.n as f64).sum::<f64>() / n as f64;
        let difference = if scheme == REFERENCE { None } else { against(REFERENCE) };
        let answers = own.iter().filter_map(|r| grouped.get(&(r.task.as_str(), scheme.clone()))).flatten();
        overall.push(OverallRow {
            scheme: scheme.clone(),
            tasks: own.len(),
            n,
            task_mean: averages.task_mean,
            category_mean: averages.category_mean,
            difference: difference.map(|of| of.difference),
            low: difference.map(|of| of.low),
            high: difference.map(|of| of.high),
            rank: intervals.map(|all| 1 + all.iter().filter(|interval| interval.high < 0.0).count()),
            tied: false,
            nominal_bits: mean(|r| r.nominal_bits),
            measured_bits: mean(|r| r.measured_bits),
            tokens: mean(|r| r.tokens),
            encode_ms_per_1k: 1e3 * mean(|r| r.encode_ms) / mean(|r| r.tokens),
            decode_ms_per_token: mean(|r| r.decode_ms_per_token),
            cut: answers.filter(|row| row.cut).count(),
            best: false,
        });
    }
    let mut tasks: Vec<&str> = results.iter().map(|result| result.task.as_str()).collect();
    tasks.dedup();
    let compressing = compressing(overall.iter().map(|row| (row.scheme.as_str(), row.measured_bits)));
    let best = best(&grouped, &tasks, &compressing, bootstrap);
    let ranks: Vec<Option<usize>> = overall.iter().map(|row| row.rank).collect();
    for row in &mut overall {
        row.best = best.contains(&row.scheme);
        row.tied = row.rank.is_some() && ranks.iter().filter(|rank| **rank == row.rank).count() > 1;
    }
    Ok(overall)
}

/// The schemes of `measured` that compress. `measured` has pairs of label and measured bits per channel.
fn compressing<'s>(measured: impl Iterator<Item = (&'s str, f64)>) -> Vec<String> {
    measured.filter(|(_, bits)| *bits < UNCOMPRESSED_BITS).map(|(scheme, _)| scheme.to_owned()).collect()
}

/// The schemes of `schemes` for which no other of them is significantly better over `tasks`, by the records that all of them
/// answered. Empty if there are fewer than two schemes to compare, or fewer than [`RANKED_FROM`] such records of a task.
fn best(grouped: &Grouped<'_>, tasks: &[&str], schemes: &[String], bootstrap: Bootstrap) -> Vec<String> {
    let [first, rest @ ..] = schemes else { return Vec::new() };
    if rest.is_empty() {
        return Vec::new();
    }
    let scores = |task: &str, scheme: &String| -> HashMap<&str, f64> {
        let rows = grouped.iter().find(|((t, s), _)| *t == task && s == scheme).map(|(_, rows)| rows);
        rows.into_iter().flatten().map(|row| (row.id.as_str(), row.score)).collect()
    };
    let mut columns: Vec<Column> =
        schemes.iter().map(|scheme| Column { scheme: scheme.clone(), strata: Vec::new() }).collect();
    for &task in tasks {
        let all: Vec<HashMap<&str, f64>> = schemes.iter().map(|scheme| scores(task, scheme)).collect();
        let Some(rows) = grouped.get(&(task, first.clone())) else { return Vec::new() };
        let common: Vec<&str> =
            rows.iter().map(|row| row.id.as_str()).filter(|id| all.iter().all(|own| own.contains_key(id))).collect();
        if common.len() < RANKED_FROM {
            return Vec::new();
        }
        // In a column smaller values are better.
        for (column, own) in columns.iter_mut().zip(&all) {
            column.strata.push(common.iter().map(|id| -own[id]).collect());
        }
    }
    bootstrap.best(&columns, 0.0).into_iter().filter(|found| found.best).map(|found| found.scheme).collect()
}

type Grouped<'r> = BTreeMap<(&'r str, String), Vec<&'r PredictionRow>>;

fn group(rows: &[PredictionRow]) -> Grouped<'_> {
    let mut grouped = Grouped::new();
    for row in rows {
        grouped.entry((row.task.as_str(), row.label())).or_default().push(row);
    }
    grouped
}

/// The points that `scheme` gains over `reference` on each record of `task` that both answered. `None` for the reference itself,
/// and if there are no common records.
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
        let places: Vec<(usize, bool)> = overall.iter().map(|o| (o.rank.unwrap(), o.tied)).collect();
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
        let places = |rows: &[PredictionRow]| -> Vec<(Option<usize>, bool)> {
            let table = TaskTable::embedded();
            let results = by_task(table, rows, &["qasper"], &schemes, BOOTSTRAP);
            overall(table, rows, &results, &schemes, BOOTSTRAP).unwrap().iter().map(|o| (o.rank, o.tied)).collect()
        };
        assert_eq!(places(&rows(RANKED_FROM)), [(Some(2), false), (Some(1), false)]);
        assert_eq!(places(&rows(RANKED_FROM - 1)), [(None, false), (None, false)]);
    }

    /// The marks of dense, csr-16, csr-8 and csr-4, on one task and overall, for `count` records.
    fn marks(count: usize, measured: [f64; 4], scores: impl Fn(usize) -> [f64; 4]) -> (Vec<bool>, Vec<bool>) {
        const SCHEMES: [&str; 4] = ["dense", "csr-16", "csr-8", "csr-4"];
        let rows: Vec<PredictionRow> = (0..count)
            .flat_map(|i| {
                let of = |at: usize| PredictionRow {
                    measured_bits: measured[at],
                    ..row("qasper", &i.to_string(), SCHEMES[at], scores(i)[at])
                };
                [of(0), of(1), of(2), of(3)]
            })
            .collect();
        let (table, schemes) = (TaskTable::embedded(), SCHEMES.map(str::to_owned));
        let results = by_task(table, &rows, &["qasper"], &schemes, BOOTSTRAP);
        let overall = overall(table, &rows, &results, &schemes, BOOTSTRAP).unwrap();
        (results.iter().map(|row| row.best).collect(), overall.iter().map(|row| row.best).collect())
    }

    #[test]
    fn best_are_the_compressing_schemes_that_no_other_beats_beyond_doubt() {
        let bits = [32.0, 4.0, 2.0, 1.0];
        // csr-16 and csr-8 win equally often. csr-4 loses a tenth on every record. dense is above all.
        let scores = |i: usize| {
            let even = (i % 2) as f64 / 2.0;
            [1.0, even, 0.5 - even, even - 0.1]
        };
        let both = |marks: [bool; 4]| (marks.to_vec(), marks.to_vec());
        assert_eq!(marks(40, bits, scores), both([false, true, true, false]));
        assert_eq!(marks(RANKED_FROM - 1, bits, scores), both([false; 4]), "too few records");
        // A scheme that measures 16 bits or more does not compete. A single scheme is not marked as the best.
        assert_eq!(
            marks(40, [32.0, 16.0, 2.0, 1.0], |i| [1.0, 1.0, scores(i)[1], scores(i)[3]]),
            both([false, false, true, false])
        );
        assert_eq!(marks(40, [32.0, 16.0, 16.0, 1.0], scores), both([false; 4]));
    }

    #[test]
    fn lengths_fall_into_buckets_per_scheme() {
        let at = |length, score| PredictionRow { length, ..row("qasper", &length.to_string(), "dense", score) };
        let rows = [at(10, 1.0), at(3999, 0.0), at(4000, 0.25)];
        let found = by_length(&rows, &["qasper", "trec"], &["dense".to_owned()]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].buckets.map(|bucket| bucket.n), [2, 1, 0]);
        assert_eq!(found[0].buckets.map(|bucket| bucket.score), [Some(50.0), Some(25.0), None]);
        let text = serde_json::to_string(&found[0]).unwrap();
        assert_eq!(serde_json::from_str::<LengthRow>(&text).unwrap(), found[0], "{text}");
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
        // Records are paired by id, not by position: each record of qasper loses a quarter.
        assert_eq!([results[3].difference, results[3].low, results[3].high], [Some(-25.0), None, None]);
        // Record c of trec has no uncompressed answer.
        assert_eq!(results[1].difference, Some(100.0));
        assert_eq!((results[1].samples, results[1].decode_ms_per_token), (200, 20.0 / 3.0));

        let overall = overall(table, &rows, &results, &schemes, BOOTSTRAP).unwrap();
        assert_eq!(overall.len(), 2);
        assert_eq!((overall[0].task_mean, overall[0].difference), (37.5, None));
        assert_eq!((overall[1].tasks, overall[1].n, overall[1].task_mean), (2, 5, 58.335));
        assert_eq!(overall[1].difference, Some(37.5));
        assert!(overall.iter().all(|o| o.rank.is_none()), "two and three records a task are too few to rank");
        assert_eq!((overall[1].tokens, overall[1].decode_ms_per_token), (30.0, 20.0 / 3.0));
        assert!((overall[1].encode_ms_per_1k - 1e4 / 30.0).abs() < 1e-9);

        let one = by_task(table, &rows, &["lcc"], &schemes, BOOTSTRAP);
        assert_eq!((one[1].score, one[1].difference), (40.0, None), "one record shows no spread");
    }
}
