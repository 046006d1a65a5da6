//! LongBench tables in the layout of the paper's Tables 1 and 2, and of a run of one's own.
//!
//! The paper's numbers are `data/longbench-published.json`, with their source. Cells that were not run stay empty, and a task
//! of which fewer records were run than LongBench has says so: its score does not stand next to a published one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

const PUBLISHED: &str = include_str!("../data/longbench-published.json");

/// What a paper printed.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// The paper.
    pub source: String,
    /// What does not add up in it.
    pub note: String,
    /// The tasks, in the order of the columns.
    pub tasks: Vec<String>,
    /// One entry per model.
    pub tables: Vec<PublishedTable>,
}

/// The rows of one model.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedTable {
    /// The number of the paper's table.
    pub table: usize,
    /// The model, as the paper calls it.
    pub model: String,
    /// One row per method, in the paper's order.
    pub rows: Vec<PublishedRow>,
}

/// One method on one model.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedRow {
    /// The paper's name of the method.
    pub method: String,
    /// Our scheme for it; the paper's uncompressed FP16 is compared with `dense`.
    pub scheme: String,
    /// Scores, one per task.
    pub scores: Vec<f64>,
    /// Their mean, as printed.
    pub average: f64,
}

/// The paper's tables.
pub fn published() -> &'static Published {
    static PARSED: LazyLock<Published> =
        LazyLock::new(|| serde_json::from_str(PUBLISHED).expect("the published numbers in this crate are valid"));
    &PARSED
}

/// A difference to the uncompressed run, in points, and its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The difference.
    pub points: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

/// One of our scores.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskCell {
    /// The task.
    pub task: String,
    /// The scheme's label.
    pub scheme: String,
    /// Records scored.
    pub n: usize,
    /// Records of the full task.
    pub samples: usize,
    /// The score, 0 to 100.
    pub score: f64,
    /// Difference to the uncompressed run.
    pub difference: Option<Difference>,
    /// Measured bits per channel, mean over the records.
    pub measured_bits: f64,
}

/// One of our averages over tasks, with what the scheme takes.
#[derive(Clone, Debug, PartialEq)]
pub struct AverageCell {
    /// The scheme's label.
    pub scheme: String,
    /// Place among the schemes and whether others share it; none where records are too few to tell.
    pub rank: Option<(usize, bool)>,
    /// Records scored, all tasks.
    pub n: usize,
    /// Bits per channel by the method's formula.
    pub nominal_bits: f64,
    /// Measured bits per channel, mean over the records.
    pub measured_bits: f64,
    /// Mean tokens of a prompt, which the measured bits are over.
    pub tokens: f64,
    /// Time to compress 1000 tokens.
    pub encode_ms_per_1k: f64,
    /// Time per generated token.
    pub decode_ms_per_token: f64,
    /// Mean over the tasks, as papers report it.
    pub task_mean: f64,
    /// Mean over the category means, as LongBench reports it.
    pub category_mean: f64,
    /// Difference of the task means to the uncompressed run.
    pub difference: Option<Difference>,
}

/// One model of the paper: per method a line of the paper's scores, ours, and ours less the paper's. Pass no cells where our run
/// is of another model.
pub fn paper_markdown(tasks: &[String], table: &PublishedTable, cells: &[TaskCell]) -> String {
    let mut text = head(&["method", ""], tasks, &["avg"]);
    let sizes = sizes(cells);
    if !cells.is_empty() {
        let shown = tasks.iter().map(|task| sizes.get(task.as_str()).map(|&size| of(size)).unwrap_or_default());
        line(&mut text, ["n".to_owned(), "ours".to_owned()].into_iter().chain(shown).chain([String::new()]));
    }
    for row in &table.rows {
        let ours: Vec<Option<f64>> = tasks.iter().map(|task| score(cells, &row.scheme, task)).collect();
        let all: Option<Vec<f64>> = ours.iter().copied().collect();
        let average = all.map(|scores| scores.iter().sum::<f64>() / scores.len() as f64);
        let paper: Vec<Option<f64>> = row.scores.iter().chain([&row.average]).copied().map(Some).collect();
        let ours: Vec<Option<f64>> = ours.into_iter().chain([average]).collect();
        let shown =
            |values: &[Option<f64>]| values.iter().map(|v| v.map_or_else(String::new, |v| format!("{v:.2}"))).collect();
        let less = ours.iter().zip(&paper).map(|(ours, paper)| match (ours, paper) {
            (Some(ours), Some(paper)) => format!("{:+.2}", ours - paper),
            _ => String::new(),
        });
        let lines: [(&str, &str, Vec<String>); 3] = [
            (row.method.as_str(), "paper", shown(&paper)),
            ("", "ours", shown(&ours)),
            ("", "difference", less.collect()),
        ];
        for (method, what, values) in lines {
            line(&mut text, [method.to_owned(), what.to_owned()].into_iter().chain(values));
        }
    }
    text
}

