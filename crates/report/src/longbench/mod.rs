//! LongBench tables in the layout of the paper's Tables 1 and 2, for comparison with the paper and for a single run.
//!
//! The paper's numbers are in `data/longbench-published.json`, with their source. Cells that were not run stay empty. If fewer
//! records of a task were run than LongBench has, the table says so, because such a score cannot be compared with a published
//! one.

use kvcsr_records::{LengthRow, OverallRow, TaskRow};

use crate::table::Table;

mod published;

pub use published::{Published, PublishedRow, PublishedTable, published};

/// The table of one model of the paper. Each method has a line with the paper's scores, one with ours, and one with ours minus
/// the paper's. Pass no rows if our run is of another model.
pub fn paper_markdown(tasks: &[String], table: &PublishedTable, rows: &[TaskRow]) -> String {
    let mut text = head(&["method", ""], tasks, &["avg"]);
    if !rows.is_empty() {
        text.row(["n".to_owned(), "ours".to_owned()].into_iter().chain(sizes(tasks, rows)).chain([String::new()]));
    }
    for row in &table.rows {
        let score = |task: &String| rows.iter().find(|r| r.scheme == row.scheme && r.task == *task).map(|r| r.score);
        let ours: Vec<Option<f64>> = tasks.iter().map(score).collect();
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
            text.row([method.to_owned(), what.to_owned()].into_iter().chain(values));
        }
    }
    text.into_text()
}

/// The table of one run. Each scheme has a line of scores, with the best in bold, and a line of differences to the uncompressed
/// run with their intervals.
pub fn run_markdown(tasks: &[String], rows: &[TaskRow], overall: &[OverallRow]) -> String {
    let mut text = head(&["scheme", "", "measured bits"], tasks, &["task mean", "category mean"]);
    let blank = || [String::new(), String::new()];
    text.row(["", "n", ""].map(str::to_owned).into_iter().chain(sizes(tasks, rows)).chain(blank()));
    for scheme in overall {
        let own: Vec<&TaskRow> = rows.iter().filter(|row| row.scheme == scheme.scheme).collect();
        let of_task = |task: &String| own.iter().find(|row| row.task == *task);
        let bits = own.iter().map(|row| row.measured_bits).sum::<f64>() / own.len().max(1) as f64;
        let scores = tasks.iter().map(|task| of_task(task).map_or_else(String::new, |row| marked(row.score, row.best)));
        let means = [marked(scheme.task_mean, scheme.best), format!("{:.2}", scheme.category_mean)];
        let first = [scheme.scheme.clone(), "score".to_owned(), format!("{bits:.2}")];
        text.row(first.into_iter().chain(scores).chain(means));
        if scheme.difference.is_none() {
            continue;
        }
        let differences = tasks
            .iter()
            .map(|task| of_task(task).map_or_else(String::new, |row| interval(row.difference, row.low, row.high)));
        let first = ["", "difference to dense", ""].map(str::to_owned).into_iter();
        let all = interval(scheme.difference, scheme.low, scheme.high);
        text.row(first.chain(differences).chain([all, String::new()]));
    }
    text.into_text()
}

/// The scores, bits and times of each scheme in one line, for pages that are too narrow for a table of tasks.
pub fn schemes_markdown(overall: &[OverallRow]) -> String {
    let numbers = [
        "task mean",
        "difference to dense [95 %]",
        "nominal bits",
        "measured bits",
        "mean tokens",
        "compress, ms per 1000 tokens",
        "decode, ms per token",
        "n",
    ];
    let mut text = Table::of(["scheme", "rank"], numbers);
    for row in overall {
        let tied = if row.tied { " (tied)" } else { "" };
        text.row([
            row.scheme.clone(),
            row.rank.map_or_else(String::new, |place| format!("{place}{tied}")),
            marked(row.task_mean, row.best),
            interval(row.difference, row.low, row.high),
            format!("{:.2}", row.nominal_bits),
            format!("{:.2}", row.measured_bits),
            format!("{:.0}", row.tokens),
            format!("{:.0}", row.encode_ms_per_1k),
            format!("{:.1}", row.decode_ms_per_token),
            row.n.to_string(),
        ]);
    }
    text.into_text()
}

/// The table of LongBench-E: for each task and scheme the score of each bucket, with its number of records.
pub fn lengths_markdown(rows: &[LengthRow]) -> String {
    let mut text = Table::of(["task", "scheme"], ["0-4k", "n", "4-8k", "n", "8k+", "n"]);
    for row in rows {
        let buckets = row.buckets.iter().flat_map(|bucket| {
            [bucket.score.map_or_else(String::new, |score| format!("{score:.2}")), bucket.n.to_string()]
        });
        text.row([row.task.clone(), row.scheme.clone()].into_iter().chain(buckets));
    }
    text.into_text()
}

