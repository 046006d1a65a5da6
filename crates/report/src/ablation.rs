//! Ablations of dictionary training: the paper's Table 3, trainer options, merged layers.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::{
    aggregate::kinds,
    csv::{CsvRow, number_or_empty},
    records::Kind,
    ticks::number,
};

mod merged;

pub use merged::{merged_markdown, merged_verdict};

/// Held-out error of one dictionary on one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AblationRow {
    /// The comparison: `table3`, `options`, `merged`, or [`PEERS`] for other projects' learners.
    pub section: String,
    /// What was varied: the option, or how layers were merged. `neuraldict` for the paper's method.
    pub name: String,
    /// The layer whose held-out vectors were measured.
    pub layer: usize,
    /// Keys or values.
    pub kind: Kind,
    /// `N`.
    pub atoms: usize,
    /// `s`, per chunk.
    pub sparsity: usize,
    /// `s_n`.
    pub chunks: usize,
    /// Vectors (chunks) that the dictionary was trained on.
    pub vectors: usize,
    /// Passes over them; 0 for a start that was not trained.
    pub epochs: usize,
    /// `sum |x - x'|^2 / sum |x|^2` over held-out vectors, by matching pursuit.
    pub relative: f64,
    /// Mean over held-out (chunk) vectors of `|x - x'|^2`: the paper's unit.
    pub mse: f64,
    /// `relative` with both sums weighted by the attention vectors get, where it was recorded.
    #[serde(deserialize_with = "number_or_empty")]
    pub weighted: Option<f64>,
    /// Wall time of training on one thread, in seconds. Other work may share the machine.
    pub seconds: f64,
}

impl CsvRow for AblationRow {
    const HEADER: &'static [&'static str] = &[
        "section", "name", "layer", "kind", "atoms", "sparsity", "chunks", "vectors", "epochs", "relative", "mse",
        "weighted", "seconds",
    ];

    fn fields(&self) -> Vec<String> {
        vec![
            self.section.clone(),
            self.name.clone(),
            self.layer.to_string(),
            self.kind.to_string(),
            self.atoms.to_string(),
            self.sparsity.to_string(),
            self.chunks.to_string(),
            self.vectors.to_string(),
            self.epochs.to_string(),
            self.relative.to_string(),
            self.mse.to_string(),
            self.weighted.map_or_else(String::new, |w| w.to_string()),
            self.seconds.to_string(),
        ]
    }
}

/// [`AblationRow::section`] of other projects' dictionary learning on the vectors of the options.
pub const PEERS: &str = "peers";

/// `N` of the paper's Table 3, shown with empty cells where they were not run; so are its `s` and `s_n`.
const PAPER_ATOMS: [usize; 2] = [8192, 16_384];
const PAPER_SPARSITY: [usize; 2] = [4, 8];
const PAPER_CHUNKS: [usize; 3] = [1, 2, 4];

fn mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.into_iter().collect();
    if values.is_empty() { None } else { Some(values.iter().sum::<f64>() / values.len() as f64) }
}

fn sorted(values: impl IntoIterator<Item = usize>) -> Vec<usize> {
    let mut values: Vec<usize> = values.into_iter().collect();
    values.sort_unstable();
    values.dedup();
    values
}