/// A run of one's own: per scheme a line of scores and one of differences to the uncompressed run with their intervals.
pub fn run_markdown(tasks: &[String], cells: &[TaskCell], averages: &[AverageCell]) -> String {
    let mut text = head(&["scheme", "", "measured bits"], tasks, &["task mean", "category mean"]);
    let sizes = sizes(cells);
    let shown = tasks.iter().map(|task| sizes.get(task.as_str()).map(|&size| of(size)).unwrap_or_default());
    let first = ["", "n", ""].map(str::to_owned).into_iter();
    line(&mut text, first.chain(shown).chain([String::new(), String::new()]));
    for average in averages {
        let own: Vec<&TaskCell> = cells.iter().filter(|cell| cell.scheme == average.scheme).collect();
        let of_task = |task: &String| own.iter().find(|cell| cell.task == *task);
        let bits = own.iter().map(|cell| cell.measured_bits).sum::<f64>() / own.len().max(1) as f64;
        let scores =
            tasks.iter().map(|task| of_task(task).map_or_else(String::new, |cell| format!("{:.2}", cell.score)));
        let means = [average.task_mean, average.category_mean].map(|mean| format!("{mean:.2}"));
        line(
            &mut text,
            [average.scheme.clone(), "score".to_owned(), format!("{bits:.2}")].into_iter().chain(scores).chain(means),
        );
        if average.difference.is_none() {
            continue;
        }
        let differences = tasks.iter().map(|task| interval(of_task(task).and_then(|cell| cell.difference)));
        let first = ["", "less dense", ""].map(str::to_owned).into_iter();
        line(&mut text, first.chain(differences).chain([interval(average.difference), String::new()]));
    }
    text
}

/// What each scheme scores and takes, one line each, for pages where the tasks do not fit.
pub fn schemes_markdown(averages: &[AverageCell]) -> String {
    let names = ["scheme".to_owned(), "rank".to_owned()];
    let numbers = [
        "task mean",
        "less dense [95 %]",
        "nominal bits",
        "measured bits",
        "mean tokens",
        "compress, ms per 1000 tokens",
        "decode, ms per token",
        "n",
    ];
    let mut text = String::new();
    line(&mut text, names.into_iter().chain(numbers.map(str::to_owned)));
    let _ = writeln!(text, "|{}{}", "---|".repeat(2), "--:|".repeat(numbers.len()));
    for a in averages {
        let rank =
            a.rank.map_or_else(String::new, |(place, tied)| format!("{place}{}", if tied { " (tied)" } else { "" }));
        let cells = [
            a.scheme.clone(),
            rank,
            format!("{:.2}", a.task_mean),
            interval(a.difference),
            format!("{:.2}", a.nominal_bits),
            format!("{:.2}", a.measured_bits),
            format!("{:.0}", a.tokens),
            format!("{:.0}", a.encode_ms_per_1k),
            format!("{:.1}", a.decode_ms_per_token),
            a.n.to_string(),
        ];
        line(&mut text, cells.into_iter());
    }
    text
}

