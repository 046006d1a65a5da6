//! Ablations of dictionary training: the paper's Table 3, trainer options, merged layers.

use std::fmt::Write as _;

pub use kvcsr_records::AblationRow;
use kvcsr_records::Kind;

use crate::{
    grouping::{grouped, kinds, mean, sorted},
    table::{Cells, Table},
    ticks::number,
};

mod merged;

pub use merged::{merged_markdown, merged_verdict};

/// [`AblationRow::section`] for the dictionary learning of other projects, on the same vectors as the options.
pub const PEERS: &str = "peers";

/// The `N` of the paper's Table 3. Cells that were not run are empty. The next two constants are its `s` and `s_n`.
const PAPER_ATOMS: [usize; 2] = [8192, 16_384];
const PAPER_SPARSITY: [usize; 2] = [4, 8];
const PAPER_CHUNKS: [usize; 3] = [1, 2, 4];

/// Table 3: one row for each `N` and `s`, and one column for each kind and `s_n`. A cell is the mean over layers of the
/// held-out MSE and, in brackets, of the relative error. Cells that were not run are empty.
pub fn table3_markdown(rows: &[AblationRow]) -> String {
    let rows: Vec<&AblationRow> = rows.iter().filter(|row| row.section == "table3").collect();
    let atoms = sorted(rows.iter().map(|row| row.atoms).chain(PAPER_ATOMS));
    let levels = sorted(rows.iter().map(|row| row.sparsity).chain(PAPER_SPARSITY));
    let chunks = sorted(rows.iter().map(|row| row.chunks).chain(PAPER_CHUNKS));
    let columns: Vec<(Kind, usize)> =
        [Kind::Value, Kind::Key].into_iter().flat_map(|kind| chunks.iter().map(move |&c| (kind, c))).collect();
    let headings = columns.iter().map(|(kind, c)| format!("{kind}, s_n = {c}"));
    let headings = ["N", "s"].map(str::to_owned).into_iter().chain(headings);
    let mut table = Table::new(headings.map(|heading| (heading, Cells::Number)));
    for &n in &atoms {
        for &s in &levels {
            let cells = columns.iter().map(|&(kind, c)| {
                let own = || rows.iter().filter(|r| (r.atoms, r.sparsity, r.kind, r.chunks) == (n, s, kind, c));
                match (mean(own().map(|r| r.mse)), mean(own().map(|r| r.relative))) {
                    (Some(mse), Some(relative)) => format!("{} ({})", number(mse), number(relative)),
                    _ => String::new(),
                }
            });
            table.row([n.to_string(), s.to_string()].into_iter().chain(cells));
        }
    }
    table.into_text()
}

/// Sentences that say which cells of Table 3 were run, and which of the paper's sizes were not.
pub fn coverage(rows: &[AblationRow]) -> String {
    let rows: Vec<&AblationRow> = rows.iter().filter(|row| row.section == "table3").collect();
    let run = |of: fn(&AblationRow) -> usize| sorted(rows.iter().map(|row| of(row)));
    let (atoms, levels, chunks) = (run(|r| r.atoms), run(|r| r.sparsity), run(|r| r.chunks));
    let cells = sorted(rows.iter().map(|r| (r.atoms, r.sparsity, r.chunks)));
    let mut text = format!(
        "Covered: {} cells each for keys and values, N = {}, s = {}, s_n = {}, layers {}.",
        cells.len(),
        joined(&atoms),
        joined(&levels),
        joined(&chunks),
        joined(&run(|r| r.layer))
    );
    let paper = PAPER_ATOMS.len() * PAPER_SPARSITY.len() * PAPER_CHUNKS.len();
    let inside = |cell: &&(usize, usize, usize)| {
        PAPER_ATOMS.contains(&cell.0) && PAPER_SPARSITY.contains(&cell.1) && PAPER_CHUNKS.contains(&cell.2)
    };
    let of_them = cells.iter().filter(inside).count();
    let _ = match of_them {
        n if n == paper => write!(text, " All {paper} of the paper's are among them."),
        n => write!(
            text,
            " Of the paper's {paper} (N = {}), {n} are among them; the others are empty.",
            joined(&PAPER_ATOMS)
        ),
    };
    text
}

