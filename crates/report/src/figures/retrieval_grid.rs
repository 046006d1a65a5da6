//! Retrieval by depth and length: one heat map per task and scheme.

use plotters::{coord::Shift, drawing::DrawingArea, prelude::DrawingBackend, style::RGBColor};

use super::{distinct, listed};
use crate::{
    axes,
    canvas::{Align, Canvas, Rect},
    error::ReportError,
    records::RetrievalRow,
    save::Figure,
    style::{self, GREY, INK, TICK},
    ticks,
};

/// Colours for no retrieval and for complete retrieval. They are readable in grey and for colour-blind readers.
const SCALE: [RGBColor; 2] = [RGBColor(253, 231, 218), RGBColor(33, 102, 172)];
/// Number of schemes per line. More schemes take more lines.
const PER_LINE: usize = 6;

/// Tasks are below each other, schemes are next to each other. In each panel lengths go to the right and depths downwards. Every
/// cell shows the score in percent. Cells that were not run stay white.
///
/// Drawing fails with [`ReportError::Empty`] without rows.
pub struct RetrievalGrid;

impl Figure for RetrievalGrid {
    type Row = RetrievalRow;
    const NAME: &'static str = "retrieval-grid";
    const SIZE: (u32, u32) = (960, 560);

    fn draw<DB: DrawingBackend>(root: &DrawingArea<DB, Shift>, data: &[RetrievalRow]) -> Result<(), ReportError> {
        if data.is_empty() {
            return Err(ReportError::Empty { what: "retrieval over depth and length", expected: "retrieval rows" });
        }
        let canvas = Canvas::new(root, Self::SIZE)?;
        axes::title(&canvas, "Retrieval over depth and length, percent of answers right")?;
        let (tasks, schemes) =
            (distinct(data.iter().map(|row| &row.task)), distinct(data.iter().map(|row| &row.scheme)));
        let lines: Vec<(&String, &[&String])> =
            tasks.iter().flat_map(|&task| schemes.chunks(PER_LINE).map(move |part| (task, part))).collect();
        let columns = schemes.len().min(PER_LINE);
        let (left, top, foot) = (72.0, 48.0, 18.0);
        let height = (f64::from(Self::SIZE.1) - top - foot) / lines.len() as f64;
        let width = (f64::from(Self::SIZE.0) - left - 16.0) / columns as f64;
        for (at, (task, part)) in lines.iter().enumerate() {
            let top = top + at as f64 * height;
            for (column, &scheme) in part.iter().enumerate() {
                let x = left + column as f64 * width;
                let plot = Rect { left: x, top: top + 44.0, right: x + width - 14.0, bottom: top + height - 44.0 };
                let own: Vec<&RetrievalRow> =
                    data.iter().filter(|row| row.task == **task && row.scheme == *scheme).collect();
                panel(&canvas, plot, &own, data)?;
                canvas.text(scheme, (plot.left, plot.top - 10.0), TICK, INK, Align::Left)?;
                if column == 0 {
                    canvas.text(task, (4.0, plot.top - 32.0), style::LABEL, INK, Align::Left)?;
                    canvas.text("depth", (4.0, plot.top - 10.0), TICK, GREY, Align::Left)?;
                    for (depth, y) in places(sorted(data, |row| row.depth), plot.top, plot.bottom) {
                        let label = format!("{} %", ticks::number(100.0 * depth));
                        canvas.text(&label, (plot.left - 6.0, y), TICK, GREY, Align::Right)?;
                    }
                }
            }
            if at + 1 == lines.len() {
                canvas.text("tokens", (4.0, top + height - 30.0), TICK, GREY, Align::Left)?;
            }
        }
        Ok(())
    }

    fn caption(data: &[RetrievalRow]) -> String {
        let per_cell = data.iter().map(|row| row.n).min().unwrap_or(0);
        let means: Vec<String> = distinct(data.iter().map(|row| row.scheme.clone()))
            .into_iter()
            .map(|scheme| {
                let own: Vec<f64> = data.iter().filter(|row| row.scheme == scheme).map(|row| row.score).collect();
                format!("{scheme} {:.0} %", 100.0 * own.iter().sum::<f64>() / own.len() as f64)
            })
            .collect();
        format!(
            "A code of five digits at a depth of a text of a length, asked for at the end: `passkey` in repeated filler, `needle` in the plots of \
         stories, `keys` one of eight codes, `variables` a value through three assignments. n = {per_cell} {} per cell, so a cell tells little alone. Over all cells: {}.",
            if per_cell == 1 { "prompt" } else { "prompts" },
            listed(&means)
        )
    }
}

/// Draws one heat map.
fn panel<DB: DrawingBackend>(
    canvas: &Canvas<'_, DB>,
    plot: Rect,
    own: &[&RetrievalRow],
    all: &[RetrievalRow],
) -> Result<(), ReportError> {
    let lengths = places(sorted(all, |row| row.tokens as f64), plot.left, plot.right);
    let depths = places(sorted(all, |row| row.depth), plot.top, plot.bottom);
    let half =
        ((plot.right - plot.left) / lengths.len() as f64 / 2.0, (plot.bottom - plot.top) / depths.len() as f64 / 2.0);
    for &(tokens, x) in &lengths {
        for &(depth, y) in &depths {
            let Some(row) = own.iter().find(|row| row.tokens as f64 == tokens && row.depth == depth) else { continue };
            let cell = Rect { left: x - half.0, top: y - half.1, right: x + half.0 - 1.0, bottom: y + half.1 - 1.0 };
            canvas.fill(cell, colour(row.score))?;
            let ink = if row.score > 0.5 { RGBColor(255, 255, 255) } else { INK };
            canvas.text(&format!("{:.0}", 100.0 * row.score), (x, y), TICK, ink, Align::Centre)?;
        }
        canvas.text(&ticks::number(tokens), (x, plot.bottom + 13.0), TICK, GREY, Align::Centre)?;
    }
    Ok(())
}

/// The distinct values of a coordinate, smallest first.
fn sorted(data: &[RetrievalRow], of: impl Fn(&RetrievalRow) -> f64) -> Vec<f64> {
    let mut values = distinct(data.iter().map(of));
    values.sort_by(f64::total_cmp);
    values
}

/// Each value with the middle of its cell between `from` and `to`.
fn places(values: Vec<f64>, from: f64, to: f64) -> Vec<(f64, f64)> {
    let cell = (to - from) / values.len() as f64;
    values.into_iter().enumerate().map(|(at, value)| (value, from + (at as f64 + 0.5) * cell)).collect()
}

fn colour(score: f64) -> RGBColor {
    let share = score.clamp(0.0, 1.0);
    let mix = |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * share).round() as u8;
    let [low, high] = SCALE;
    RGBColor(mix(low.0, high.0), mix(low.1, high.1), mix(low.2, high.2))
}
