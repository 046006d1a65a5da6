//! The tables of docs/PERFORMANCE.md.

use std::fmt::Write;

use anyhow::Result;
use kvcsr_records::BenchRow;

use super::decode::{DENSE, LLAMA_CPP};

/// Makes a table of the rows of its part.
type Table = fn(&[BenchRow]) -> Result<String>;

/// The name of each table, which stands in its markers, and the function that makes the table.
pub const TABLES: [(&str, Table); 5] =
    [("encode", encode), ("attend", attend), ("compress", compress), ("decode", decode), ("threads", threads)];

/// The rows of one kind of work.
fn of<'a>(rows: &'a [BenchRow], work: &'a str) -> impl Iterator<Item = &'a BenchRow> {
    rows.iter().filter(move |row| row.work == work)
}

/// The table called `name`, and where its rows come from.
///
/// # Errors
/// It never fails: the text is written to memory.
pub fn part(name: &str, table: Table, rows: &[BenchRow]) -> Result<String> {
    let Some(row) = of(rows, name).next() else {
        return Ok(format!("Not measured yet: `just bench {name}`.\n"));
    };
    Ok(format!("Made by `just bench {name}` at commit {} on {}.\n\n{}", row.commit, row.machine, table(rows)?))
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(String::new, |share| format!("{:.0} %", 100.0 * share))
}

fn error(error: Option<f64>) -> String {
    error.map_or_else(String::new, |error| format!("{error:.4}"))
}

fn encode(rows: &[BenchRow]) -> Result<String> {
    let mut table =
        String::from("| sizes | ours | vectors/s | share of limit | error | peer | vectors/s | error | ratio |\n");
    table += "|---|---|--:|--:|--:|---|--:|--:|--:|\n";
    // Matching pursuit is compared with all peers, orthogonal matching pursuit with all except PyTorch's plain matching pursuit.
    let same = |row: &&BenchRow| !row.ours.starts_with("orthogonal") || row.peer != "PyTorch matching pursuit";
    for row in of(rows, "encode").filter(same) {
        writeln!(
            table,
            "| {} | {} | {:.0} | {} | {} | {} | {:.0} | {} | **{:.1}** |",
            row.shape,
            row.ours,
            row.ours_per_s,
            percent(row.limit_share),
            error(row.ours_error),
            row.peer,
            row.peer_per_s,
            error(row.peer_error),
            row.ratio
        )?;
    }
    Ok(table)
}

fn attend(rows: &[BenchRow]) -> Result<String> {
    let mut table = String::from(
        "| layer and length | cache | bytes / bf16 | ms | share of limit | SDPA bf16 ms | time / SDPA bf16 | time / SDPA f32 |\n",
    );
    table += "|---|---|--:|--:|--:|--:|--:|--:|\n";
    for row in of(rows, "attend").filter(|row| row.peer.ends_with("bf16")) {
        let f32 = of(rows, "attend")
            .find(|other| other.shape == row.shape && other.ours == row.ours && other.peer.ends_with("f32"));
        let bytes = row.ours_bytes.zip(row.peer_bytes).map_or(f64::NAN, |(ours, peer)| ours / peer);
        writeln!(
            table,
            "| {} | `{}` | {bytes:.3} | {:.3} | {} | {:.3} | **{:.2}** | {} |",
            row.shape,
            row.ours,
            1e3 / row.ours_per_s,
            percent(row.limit_share),
            1e3 / row.peer_per_s,
            1.0 / row.ratio,
            f32.map_or_else(String::new, |row| format!("{:.2}", 1.0 / row.ratio)),
        )?;
    }
    Ok(table)
}

fn compress(rows: &[BenchRow]) -> Result<String> {
    let mut table = String::from("| prompt | cache | s | prefill s | share of the prefill |\n|---|---|--:|--:|--:|\n");
    for row in of(rows, "compress") {
        let tokens: f64 =
            row.shape.rsplit(", ").next().and_then(|x| x.split(' ').next()?.parse().ok()).unwrap_or(f64::NAN);
        let (ours, prefill) = (tokens / row.ours_per_s, tokens / row.peer_per_s);
        writeln!(
            table,
            "| {} | `{}` | {ours:.2} | {prefill:.2} | **{:.1} %** |",
            row.shape,
            row.ours,
            100.0 / row.ratio
        )?;
    }
    Ok(table)
}

/// A cache at one context, of ours or of llama.cpp.
struct Decoded<'a> {
    /// The model.
    model: &'a str,
    /// Tokens.
    context: usize,
    cache: &'a str,
    /// Milliseconds per token.
    ms: f64,
    bytes: Option<f64>,
}

impl<'a> Decoded<'a> {
    fn new(row: &'a BenchRow, cache: &'a str, per_s: f64, bytes: Option<f64>) -> Self {
        let (model, tokens) = row.shape.rsplit_once(", ").unwrap_or((row.shape.as_str(), ""));
        let context = tokens.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        Self { model, context, cache, ms: 1e3 / per_s, bytes }
    }

    fn of_llama_cpp(&self) -> bool {
        self.cache.starts_with(LLAMA_CPP)
    }

