//! Computes from predictions the numbers that papers print.
//!
//! Source: `scorer` and `scorer_e` of LongBench's `eval.py`. The score of a sample is the maximum over its answers. The score of a
//! task is `round(100 * sum / n, 2)`.

use std::path::Path;

use kvcsr_records::Bucket;
use serde::{Deserialize, Serialize};

use crate::error::{EvalError, Result};
use crate::jsonl::{self, Line};
use crate::longbench::metrics::text::{first_line, numpy_round2, round2};
use crate::longbench::metrics::{CodeSim, Metric, MetricOptions};
use crate::longbench::tasks::Task;

/// One line of a prediction file, with the keys that LongBench's `pred.py` writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prediction {
    /// The generated text.
    pub pred: String,
    /// The correct answers.
    pub answers: Vec<String>,
    /// All class names of a classification task.
    #[serde(default)]
    pub all_classes: Option<Vec<String>>,
    /// Length of the sample in words or characters. LongBench-E groups samples by it.
    #[serde(default)]
    pub length: Option<u64>,
}

/// The score of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskScore {
    /// The task.
    pub task: String,
    /// Number of samples scored.
    pub n: usize,
    /// Mean over the samples, 0 to 100, with two decimals.
    pub score: f64,
}

/// Groups pairs of length and score into LongBench-E's buckets: below 4000, below 8000, and the rest.
pub fn bucket_scores(samples: impl Iterator<Item = (u64, f64)>) -> [Bucket; 3] {
    let mut buckets = [Vec::new(), Vec::new(), Vec::new()];
    for (length, score) in samples {
        let bucket = match length {
            ..4000 => 0,
            4000..8000 => 1,
            8000.. => 2,
        };
        buckets[bucket].push(score);
    }
    buckets.map(|scores| {
        let score = (!scores.is_empty()).then(|| numpy_round2(100.0 * numpy_mean(&scores)));
        Bucket { n: scores.len(), score }
    })
}

/// Scores a file of predictions for `task`, with one JSON object per line.
///
/// # Errors
/// [`EvalError::Read`]. [`EvalError::Line`] for a line that is malformed or cannot be scored. [`EvalError::Empty`] for a file
/// without predictions.
pub fn score_file(task: &Task, path: &Path, code_sim: CodeSim) -> Result<TaskScore> {
    let options = MetricOptions { code_sim, ..MetricOptions::default() };
    let samples = sample_scores(task, path, options)?;
    Ok(TaskScore { task: task.name.clone(), n: samples.len(), score: dataset_score(&samples) })
}

/// Scores a file of LongBench-E predictions for `task` by sample length, in the buckets of [`bucket_scores`].
///
/// # Errors
/// The same as [`score_file`], and [`EvalError::Line`] for a line without `length`.
pub fn score_file_by_length(task: &Task, path: &Path, code_sim: CodeSim) -> Result<[Bucket; 3]> {
    let options = MetricOptions { code_sim, ..MetricOptions::default() };
    let lines = read_predictions(path)?;
    let scores = score_lines(task, path, &lines, options)?;
    let length = |line: &Line<Prediction>| {
        let message = || "missing field `length`, which LongBench-E sorts by".to_owned();
        line.value.length.ok_or_else(|| jsonl::line_error(path, line.number, message()))
    };
    let lengths = lines.iter().map(length).collect::<Result<Vec<_>>>()?;
    Ok(bucket_scores(lengths.into_iter().zip(scores)))
}

/// The score of every sample in a file of predictions for `task`, in `[0, 1]`, in the order of the file.
///
/// # Errors
/// The same as [`score_file`].
pub fn sample_scores(task: &Task, path: &Path, options: MetricOptions) -> Result<Vec<f64>> {
    score_lines(task, path, &read_predictions(path)?, options)
}

/// Score of one sample in `[0, 1]`: the maximum over the answers, or 0 if there are none.
///
/// # Errors
/// [`EvalError::Unscorable`] for a classification task without classes. Also the errors of [`Metric::score`].
pub fn sample_score(
    task: &Task,
    prediction: &str,
    answers: &[String],
    classes: Option<&[String]>,
    options: MetricOptions,
) -> Result<f64> {
    if task.metric == Metric::Classification && classes.is_none() {
        return Err(EvalError::Unscorable { metric: task.metric.name(), reason: "all_classes is null".to_owned() });
    }
    let prediction = if task.first_line { first_line(prediction) } else { prediction };
    answers.iter().try_fold(0.0_f64, |best, answer| {
        let classes = classes.unwrap_or_default();
        let score = task.metric.score(prediction, answer, classes, options)?;
        Ok(best.max(score))
    })
}

/// The score of a task from its samples: `round(100 * sum / n, 2)` with Python's `round`. NaN without samples.
#[must_use]
pub fn dataset_score(samples: &[f64]) -> f64 {
    let total = samples.iter().fold(0.0, |total, score| total + score);
    round2(100.0 * total / samples.len() as f64)
}

fn read_predictions(path: &Path) -> Result<Vec<Line<Prediction>>> {
    let lines = jsonl::read(path)?;
    if lines.is_empty() {
        return Err(EvalError::Empty { path: path.to_owned() });
    }
    Ok(lines)
}

fn score_lines(task: &Task, path: &Path, lines: &[Line<Prediction>], options: MetricOptions) -> Result<Vec<f64>> {
    // eval.py keeps the classes of the last line and uses them for every sample.
    let classes = lines.last().and_then(|line| line.value.all_classes.as_deref());
    lines
        .iter()
        .map(|line| {
            let Prediction { pred, answers, .. } = &line.value;
            sample_score(task, pred, answers, classes, options)
                .map_err(|error| jsonl::line_error(path, line.number, error.to_string()))
        })
        .collect()
}

