//! Ablations of dictionary training: the paper's Table 3, trainer options, merged layers.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::{aggregate::kinds, csv::CsvRow, records::Kind, ticks::number};

/// Held-out error of one dictionary on one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AblationRow {
    /// The comparison: `table3`, `options` or `merged`.
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

/// Sizes of the paper's Table 3, shown with empty cells where they were not run.
const PAPER_ATOMS: [usize; 2] = [8192, 16_384];

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
    let levels = sorted(rows.iter().map(|row| row.sparsity));
    let chunks = sorted(rows.iter().map(|row| row.chunks));
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

/// The trainer options: a row each, in the order of appearance, with the mean over layers for keys
/// and for values.
pub fn options_markdown(rows: &[AblationRow]) -> String {
    let rows: Vec<&AblationRow> = rows.iter().filter(|row| row.section == "options").collect();
    let mut names: Vec<&str> = Vec::new();
    for row in &rows {
        if !names.contains(&row.name.as_str()) {
            names.push(&row.name);
        }
    }
    let kinds = kinds(&rows, |row| row.kind);
    let mut text = String::from("| trainer |");
    for kind in &kinds {
        let _ = write!(text, " {kind}s: error | weighted by attention | seconds |");
    }
    text += " layers | vectors | epochs |\n|---|";
    text += &"--:|--:|--:|".repeat(kinds.len());
    text += "---|--:|--:|\n";
    for name in names {
        let own: Vec<&&AblationRow> = rows.iter().filter(|row| row.name == name).collect();
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

/// Merged dictionaries against per-layer ones: mean over layers of the held-out relative error, and
/// its excess over the first row of each kind.
pub fn merged_markdown(rows: &[AblationRow]) -> String {
    let rows: Vec<&AblationRow> = rows.iter().filter(|row| row.section == "merged").collect();
    let mut text = String::from("| kind | dictionaries | N | error | against per layer |\n|---|---|--:|--:|--:|\n");
    for kind in kinds(&rows, |row| row.kind) {
        let mut names: Vec<(&str, usize)> = Vec::new();
        for row in rows.iter().filter(|row| row.kind == kind) {
            if !names.contains(&(row.name.as_str(), row.atoms)) {
                names.push((&row.name, row.atoms));
            }
        }
        let mut base = None;
        for (name, atoms) in names {
            let of = rows.iter().filter(|r| (r.kind, r.name.as_str(), r.atoms) == (kind, name, atoms));
            if let Some(error) = mean(of.map(|r| r.relative)) {
                let base = *base.get_or_insert(error);
                let excess = 100.0 * (error / base - 1.0);
                let _ = writeln!(text, "| {kind}s | {name} | {atoms} | {} | {excess:+.1} % |", number(error));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(
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
        assert_eq!(lines[0], "| N | s | value, s_n = 1 | value, s_n = 2 | key, s_n = 1 | key, s_n = 2 |");
        assert_eq!(lines[2], "| 1024 | 4 |  | 1 (0.1) | 3 (0.3) |  |");
        assert_eq!(lines[3], "| 8192 | 4 |  |  |  |  |");
        assert_eq!(lines.len(), 5);
    }

    #[test]
    fn options_keep_their_order_and_merged_rows_compare_with_the_first() {
        let rows = [
            row("options", "neuraldict", 1, Kind::Key, (64, 8, 1), 0.2),
            row("options", "mod", 1, Kind::Key, (64, 8, 1), 0.1),
            row("merged", "per layer", 0, Kind::Key, (64, 8, 1), 0.2),
            row("merged", "per layer", 1, Kind::Key, (64, 8, 1), 0.2),
            row("merged", "half", 0, Kind::Key, (128, 8, 1), 0.25),
            row("merged", "half", 1, Kind::Key, (128, 8, 1), 0.19),
        ];
        let text = options_markdown(&rows);
        assert!(text.find("| neuraldict | 0.2 |") < text.find("| mod | 0.1 |"), "{text}");
        let text = merged_markdown(&rows);
        assert!(text.contains("| keys | per layer | 64 | 0.2 | +0.0 % |"), "{text}");
        assert!(text.contains("| keys | half | 128 | 0.22 | +10.0 % |"), "{text}");
    }
}
