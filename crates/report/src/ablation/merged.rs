//! Compares dictionaries that layers share with one dictionary per layer.

use kvcsr_records::{AblationRow, Kind};

use crate::{
    grouping::{grouped, kinds, mean, sorted},
    table::Table,
    ticks::number,
};

/// The largest increase of held-out error that merged dictionaries may cost, in percent. They are half as many as the layers.
const MAY_COST: f64 = 10.0;

/// One way of sharing dictionaries among layers.
struct Sharing<'a> {
    name: &'a str,
    atoms: usize,
    error: f64,
    /// Increase over the first row of its kind, which has one dictionary per layer, in percent.
    excess: f64,
}

/// The measured ways of sharing for one kind, with per-layer dictionaries first.
fn sharings(rows: &[AblationRow], kind: Kind) -> Vec<Sharing<'_>> {
    let rows = rows.iter().filter(|row| row.section == "merged" && row.kind == kind);
    let mut ways: Vec<Sharing<'_>> = Vec::new();
    for ((name, atoms), own) in grouped(rows, |row| (row.name.as_str(), row.atoms)) {
        if let Some(error) = mean(own.iter().map(|row| row.relative)) {
            let base = ways.first().map_or(error, |way| way.error);
            ways.push(Sharing { name, atoms, error, excess: 100.0 * (error / base - 1.0) });
        }
    }
    ways
}

fn merged_kinds(rows: &[AblationRow]) -> Vec<Kind> {
    kinds(&rows.iter().filter(|row| row.section == "merged").collect::<Vec<_>>(), |row| row.kind)
}

/// Compares merged dictionaries with per-layer ones: the mean over layers of the held-out relative error, and its increase
/// over the first row of each kind.
pub fn merged_markdown(rows: &[AblationRow]) -> String {
    let mut table = Table::of(["kind", "dictionaries"], ["N", "error", "against per layer"]);
    for kind in merged_kinds(rows) {
        for Sharing { name, atoms, error, excess } in sharings(rows, kind) {
            let (kind, error, excess) = (format!("{kind}s"), number(error), format!("{excess:+.1} %"));
            table.row([kind, name.to_owned(), atoms.to_string(), error, excess]);
        }
    }
    table.into_text()
}

/// Whether merging costs at most ten percent, for each kind and `N`: the best way of sharing, its threshold and the answer.
pub fn merged_verdict(rows: &[AblationRow]) -> String {
    let mut lines = Vec::new();
    for kind in merged_kinds(rows) {
        let ways = sharings(rows, kind);
        let Some((base, merged)) = ways.split_first() else { continue };
        for atoms in sorted(merged.iter().map(|way| way.atoms)) {
            let of_size = merged.iter().filter(|way| way.atoms == atoms);
            let Some(best) = of_size.min_by(|a, b| a.excess.total_cmp(&b.excess)) else { continue };
            let answer = if best.excess <= MAY_COST { "within" } else { "not within" };
            let size = match atoms == base.atoms {
                true => "as many atoms each".to_owned(),
                false => format!("{} times the atoms each", number(atoms as f64 / base.atoms as f64)),
            };
            lines.push(format!(
                "- {kind}s, {size}: {} costs {:+.1} % held-out error, {answer} {MAY_COST} %.",
                best.name, best.excess
            ));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ablation::tests::row;

    #[test]
    fn merged_rows_compare_with_the_first() {
        let rows = [
            row("merged", "per layer", 0, Kind::Key, (64, 8, 1), 0.2),
            row("merged", "per layer", 1, Kind::Key, (64, 8, 1), 0.2),
            row("merged", "half", 0, Kind::Key, (128, 8, 1), 0.25),
            row("merged", "half", 1, Kind::Key, (128, 8, 1), 0.19),
        ];
        let text = merged_markdown(&rows);
        assert!(text.contains("| keys | per layer | 64 | 0.2 | +0.0 % |"), "{text}");
        assert!(text.contains("| keys | half | 128 | 0.22 | +10.0 % |"), "{text}");
    }

    #[test]
    fn the_verdict_names_the_best_way_for_each_number_of_atoms() {
        let way = |name: &str, atoms, error| row("merged", name, 0, Kind::Value, (atoms, 4, 2), error);
        let rows = [
            way("30, one per layer", 512, 0.2),
            way("15 merged at delta_1 = 0.3", 512, 0.25),
            way("15 merged at delta_2 = 0.4", 512, 0.23),
            way("15 merged at delta_1 = 0.3", 1024, 0.21),
        ];
        assert_eq!(
            merged_verdict(&rows),
            "- values, as many atoms each: 15 merged at delta_2 = 0.4 costs +15.0 % held-out error, not within 10 %.\n\
             - values, 2 times the atoms each: 15 merged at delta_1 = 0.3 costs +5.0 % held-out error, within 10 %."
        );
    }
}