fn joined(values: &[usize]) -> String {
    values.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

/// The trainer options: one row per option, in order of first appearance, with the mean over layers for keys and for values.
pub fn options_markdown(rows: &[AblationRow]) -> String {
    trainers(&rows.iter().filter(|row| row.section == "options").collect::<Vec<_>>())
}

/// The rows of the peers, and those of the options on the same layers. Empty if no peers were run.
pub fn peers_markdown(rows: &[AblationRow]) -> String {
    let theirs = sorted(rows.iter().filter(|row| row.section == PEERS).map(|row| row.layer));
    if theirs.is_empty() {
        return String::new();
    }
    let compared =
        |row: &&AblationRow| [PEERS, "options"].contains(&row.section.as_str()) && theirs.contains(&row.layer);
    trainers(&rows.iter().filter(compared).collect::<Vec<_>>())
}

fn trainers(rows: &[&AblationRow]) -> String {
    let kinds = kinds(rows, |row| row.kind);
    let measures = ["error", "weighted by attention", "seconds"];
    let of_kind = |kind: &Kind| [format!("{kind}s: {}", measures[0]), measures[1].to_owned(), measures[2].to_owned()];
    let numbers = kinds.iter().flat_map(of_kind).map(|heading| (heading, Cells::Number));
    let text = |heading: &str, cells| (heading.to_owned(), cells);
    let last = [text("layers", Cells::Text), text("vectors", Cells::Number), text("epochs", Cells::Number)];
    let mut table = Table::new([text("trainer", Cells::Text)].into_iter().chain(numbers).chain(last));
    for (name, own) in grouped(rows.iter().copied(), |row| row.name.as_str()) {
        let shown = |value: Option<f64>| value.map_or_else(String::new, number);
        let means = kinds.iter().flat_map(|&kind| {
            let of = || own.iter().filter(move |row| row.kind == kind);
            [
                shown(mean(of().map(|row| row.relative))),
                shown(mean(of().filter_map(|row| row.weighted))),
                shown(mean(of().map(|row| row.seconds))),
            ]
        });
        let range = |of: fn(&AblationRow) -> usize| joined(&sorted(own.iter().map(|row| of(row))));
        let ranges = [range(|r| r.layer), range(|r| r.vectors), range(|r| r.epochs)];
        table.row([name.to_owned()].into_iter().chain(means).chain(ranges));
    }
    table.into_text()
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use kvcsr_records::csv;

    use super::*;

    pub fn row(
        section: &str,
        name: &str,
        layer: usize,
        kind: Kind,
        sizes: (usize, usize, usize),
        error: f64,
    ) -> AblationRow {
        let (atoms, sparsity, chunks) = sizes;
        AblationRow {
            section: section.into(),
            name: name.into(),
            layer,
            kind,
            atoms,
            sparsity,
            chunks,
            vectors: 100,
            epochs: 4,
            relative: error,
            mse: 10.0 * error,
            weighted: None,
            seconds: 1.0,
        }
    }

    #[test]
    fn table_3_has_the_papers_rows_and_empty_cells_where_nothing_was_run() {
        let rows = [
            row("table3", "neuraldict", 1, Kind::Key, (1024, 4, 1), 0.2),
            row("table3", "neuraldict", 2, Kind::Key, (1024, 4, 1), 0.4),
            row("table3", "neuraldict", 1, Kind::Value, (1024, 4, 2), 0.1),
            row("options", "mod", 1, Kind::Value, (1024, 4, 2), 0.7),
        ];
        let text = table3_markdown(&rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "| N | s | value, s_n = 1 | value, s_n = 2 | value, s_n = 4 | key, s_n = 1 | key, s_n = 2 | key, s_n = 4 |"
        );
        assert_eq!(lines[2], "| 1024 | 4 |  | 1 (0.1) |  | 3 (0.3) |  |  |");
        assert_eq!(lines[4], "| 8192 | 4 |  |  |  |  |  |  |");
        assert_eq!(lines.len(), 2 + 3 * 2);
        let said = coverage(&rows);
        assert!(said.contains("2 cells each") && said.contains("N = 1024, s = 4, s_n = 1, 2, layers 1, 2."), "{said}");
        assert!(said.contains("Of the paper's 12 (N = 8192, 16384), 0 are"), "{said}");
        let whole: Vec<AblationRow> = [8192, 16_384]
            .into_iter()
            .flat_map(|n| [4, 8].map(|s| [1, 2, 4].map(|c| row("table3", "neuraldict", 1, Kind::Key, (n, s, c), 0.1))))
            .flatten()
            .collect();
        assert!(coverage(&whole).ends_with("All 12 of the paper's are among them."), "{}", coverage(&whole));
    }

    #[test]
    fn peers_are_compared_on_their_own_layers_only() {
        let rows = [
            row("options", "neuraldict", 1, Kind::Key, (64, 8, 1), 0.2),
            row("options", "neuraldict", 2, Kind::Key, (64, 8, 1), 0.4),
            row(PEERS, "SPAMS", 2, Kind::Key, (64, 8, 1), 0.3),
        ];
        let text = peers_markdown(&rows);
        assert!(text.contains("| neuraldict | 0.4 |") && text.contains("| SPAMS | 0.3 |"), "{text}");
        assert!(!options_markdown(&rows).contains("SPAMS"));
        assert_eq!(peers_markdown(&rows[..2]), "");
    }

    #[test]
    fn rows_read_back_from_csv_with_and_without_a_weighted_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ablation.csv");
        let mut rows = vec![row("options", "mod", 1, Kind::Key, (64, 8, 1), 0.2); 2];
        rows[1].weighted = Some(0.125);
        csv::write(&path, &rows).unwrap();
        assert_eq!(csv::read::<AblationRow>(&path).unwrap(), rows);
        let json = serde_json::to_string(&rows[0]).unwrap();
        assert_eq!(serde_json::from_str::<AblationRow>(&json).unwrap(), rows[0]);
        assert!(serde_json::from_str::<AblationRow>(&json.replace("null", "\"x\"")).is_err());
    }

    #[test]
    fn options_keep_their_order() {
        let rows = [
            row("options", "neuraldict", 1, Kind::Key, (64, 8, 1), 0.2),
            row("options", "mod", 1, Kind::Key, (64, 8, 1), 0.1),
        ];
        let text = options_markdown(&rows);
        assert!(text.find("| neuraldict | 0.2 |") < text.find("| mod | 0.1 |"), "{text}");
    }
}