/// Table 3: a row for each `N` and `s`, a column for each kind and `s_n`, the mean over layers of the
/// held-out MSE and, in brackets, of the relative error. Empty cells were not run.
pub fn table3_markdown(rows: &[AblationRow]) -> String {
    let rows: Vec<&AblationRow> = rows.iter().filter(|row| row.section == "table3").collect();
    let atoms = sorted(rows.iter().map(|row| row.atoms).chain(PAPER_ATOMS));
    let levels = sorted(rows.iter().map(|row| row.sparsity).chain(PAPER_SPARSITY));
    let chunks = sorted(rows.iter().map(|row| row.chunks).chain(PAPER_CHUNKS));
    let mut text = String::from("| N | s |");
    let columns: Vec<(Kind, usize)> =
        [Kind::Value, Kind::Key].into_iter().flat_map(|kind| chunks.iter().map(move |&c| (kind, c))).collect();
    for (kind, c) in &columns {
        let _ = write!(text, " {kind}, s_n = {c} |");
    }
    text += "\n|--:|--:|";
    text += &"--:|".repeat(columns.len());
    text.push('\n');
    for &n in &atoms {
        for &s in &levels {
            let _ = write!(text, "| {n} | {s} |");
            for &(kind, c) in &columns {
                let cell: Vec<&&AblationRow> =
                    rows.iter().filter(|r| (r.atoms, r.sparsity, r.kind, r.chunks) == (n, s, kind, c)).collect();
                match (mean(cell.iter().map(|r| r.mse)), mean(cell.iter().map(|r| r.relative))) {
                    (Some(mse), Some(relative)) => {
                        let _ = write!(text, " {} ({}) |", number(mse), number(relative));
                    }
                    _ => text += "  |",
                }
            }
            text.push('\n');
        }
    }
    text
}

/// Which cells of Table 3 there are, and which of the paper's sizes there are not, as sentences.
pub fn coverage(rows: &[AblationRow]) -> String {
    let rows: Vec<&AblationRow> = rows.iter().filter(|row| row.section == "table3").collect();
    let run = |of: fn(&AblationRow) -> usize| sorted(rows.iter().map(|row| of(row)));
    let (atoms, levels, chunks) = (run(|r| r.atoms), run(|r| r.sparsity), run(|r| r.chunks));
    let cells: Vec<(usize, usize, usize)> = {
        let mut cells: Vec<_> = rows.iter().map(|r| (r.atoms, r.sparsity, r.chunks)).collect();
        cells.sort_unstable();
        cells.dedup();
        cells
    };
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

/// The trainer options: a row each, in the order of appearance, with the mean over layers for keys
/// and for values.
pub fn options_markdown(rows: &[AblationRow]) -> String {
    trainers(&rows.iter().filter(|row| row.section == "options").collect::<Vec<_>>())
}

/// The same where the peers were run: their rows, and those of the options on the same layers. Empty without peers.
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
    let mut names: Vec<&str> = Vec::new();
    for row in rows {
        if !names.contains(&row.name.as_str()) {
            names.push(&row.name);
        }
    }
    let kinds = kinds(rows, |row| row.kind);
    let mut text = String::from("| trainer |");
    for kind in &kinds {
        let _ = write!(text, " {kind}s: error | weighted by attention | seconds |");
    }
    text += " layers | vectors | epochs |\n|---|";
    text += &"--:|--:|--:|".repeat(kinds.len());
    text += "---|--:|--:|\n";
    for name in names {
        let own: Vec<&AblationRow> = rows.iter().copied().filter(|row| row.name == name).collect();
        let _ = write!(text, "| {name} |");
        for &kind in &kinds {
            let of = || own.iter().filter(|row| row.kind == kind);
            let shown = |value: Option<f64>| value.map_or_else(String::new, number);
            let weighted = mean(of().filter_map(|row| row.weighted));
            let _ = write!(
                text,
                " {} | {} | {} |",
                shown(mean(of().map(|row| row.relative))),
                shown(weighted),
                shown(mean(of().map(|row| row.seconds)))
            );
        }
        let layers: Vec<String> = sorted(own.iter().map(|row| row.layer)).iter().map(usize::to_string).collect();
        let range = |of: fn(&AblationRow) -> usize| {
            let values = sorted(own.iter().map(|row| of(row)));
            values.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
        };
        let _ = writeln!(text, " {} | {} | {} |", layers.join(", "), range(|r| r.vectors), range(|r| r.epochs));
    }
    text
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
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
        crate::csv::write(&path, &rows).unwrap();
        assert_eq!(crate::csv::read::<AblationRow>(&path).unwrap(), rows);
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