/// A score, in bold if it is among the best.
fn marked(score: f64, best: bool) -> String {
    if best { format!("**{score:.2}**") } else { format!("{score:.2}") }
}

fn interval(difference: Option<f64>, low: Option<f64>, high: Option<f64>) -> String {
    match (difference, low, high) {
        (Some(points), Some(low), Some(high)) => format!("{points:+.2} [{low:+.2}, {high:+.2}]"),
        _ => String::new(),
    }
}

/// Number of records scored for each task, the smallest of any scheme. If the task has more records, their number follows.
fn sizes(tasks: &[String], rows: &[TaskRow]) -> Vec<String> {
    let size = |task: &String| {
        let fewest = rows.iter().filter(|row| row.task == *task).min_by_key(|row| row.n);
        fewest.map_or_else(String::new, |row| match row.n == row.samples {
            true => row.n.to_string(),
            false => format!("{} of {}", row.n, row.samples),
        })
    };
    tasks.iter().map(size).collect()
}

fn head(names: &[&str], tasks: &[String], means: &[&str]) -> Table {
    Table::of(names.iter().copied(), tasks.iter().map(String::as_str).chain(means.iter().copied()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use kvcsr_records::Bucket;

    use super::*;

    fn cell(task: &str, scheme: &str, n: usize, score: f64) -> TaskRow {
        let lossy = scheme != "dense";
        TaskRow {
            task: task.to_owned(),
            scheme: scheme.to_owned(),
            n,
            samples: 200,
            score,
            difference: lossy.then_some(-1.0),
            low: lossy.then_some(-2.5),
            high: lossy.then_some(0.25),
            nominal_bits: 2.0,
            measured_bits: 2.0,
            tokens: 1500.0,
            encode_ms: 1.0,
            decode_ms_per_token: 1.0,
            best: lossy && n > 3,
        }
    }

    fn tasks() -> Vec<String> {
        ["2wikimqa", "hotpotqa"].map(str::to_owned).to_vec()
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
        // One task is missing, so there is no average.
        assert!(paper_markdown(&tasks(), &table, &cells[..1]).contains("|  | ours | 27.00 |  |  |"));
    }

    #[test]
    fn differences_show_their_intervals_and_sizes_their_limits() {
        let average = |scheme: &str, difference: Option<[f64; 3]>| OverallRow {
            scheme: scheme.to_owned(),
            tasks: 1,
            rank: Some(1),
            tied: scheme == "dense",
            n: 7,
            nominal_bits: 4.0,
            measured_bits: 4.02,
            tokens: 1500.4,
            encode_ms_per_1k: 250.0,
            decode_ms_per_token: 41.26,
            task_mean: 30.0,
            category_mean: 31.0,
            difference: difference.map(|d| d[0]),
            low: difference.map(|d| d[1]),
            high: difference.map(|d| d[2]),
            cut: 0,
            best: difference.is_some(),
        };
        let cells = [cell("2wikimqa", "dense", 4, 27.0), cell("2wikimqa", "csr-8", 3, 26.0)];
        let difference = Some([-1.0, -2.0, 0.0]);
        let averages = [average("dense", None), average("csr-8", difference)];
        assert_eq!(
            run_markdown(&tasks(), &cells, &averages),
            "| scheme |  | measured bits | 2wikimqa | hotpotqa | task mean | category mean |\n\
             |---|---|---|--:|--:|--:|--:|\n\
             |  | n |  | 3 of 200 |  |  |  |\n\
             | dense | score | 2.00 | 27.00 |  | 30.00 | 31.00 |\n\
             | csr-8 | score | 2.00 | 26.00 |  | **30.00** | 31.00 |\n\
             |  | difference to dense |  | -1.00 [-2.50, +0.25] |  | -1.00 [-2.00, +0.00] |  |\n"
        );
        let schemes = schemes_markdown(&averages);
        assert!(schemes.contains("| dense | 1 (tied) | 30.00 |  | 4.00 | 4.02 | 1500 | 250 | 41.3 | 7 |"), "{schemes}");
        assert!(schemes.contains("| csr-8 | 1 | **30.00** | -1.00 [-2.00, +0.00] |"), "{schemes}");
        let cells = [cell("2wikimqa", "csr-8", 4, 26.0)];
        let marked = run_markdown(&tasks(), &cells, &averages[1..]);
        assert!(marked.contains("| csr-8 | score | 2.00 | **26.00** |  | **30.00** | 31.00 |"), "{marked}");
        let bucket = |n, score| Bucket { n, score };
        let cell = LengthRow {
            task: "trec".to_owned(),
            scheme: "dense".to_owned(),
            buckets: [bucket(2, Some(50.0)), bucket(0, None), bucket(1, Some(12.345))],
        };
        assert!(lengths_markdown(&[cell]).ends_with("| trec | dense | 50.00 | 2 |  | 0 | 12.35 | 1 |\n"));
    }
}
