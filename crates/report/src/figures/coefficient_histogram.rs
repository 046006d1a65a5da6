//! Sizes of coefficients, by the step of matching pursuit that picked them.

use plotters::{coord::Shift, drawing::DrawingArea, prelude::DrawingBackend};

use super::{distinct, listed};
use crate::{
    axes::{self, Axis, Panel},
    canvas::Canvas,
    error::ReportError,
    grouping,
    labels::{self, EndLabel},
    records::CoefficientRow,
    save::Figure,
    style::{self, Stroke},
};

/// Maximum number of steps drawn. They are the first powers of two: 1, 2, 4 and 8.
const LINES: usize = 4;

/// Fraction of the coefficients against their size divided by the vector's length. There is one line for each of the steps 1,
/// 2, 4 and 8 of matching pursuit. Keys and values have separate panels.
///
/// Drawing fails with [`ReportError::Empty`] without rows.
pub struct CoefficientHistogram;

impl Figure for CoefficientHistogram {
    type Row = CoefficientRow;
    const NAME: &'static str = "coefficient-histogram";
    const SIZE: (u32, u32) = (900, 420);

    fn draw<DB: DrawingBackend>(root: &DrawingArea<DB, Shift>, data: &[CoefficientRow]) -> Result<(), ReportError> {
        let canvas = Canvas::new(root, Self::SIZE)?;
        let kinds = grouping::kinds(data, |row| row.kind);
        if kinds.is_empty() {
            return Err(ReportError::Empty { what: "sizes of coefficients", expected: "rows of coefficients" });
        }
        axes::title(&canvas, "How large coefficients are, by step of pursuit")?;
        let room = labels::end_room(&canvas, ["step 8"])?;
        for (&kind, plot) in kinds.iter().zip(axes::columns(Self::SIZE, kinds.len(), axes::TITLE_ROOM, room, true)) {
            let steps = steps(data, kind);
            let most = data.iter().filter(|row| row.kind == kind && steps.contains(&row.step)).map(|row| row.share);
            let panel = Panel {
                plot,
                x: Axis::linear("coefficient over length of the vector", -1.0, 1.0),
                y: Axis::linear("share of coefficients", 0.0, 1.05 * most.fold(0.0, f64::max)),
            };
            panel.frame(&canvas, style::heading(kind))?;
            let mut ends = Vec::new();
            for (index, &step) in steps.iter().enumerate() {
                let bins = data.iter().filter(|row| row.kind == kind && row.step == step);
                let line: Vec<(f64, f64)> =
                    bins.flat_map(|row| [(row.low, row.share), (row.high, row.share)]).collect();
                // Keep the order of the bins, because the two corners of each vertical edge have the same x.
                let path: Vec<(f64, f64)> = line.iter().map(|&(x, y)| panel.at(x, y)).collect();
                canvas.line(&path, Stroke::solid(style::colour(index)))?;
                if let Some(&end) = path.last() {
                    ends.push(EndLabel { text: format!("step {step}"), end, colour: style::colour(index) });
                }
            }
            labels::at_line_ends(&canvas, &panel, &ends)?;
        }
        Ok(())
    }

    fn caption(data: &[CoefficientRow]) -> String {
        let mut parts = Vec::new();
        for kind in grouping::kinds(data, |row| row.kind) {
            for step in steps(data, kind) {
                let rows = data.iter().filter(|row| row.kind == kind && row.step == step);
                let mean: f64 = rows.map(|row| row.share * ((row.low + row.high) / 2.0).abs()).sum();
                parts.push(format!("{mean:.2} ({kind}s, step {step})"));
            }
        }
        format!(
            "Share of coefficients by their size, as a share of the length of the vector (of the chunk, for values) that they code, after each step \
         of pursuit. Mean size: {}.",
            listed(&parts)
        )
    }
}

/// The steps of one kind that are drawn: those of 1, 2, 4, 8 that exist.
fn steps(data: &[CoefficientRow], kind: crate::Kind) -> Vec<usize> {
    let all = distinct(data.iter().filter(|row| row.kind == kind).map(|row| row.step));
    all.into_iter().filter(|step| step.is_power_of_two()).take(LINES).collect()
}
