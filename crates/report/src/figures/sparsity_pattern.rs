//! The atoms that a prompt uses: tokens against atoms.

use plotters::{coord::Shift, drawing::DrawingArea, prelude::DrawingBackend};

use super::{distinct, shared};
use crate::{
    axes::{self, Axis, Panel},
    canvas::Canvas,
    error::ReportError,
    grouping,
    records::PatternRow,
    save::Figure,
    style::{self, BLUE, VERMILLION},
    ticks::number,
};

/// A dot for every atom that a token's vector of one head uses. Keys and values have separate panels. Blue is a positive
/// coefficient, vermillion a negative one. The size of a dot shows the coefficient relative to the largest of its token.
///
/// Drawing fails with [`ReportError::Empty`] without rows, [`ReportError::Mixed`] with rows of several layers or heads.
pub struct SparsityPattern;

impl Figure for SparsityPattern {
    type Row = PatternRow;
    const NAME: &'static str = "sparsity-pattern";
    const SIZE: (u32, u32) = (960, 520);

    fn draw<DB: DrawingBackend>(root: &DrawingArea<DB, Shift>, data: &[PatternRow]) -> Result<(), ReportError> {
        let canvas = Canvas::new(root, Self::SIZE)?;
        let shared = |field, value: fn(&PatternRow) -> usize| {
            shared("sparsity pattern", "pattern rows of one layer and head", data, field, value)
        };
        let (layer, head) = (shared("layer", |row| row.layer)?, shared("head", |row| row.head)?);
        axes::title(&canvas, &format!("Atoms that layer {layer}, head {head} uses for each token"))?;
        let kinds = grouping::kinds(data, |row| row.kind);
        let plots = axes::columns(Self::SIZE, kinds.len(), axes::TITLE_ROOM, 20.0, true);
        for (kind, plot) in kinds.into_iter().zip(plots) {
            let rows: Vec<&PatternRow> = data.iter().filter(|row| row.kind == kind).collect();
            let last = |of: fn(&PatternRow) -> usize| rows.iter().map(|row| of(row)).max().unwrap_or(0);
            let panel = Panel {
                plot,
                x: Axis::counted("token", 0, last(|row| row.token)),
                y: Axis::counted("atom", 0, rows.iter().map(|row| row.atoms).max().unwrap_or(1)),
            };
            panel.frame(&canvas, style::heading(kind))?;
            let mut largest = std::collections::HashMap::<usize, f32>::new();
            for row in &rows {
                let held = largest.entry(row.token).or_insert(0.0);
                *held = held.max(row.coefficient.abs());
            }
            for row in &rows {
                let share = f64::from(row.coefficient.abs() / largest[&row.token].max(f32::MIN_POSITIVE));
                let colour = if row.coefficient < 0.0 { VERMILLION } else { BLUE };
                canvas.dot(panel.at(row.token as f64, row.atom as f64), 0.8 + 2.2 * share, colour, 0.75)?;
            }
        }
        Ok(())
    }

    fn caption(data: &[PatternRow]) -> String {
        let Some(first) = data.first() else { return "No atoms.".to_owned() };
        let tokens = data.iter().map(|row| row.token).max().unwrap_or(0) + 1;
        let used: Vec<String> = grouping::kinds(data, |row| row.kind)
            .into_iter()
            .map(|kind| {
                let rows: Vec<&PatternRow> = data.iter().filter(|row| row.kind == kind).collect();
                let mut atoms: Vec<usize> = rows.iter().map(|row| row.atom).collect();
                atoms.sort_unstable();
                atoms.dedup();
                let of = rows.iter().map(|row| row.atoms).max().unwrap_or(0);
                format!(
                    "{kind}s use {} of {of} atoms ({} %)",
                    atoms.len(),
                    number(100.0 * atoms.len() as f64 / of.max(1) as f64)
                )
            })
            .collect();
        let chunks = distinct(data.iter().filter(|row| row.chunk > 0).map(|row| row.kind));
        let pieces =
            if chunks.is_empty() { "" } else { " Chunks of a vector share their dictionary and are drawn together." };
        format!(
            "Atoms of {tokens} tokens in layer {}, head {}: blue for positive, vermillion for negative coefficients, dots by size. The {}.{pieces}",
            first.layer,
            first.head,
            used.join(", the ")
        )
    }
}
