//! How evenly atoms are used: the fraction of picks of each atom, most used first.

use plotters::{coord::Shift, drawing::DrawingArea, prelude::DrawingBackend};

use super::distinct;
use crate::{
    axes::{self, Axis, Panel},
    canvas::{Align, Canvas},
    error::ReportError,
    grouping,
    labels::{self, EndLabel},
    records::UsageRow,
    save::Figure,
    style::{self, GREY, Stroke, TICK},
    ticks::number,
};

/// Fraction of all picks (log) against the rank of the atom (log), one line per layer. Keys and values have separate panels.
///
/// Drawing fails with [`ReportError::Empty`] if no atom was used.
pub struct AtomUsage;

impl Figure for AtomUsage {
    type Row = UsageRow;
    const NAME: &'static str = "atom-usage";
    const SIZE: (u32, u32) = (900, 420);

    fn draw<DB: DrawingBackend>(root: &DrawingArea<DB, Shift>, data: &[UsageRow]) -> Result<(), ReportError> {
        let canvas = Canvas::new(root, Self::SIZE)?;
        if data.iter().all(|row| row.uses == 0) {
            return Err(ReportError::Empty { what: "usage of atoms", expected: "rows of atoms that were used" });
        }
        let kinds = grouping::kinds(data, |row| row.kind);
        let layers = distinct(data.iter().map(|row| row.layer));
        let names: Vec<String> = layers.iter().map(|layer| format!("layer {layer}")).collect();
        axes::title(&canvas, "How often each atom is used")?;
        canvas.text("if all were used alike: dashed", axes::KEY_AT, TICK, GREY, Align::Left)?;
        let room = labels::end_room(&canvas, names.iter().map(String::as_str))?;
        let plots = axes::columns(Self::SIZE, kinds.len(), axes::TITLE_AND_KEY_ROOM, room, true);
        for (kind, plot) in kinds.into_iter().zip(plots) {
            let lines: Vec<Vec<(f64, f64)>> = layers.iter().map(|&layer| shares(data, kind, layer)).collect();
            let all = || lines.iter().flatten();
            let panel = Panel {
                plot,
                x: Axis::log("rank of the atom, most used first (log)", all().map(|p| p.0)),
                y: Axis::log("share of all picks (log)", all().map(|p| p.1)),
            };
            panel.frame(&canvas, style::heading(kind))?;
            let atoms = data.iter().filter(|row| row.kind == kind).map(|row| row.atom + 1).max().unwrap_or(1) as f64;
            canvas.line(&panel.path(&[(1.0, 1.0 / atoms), (atoms, 1.0 / atoms)]), Stroke::dashed(GREY))?;
            let mut ends = Vec::new();
            for (index, (line, name)) in lines.iter().zip(&names).enumerate() {
                let path = panel.path(line);
                canvas.line(&path, Stroke::solid(style::colour(index)))?;
                if let Some(&end) = path.last() {
                    ends.push(EndLabel { text: name.clone(), end, colour: style::colour(index) });
                }
            }
            labels::at_line_ends(&canvas, &panel, &ends)?;
        }
        Ok(())
    }

    fn caption(data: &[UsageRow]) -> String {
        let mut parts = Vec::new();
        for kind in grouping::kinds(data, |row| row.kind) {
            for layer in distinct(data.iter().filter(|row| row.kind == kind).map(|row| row.layer)) {
                let rows: Vec<&UsageRow> = data.iter().filter(|row| row.kind == kind && row.layer == layer).collect();
                let unused = rows.iter().filter(|row| row.uses == 0).count();
                let counts: Vec<usize> = rows.iter().map(|row| row.uses).collect();
                parts.push(format!(
                    "{kind}s of layer {layer}: entropy {} of {} nats, {unused} of {} atoms unused",
                    number(entropy(&counts)),
                    number((rows.len() as f64).ln()),
                    rows.len()
                ));
            }
        }
        format!("Share of all picks that fall on an atom, by rank, both axes logarithmic: {}.", parts.join("; "))
    }
}

/// Entropy of the picks in nats: `ln N` if all `N` atoms are used equally often, 0 if only one is used.
pub fn entropy(counts: &[usize]) -> f64 {
    let total: usize = counts.iter().sum();
    counts
        .iter()
        .filter(|&&count| count > 0)
        .map(|&count| {
            let share = count as f64 / total as f64;
            -share * share.ln()
        })
        .sum()
}

fn shares(data: &[UsageRow], kind: crate::Kind, layer: usize) -> Vec<(f64, f64)> {
    let mut counts: Vec<usize> =
        data.iter().filter(|row| row.kind == kind && row.layer == layer && row.uses > 0).map(|row| row.uses).collect();
    counts.sort_unstable_by(|a, b| b.cmp(a));
    let total: usize = counts.iter().sum();
    counts.iter().enumerate().map(|(rank, &count)| (rank as f64 + 1.0, count as f64 / total as f64)).collect()
}

#[cfg(test)]
mod tests {
    use super::entropy;

    #[test]
    fn entropy_of_even_and_single_use() {
        assert!((entropy(&[5, 5, 5, 5]) - 4.0_f64.ln()).abs() < 1e-12);
        assert_eq!(entropy(&[0, 9, 0]), 0.0);
        assert_eq!(entropy(&[0, 0]), 0.0);
    }
}
