//! Scatter panels of vectors in the plane of their principal components, shared by Figures 2a and 2b.

use plotters::{coord::Shift, drawing::DrawingArea, prelude::DrawingBackend, style::RGBColor};

use super::distinct;
use crate::{
    axes::{self, Axis, Panel},
    canvas::{Align, Canvas},
    error::ReportError,
    records::ScatterRow,
    style::{GREY, TICK},
};

/// Draws one panel for each distinct `panel`, from left to right, and a key of the groups under the title.
pub(super) fn draw<DB: DrawingBackend>(
    root: &DrawingArea<DB, Shift>,
    data: &[ScatterRow],
    size: (u32, u32),
    title: &str,
    colour: impl Fn(usize) -> RGBColor,
) -> Result<(), ReportError> {
    let canvas = Canvas::new(root, size)?;
    let panels = distinct(data.iter().map(|row| row.panel.as_str()));
    if panels.is_empty() {
        return Err(ReportError::Empty { what: "scatter of vectors", expected: "points" });
    }
    axes::title(&canvas, title)?;
    let (mut x, y) = axes::KEY_AT;
    let mut groups = distinct(data.iter().map(|row| (row.group, row.label.as_str())));
    groups.sort_unstable();
    for (group, label) in groups {
        canvas.dot((x + 5.0, y), 5.0, colour(group), 1.0)?;
        canvas.text(label, (x + 16.0, y), TICK, GREY, Align::Left)?;
        x += 16.0 + canvas.width_of(label, TICK)? + 18.0;
    }
    for (name, plot) in panels.iter().zip(axes::columns(size, panels.len(), axes::TITLE_AND_KEY_ROOM, 14.0, true)) {
        let rows: Vec<&ScatterRow> = data.iter().filter(|row| row.panel == *name).collect();
        let axis = |title: &str, of: fn(&ScatterRow) -> f64| {
            let (low, high) = rows
                .iter()
                .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), row| (low.min(of(row)), high.max(of(row))));
            let margin = 0.05 * (high - low).max(1e-12);
            Axis::linear(title, low - margin, high + margin)
        };
        let panel = Panel { plot, x: axis("first component", |r| r.x), y: axis("second component", |r| r.y) };
        panel.frame(&canvas, name)?;
        for row in rows {
            canvas.dot(panel.at(row.x, row.y), 2.0, colour(row.group), 0.6)?;
        }
    }
    Ok(())
}

/// A sentence with the fraction of the variance that is in each panel's plane.
pub(super) fn variances(data: &[ScatterRow]) -> String {
    let panels = distinct(data.iter().map(|row| (row.panel.as_str(), (100.0 * row.variance).round() as i64)));
    let shares: Vec<String> = panels.iter().map(|(panel, share)| format!("{share} % ({panel})")).collect();
    format!("Share of the variance that lies in the plane: {}.", shares.join(", "))
}