/// LongBench-E: one scheme's scores of one task by sample length; the score of an empty bucket stays empty.
#[derive(Clone, Debug, PartialEq)]
pub struct LengthCell {
    /// The task.
    pub task: String,
    /// The scheme's label.
    pub scheme: String,
    /// Records and score of `0-4k`, `4-8k` and `8k+`.
    pub buckets: [(usize, f64); 3],
}

/// The table of LongBench-E: per task and scheme the score of each bucket, with its number of records.
pub fn lengths_markdown(cells: &[LengthCell]) -> String {
    let mut text = "| task | scheme | 0-4k | n | 4-8k | n | 8k+ | n |\n|---|---|--:|--:|--:|--:|--:|--:|\n".to_owned();
    for cell in cells {
        let buckets = cell
            .buckets
            .iter()
            .flat_map(|&(n, score)| [if n == 0 { String::new() } else { format!("{score:.2}") }, n.to_string()]);
        line(&mut text, [cell.task.clone(), cell.scheme.clone()].into_iter().chain(buckets));
    }
    text
}

fn interval(difference: Option<Difference>) -> String {
    difference.map_or_else(String::new, |d| format!("{:+.2} [{:+.2}, {:+.2}]", d.points, d.low, d.high))
}

/// Records scored and records there are, per task: the fewest scored by any scheme.
fn sizes(cells: &[TaskCell]) -> BTreeMap<&str, (usize, usize)> {
    let mut sizes: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for cell in cells {
        let size = sizes.entry(cell.task.as_str()).or_insert((cell.n, cell.samples));
        size.0 = size.0.min(cell.n);
    }
    sizes
}

fn of((n, samples): (usize, usize)) -> String {
    if n == samples { n.to_string() } else { format!("{n} of {samples}") }
}

fn score(cells: &[TaskCell], scheme: &str, task: &str) -> Option<f64> {
    cells.iter().find(|cell| cell.scheme == scheme && cell.task == task).map(|cell| cell.score)
}

/// Two lines: headings, and text left, numbers right.
fn head(names: &[&str], tasks: &[String], means: &[&str]) -> String {
    let mut text = String::new();
    let tasks = tasks.iter().map(String::as_str);
    line(&mut text, names.iter().copied().chain(tasks.clone()).chain(means.iter().copied()).map(str::to_owned));
    let numbers = tasks.count() + means.len();
    let _ = writeln!(text, "|{}{}", "---|".repeat(names.len()), "--:|".repeat(numbers));
    text
}