    /// Every cache at every context once. At each context the exact cache is the first, and llama.cpp's are the last.
    fn all(rows: &'a [BenchRow]) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for row in of(rows, "decode") {
            let peer = Self::new(row, &row.peer, row.peer_per_s, row.peer_bytes);
            let ours = Self::new(row, &row.ours, row.ours_per_s, row.ours_bytes);
            for one in [peer, ours] {
                if !all.iter().any(|other| other.key() == one.key()) {
                    all.push(one);
                }
            }
        }
        let contexts: Vec<_> = all.iter().map(|one| (one.model, one.context)).collect();
        let place = |one: &Self| contexts.iter().position(|context| *context == (one.model, one.context));
        all.sort_by_key(|one| (place(one), one.of_llama_cpp(), one.cache != DENSE));
        all
    }

    fn key(&self) -> (&'a str, usize, &'a str) {
        (self.model, self.context, self.cache)
    }

    /// The exact cache of the same program at the shortest context of the model, if this context is longer.
    fn without_cache<'b>(&self, all: &'b [Self]) -> Option<&'b Self> {
        let first = if self.of_llama_cpp() { "llama.cpp f16" } else { DENSE };
        let exact = all.iter().filter(|other| other.model == self.model && other.cache == first);
        exact.min_by_key(|other| other.context).filter(|shortest| shortest.context < self.context)
    }
}

fn decode(rows: &[BenchRow]) -> Result<String> {
    let mut table =
        String::from("| model and context | cache | MB | tokens/s | ms | ms for the cache | share of the cache |\n");
    table += "|---|---|--:|--:|--:|--:|--:|\n";
    let all = Decoded::all(rows);
    for one in &all {
        let added = one.without_cache(&all).map(|exact| one.ms - exact.ms);
        writeln!(
            table,
            "| {}, {} tokens | `{}` | {} | {:.2} | {:.1} | {} | {} |",
            one.model,
            one.context,
            one.cache,
            one.bytes.map_or_else(String::new, |bytes| format!("{:.1}", bytes / 1e6)),
            1e3 / one.ms,
            one.ms,
            added.map_or_else(String::new, |ms| format!("{ms:.1}")),
            percent(added.map(|ms| ms / one.ms)),
        )?;
    }
    Ok(table)
}

fn threads(rows: &[BenchRow]) -> Result<String> {
    let mut table = String::from("| work | threads | times one thread |\n|---|---|--:|\n");
    for row in of(rows, "threads") {
        writeln!(table, "| {} | {} | **{:.2}** |", row.shape, row.ours, row.ratio)?;
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use kvcsr_records::csv;

    use super::*;

    #[test]
    fn the_committed_tables_are_those_of_the_committed_rows() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let rows: Vec<BenchRow> = csv::read(&root.join("data/results/bench.csv")).unwrap();
        let document = std::fs::read_to_string(root.join("docs/PERFORMANCE.md")).unwrap();
        for (name, table) in TABLES {
            let table = part(name, table, &rows).unwrap();
            assert!(document.contains(table.trim_matches('\n')), "run `just bench tables`; expected\n{table}");
        }
        assert!(rows.iter().all(|row| !row.commit.ends_with("-dirty")), "rows of uncommitted code");
        assert!(rows.iter().all(|row| (row.ours_per_s / row.peer_per_s / row.ratio - 1.0).abs() < 1e-9));
    }

    #[test]
    fn decoding_shows_each_cache_once_and_what_it_adds_to_the_model() {
        let row = |context: usize, [ours, peer]: [(&str, f64); 2]| BenchRow {
            work: "decode".into(),
            shape: format!("m, a, {context} tokens"),
            ours: ours.0.into(),
            peer: peer.0.into(),
            unit: "tokens".into(),
            ours_per_s: ours.1,
            peer_per_s: peer.1,
            ratio: ours.1 / peer.1,
            limit: String::new(),
            limit_share: None,
            ours_bytes: Some(2e6),
            peer_bytes: None,
            ours_error: None,
            peer_error: None,
            machine: "an abacus".into(),
            commit: "c".into(),
        };
        let (dense, llama) = (("dense", 100.0), ("llama.cpp f16", 200.0));
        let rows = [
            row(128, [("csr-8", 80.0), dense]),
            row(128, [("csr-8", 80.0), llama]),
            row(2048, [("csr-8", 40.0), ("llama.cpp f16", 125.0)]),
            row(2048, [("csr-8", 40.0), ("dense", 50.0)]),
        ];
        let table = part("decode", decode, &rows).unwrap();
        let lines: Vec<&str> = table.lines().skip(4).collect();
        let expected = [
            "| m, a, 128 tokens | `dense` |  | 100.00 | 10.0 |  |  |",
            "| m, a, 128 tokens | `csr-8` | 2.0 | 80.00 | 12.5 |  |  |",
            "| m, a, 128 tokens | `llama.cpp f16` |  | 200.00 | 5.0 |  |  |",
            "| m, a, 2048 tokens | `dense` |  | 50.00 | 20.0 | 10.0 | 50 % |",
            "| m, a, 2048 tokens | `csr-8` | 2.0 | 40.00 | 25.0 | 15.0 | 60 % |",
            "| m, a, 2048 tokens | `llama.cpp f16` |  | 125.00 | 8.0 | 3.0 | 38 % |",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn work_that_was_not_measured_says_how_to_measure_it() {
        for (name, table) in TABLES {
            assert!(part(name, table, &[]).unwrap().contains(&format!("`just bench {name}`")));
        }
    }
}
