//! The tables of docs/PERFORMANCE.md.

use std::fmt::Write;

use anyhow::Result;
use kvcsr_records::BenchRow;

/// Makes a table of the rows of its part.
type Table = fn(&[BenchRow]) -> Result<String>;

/// The name of each table, which stands in its markers, and the function that makes the table.
pub const TABLES: [(&str, Table); 4] =
    [("encode", encode), ("attend", attend), ("compress", compress), ("threads", threads)];

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
    fn work_that_was_not_measured_says_how_to_measure_it() {
        for (name, table) in TABLES {
            assert!(part(name, table, &[]).unwrap().contains(&format!("`just bench {name}`")));
        }
    }
}