fn line(text: &mut String, cells: impl Iterator<Item = String>) {
    text.push('|');
    for cell in cells {
        let _ = write!(text, " {cell} |");
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn cell(task: &str, scheme: &str, n: usize, score: f64) -> TaskCell {
        let difference = (scheme != "dense").then_some(Difference { points: -1.0, low: -2.5, high: 0.25 });
        TaskCell {
            task: task.to_owned(),
            scheme: scheme.to_owned(),
            n,
            samples: 200,
            score,
            difference,
            measured_bits: 2.0,
        }
    }

    fn tasks() -> Vec<String> {
        ["2wikimqa", "hotpotqa"].map(str::to_owned).to_vec()
    }

    /// A digit mistyped anywhere moves the mean away from the printed one.
    #[test]
    fn published_rows_have_their_printed_averages() {
        let published = published();
        assert_eq!(published.tasks.len(), 11);
        let rows: Vec<(&str, usize)> = published.tables.iter().map(|t| (t.model.as_str(), t.rows.len())).collect();
        assert_eq!(rows, [("Llama2-7B-chat", 8), ("Llama3-8B-Instruct", 5), ("Baichuan2-7B-chat", 5)]);
        for row in published.tables.iter().flat_map(|table| &table.rows) {
            assert_eq!(row.scores.len(), published.tasks.len(), "{}", row.method);
            let mean = row.scores.iter().sum::<f64>() / row.scores.len() as f64;
            // The two rows whose printed average is not that of their printed scores: see the data's note.
            let printed = match row.average {
                36.93 => 36.84,
                41.51 => 41.53,
                average => average,
            };
            assert!((mean - printed).abs() < 0.0101, "{}: {mean} instead of {printed}", row.method);
        }
    }

    #[test]
    fn the_paper_stands_beside_ours_and_empty_cells_stay_empty() {
        let row = |method: &str, scheme: &str, scores: [f64; 2], average| PublishedRow {
            method: method.to_owned(),
            scheme: scheme.to_owned(),
            scores: scores.to_vec(),
            average,
        };
        let table = PublishedTable {
            table: 1,
            model: "M".to_owned(),
            rows: vec![row("FP16", "dense", [26.47, 33.84], 30.15), row("GEAR", "gear", [26.52, 32.65], 29.58)],
        };
        let cells = [cell("2wikimqa", "dense", 200, 27.0), cell("hotpotqa", "dense", 2, 33.0)];
        assert_eq!(
            paper_markdown(&tasks(), &table, &cells),
            "| method |  | 2wikimqa | hotpotqa | avg |\n\
             |---|---|--:|--:|--:|\n\
             | n | ours | 200 | 2 of 200 |  |\n\
             | FP16 | paper | 26.47 | 33.84 | 30.15 |\n\
             |  | ours | 27.00 | 33.00 | 30.00 |\n\
             |  | difference | +0.53 | -0.84 | -0.15 |\n\
             | GEAR | paper | 26.52 | 32.65 | 29.58 |\n\
             |  | ours |  |  |  |\n\
             |  | difference |  |  |  |\n"
        );
        assert!(!paper_markdown(&tasks(), &table, &[]).contains("| n |"));
        // One task missing: no average.
        assert!(paper_markdown(&tasks(), &table, &cells[..1]).contains("|  | ours | 27.00 |  |  |"));
    }

    #[test]
    fn differences_show_their_intervals_and_sizes_their_limits() {
        let average = |scheme: &str, difference| AverageCell {
            scheme: scheme.to_owned(),
            rank: Some((1, scheme == "dense")),
            n: 7,
            nominal_bits: 4.0,
            measured_bits: 4.02,
            tokens: 1500.4,
            encode_ms_per_1k: 250.0,
            decode_ms_per_token: 41.26,
            task_mean: 30.0,
            category_mean: 31.0,
            difference,
        };
        let cells = [cell("2wikimqa", "dense", 4, 27.0), cell("2wikimqa", "csr-8", 3, 26.0)];
        let difference = Some(Difference { points: -1.0, low: -2.0, high: 0.0 });
        let averages = [average("dense", None), average("csr-8", difference)];
        assert_eq!(
            run_markdown(&tasks(), &cells, &averages),
            "| scheme |  | measured bits | 2wikimqa | hotpotqa | task mean | category mean |\n\
             |---|---|---|--:|--:|--:|--:|\n\
             |  | n |  | 3 of 200 |  |  |  |\n\
             | dense | score | 2.00 | 27.00 |  | 30.00 | 31.00 |\n\
             | csr-8 | score | 2.00 | 26.00 |  | 30.00 | 31.00 |\n\
             |  | less dense |  | -1.00 [-2.50, +0.25] |  | -1.00 [-2.00, +0.00] |  |\n"
        );
        let schemes = schemes_markdown(&averages);
        assert!(schemes.contains("| dense | 1 (tied) | 30.00 |  | 4.00 | 4.02 | 1500 | 250 | 41.3 | 7 |"), "{schemes}");
        assert!(schemes.contains("| csr-8 | 1 | 30.00 | -1.00 [-2.00, +0.00] |"), "{schemes}");
        let cell = LengthCell {
            task: "trec".to_owned(),
            scheme: "dense".to_owned(),
            buckets: [(2, 50.0), (0, f64::NAN), (1, 12.345)],
        };
        assert!(lengths_markdown(&[cell]).ends_with("| trec | dense | 50.00 | 2 |  | 0 | 12.35 | 1 |\n"));
    }
}