/// `numpy.mean`: the pairwise sum divided by `n`. NaN if there are no values.
fn numpy_mean(values: &[f64]) -> f64 {
    pairwise_sum(values) / values.len() as f64
}

/// The summation order of numpy for a contiguous array of `f64`: eight interleaved sums for up to 128 values, halves for more.
fn pairwise_sum(values: &[f64]) -> f64 {
    if values.len() > 128 {
        let half = values.len() / 2 / 8 * 8;
        return pairwise_sum(&values[..half]) + pairwise_sum(&values[half..]);
    }
    let eights = values.chunks_exact(8);
    let rest = eights.remainder();
    let s = eights
        .map(|eight| std::array::from_fn(|k| eight[k]))
        .reduce(|sums: [f64; 8], eight| std::array::from_fn(|k| sums[k] + eight[k]))
        .unwrap_or_default();
    let sum = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
    rest.iter().fold(sum, |sum, value| sum + value)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::longbench::tasks::TaskTable;

    fn with_file<T>(task: &str, lines: &[serde_json::Value], check: impl FnOnce(&Task, &Path) -> T) -> T {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(format!("{task}.jsonl"));
        let text: Vec<String> = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&path, text.concat()).unwrap();
        check(TaskTable::embedded().get(task).unwrap(), &path)
    }

    fn line(pred: &str, answers: &[&str], length: u64) -> serde_json::Value {
        json!({"pred": pred, "answers": answers, "all_classes": null, "length": length})
    }

    #[test]
    fn the_best_answer_counts() {
        let lines = [line("Rome", &["Venice", "Rome"], 1), line("Rome", &["Venice"], 1), line("Rome", &[], 1)];
        let score = with_file("qasper", &lines, |task, path| score_file(task, path, CodeSim::Difflib).unwrap());
        assert_eq!((score.task.as_str(), score.n, score.score), ("qasper", 3, 33.33));
    }

    #[test]
    fn only_four_tasks_read_the_first_line() {
        for task in TaskTable::embedded().tasks() {
            if task.metric == Metric::QaF1 {
                let answers = ["Rome".to_owned()];
                let options = MetricOptions::default();
                let score = sample_score(task, "\nRome\nQuestion", &answers, None, options);
                assert_eq!(score.unwrap() == 1.0, task.name == "triviaqa", "{}", task.name);
            }
        }
    }

    #[test]
    fn classes_come_from_the_last_line() {
        let with_classes = |classes: &[&str]| json!({"pred": "Food or Date", "answers": ["Food"], "all_classes": classes, "length": 1});
        let lines = [with_classes(&["Food", "Date"]), with_classes(&["Food"])];
        let score = with_file("trec", &lines, |task, path| score_file(task, path, CodeSim::Difflib).unwrap().score);
        assert_eq!(score, 100.0);
    }

    #[test]
    fn what_cannot_be_scored_names_file_and_line() {
        let no_paragraph = [line("1", &["Paragraph 1"], 1), line("1", &["1"], 1)];
        let mistyped = [line("1", &["1"], 1), json!({"pred": 1, "answers": []})];
        for (task, lines) in [("passage_retrieval_en", no_paragraph), ("qasper", mistyped)] {
            let error =
                with_file(task, &lines, |task, path| score_file(task, path, CodeSim::Difflib).unwrap_err().to_string());
            assert!(error.contains(&format!("{task}.jsonl:2: ")), "{error}");
        }
        let no_classes = with_file("trec", &[line("x", &["x"], 1)], |task, path| {
            score_file(task, path, CodeSim::Difflib).unwrap_err().to_string()
        });
        assert!(no_classes.contains("all_classes"), "{no_classes}");
    }

    #[test]
    fn a_file_without_predictions_is_an_error() {
        let error = with_file("lcc", &[], |task, path| score_file(task, path, CodeSim::Difflib).unwrap_err());
        assert!(matches!(error, EvalError::Empty { .. }));
    }

    #[test]
    fn lengths_fall_into_half_open_buckets() {
        let lines = [line("Rome", &["Rome"], 3999), line("x", &["Rome"], 4000), line("Rome", &["Rome"], 7999)];
        let scores =
            with_file("qasper", &lines, |task, path| score_file_by_length(task, path, CodeSim::Difflib).unwrap());
        let bucket = |n, score| Bucket { n, score };
        assert_eq!(scores, [bucket(1, Some(100.0)), bucket(2, Some(50.0)), bucket(0, None)]);

        let lines = [json!({"pred": "", "answers": [], "all_classes": null})];
        let error = with_file("qasper", &lines, |task, path| {
            score_file_by_length(task, path, CodeSim::Difflib).unwrap_err().to_string()
        });
        assert!(error.contains("qasper.jsonl:1: missing field `length`"), "{error}");
    }

    /// Expected values: `numpy.mean` of the same list, numpy 2.4.
    #[test]
    fn means_by_length_sum_as_numpy_does() {
        for (n, step, expected) in [
            (20, 5, 0.489_690_721_649_484_46),
            (100, 2, 0.510_412_371_134_020_6),
            (137, 1, 0.427_421_175_408_232_4),
            (300, 2, 0.510_618_556_701_031),
        ] {
            let values: Vec<f64> = (0..n).map(|i| f64::from(i * step % 101) / 97.0).collect();
            assert_eq!(numpy_mean(&values), expected, "{n}");
            let in_order = values.iter().fold(0.0, |sum, value| sum + value) / f64::from(n);
            assert_ne!(in_order, expected, "{n}: the case does not tell the orders apart");
        }
    }
}
