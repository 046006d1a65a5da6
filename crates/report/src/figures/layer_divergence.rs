//! Divergence between layers: the paper's Figure 3, with boxes around merged groups.

use plotters::{coord::Shift, drawing::DrawingArea, prelude::DrawingBackend, style::RGBColor};

use crate::{
    axes,
    canvas::{Align, Canvas, Rect},
    error::ReportError,
    grouping,
    records::{DivergenceRow, Kind},
    save::Figure,
    style::{self, GREY, INK, Stroke, TICK, VERMILLION},
    ticks,
};

/// Divergence of disjoint histograms, in nats.
const LARGEST: f64 = std::f64::consts::LN_2;
/// Colours for divergence 0, half of [`LARGEST`], and [`LARGEST`]. As in the paper, dark means similar.
const SCALE: [RGBColor; 3] = [RGBColor(8, 48, 107), RGBColor(107, 174, 214), RGBColor(247, 251, 255)];

/// The matrices of keys and values side by side. Layer 0 is in the upper left corner. Groups of more than one layer have boxes.
///
/// Drawing fails with [`ReportError::Empty`] without rows.
pub struct LayerDivergence;

impl Figure for LayerDivergence {
    type Row = DivergenceRow;
    const NAME: &'static str = "layer-divergence";
    const SIZE: (u32, u32) = (960, 520);

    fn draw<DB: DrawingBackend>(root: &DrawingArea<DB, Shift>, data: &[DivergenceRow]) -> Result<(), ReportError> {
        let canvas = Canvas::new(root, Self::SIZE)?;
        let kinds = grouping::kinds(data, |row| row.kind);
        let Some(layers) = data.iter().map(|row| row.layer + 1).max() else {
            return Err(ReportError::Empty { what: "divergence between layers", expected: "divergence rows" });
        };
        axes::title(&canvas, "How alike the spaces of two layers are")?;
        scale(&canvas)?;
        let plots = axes::columns(Self::SIZE, kinds.len(), axes::TITLE_AND_KEY_ROOM, 30.0, true);
        for (kind, plot) in kinds.into_iter().zip(plots) {
            let side = (plot.right - plot.left).min(plot.bottom - plot.top);
            let plot = Rect { right: plot.left + side, bottom: plot.top + side, ..plot };
            let cell = side / layers as f64;
            let square = |from: usize, to: usize, down: usize, up: usize| Rect {
                left: plot.left + from as f64 * cell,
                top: plot.top + down as f64 * cell,
                right: plot.left + to as f64 * cell,
                bottom: plot.top + up as f64 * cell,
            };
            for row in data.iter().filter(|row| row.kind == kind) {
                canvas.fill(square(row.other, row.other + 1, row.layer, row.layer + 1), colour(row.divergence))?;
            }
            for (from, to) in groups(data, kind).into_iter().filter(|(from, to)| to - from > 1) {
                outline(&canvas, square(from, to, from, to))?;
            }
            for (value, text) in ticks::linear_ticks(0.0, (layers - 1) as f64, 7.0) {
                let centre = (value + 0.5) * cell;
                canvas.text(&text, (plot.left + centre, plot.bottom + 13.0), TICK, GREY, Align::Centre)?;
                canvas.text(&text, (plot.left - 7.0, plot.top + centre), TICK, GREY, Align::Right)?;
            }
            canvas.text("layer", ((plot.left + plot.right) / 2.0, plot.bottom + 32.0), TICK, GREY, Align::Centre)?;
            let heading = format!("{}: {} groups", style::heading(kind), groups(data, kind).len());
            canvas.text(&heading, (plot.left, plot.top - 16.0), style::LABEL, INK, Align::Left)?;
        }
        Ok(())
    }

    fn caption(data: &[DivergenceRow]) -> String {
        let mean = |kind: Kind| {
            let near: Vec<f64> = data
                .iter()
                .filter(|row| row.kind == kind && row.other == row.layer + 1)
                .map(|row| row.divergence)
                .collect();
            ticks::number(near.iter().sum::<f64>() / near.len().max(1) as f64)
        };
        let floor = |kind: Kind| {
            let own = data.iter().filter(|row| row.kind == kind && row.other == row.layer).map(|row| row.divergence);
            let (least, most) = own.fold((f64::MAX, 0f64), |(least, most), d| (least.min(d), most.max(d)));
            format!("{} to {}", ticks::number(least), ticks::number(most))
        };
        format!(
            "Jensen-Shannon divergence (nats, 0 to ln 2) between the 2-D histograms of two layers' unit vectors in the plane of their common principal \
         components; the paper's Figure 3. Boxes: layers that share a dictionary ({} groups of keys, {} of values). Neighbouring layers differ by {} \
         for keys and {} for values on average. The diagonal is the noise floor: two halves of one layer's own vectors differ by {} for \
         keys and {} for values, and no pair at or below that can be told apart.",
            groups(data, Kind::Key).len(),
            groups(data, Kind::Value).len(),
            mean(Kind::Key),
            mean(Kind::Value),
            floor(Kind::Key),
            floor(Kind::Value),
        )
    }
}

/// The groups as ranges of layers. The ends are exclusive.
fn groups(data: &[DivergenceRow], kind: Kind) -> Vec<(usize, usize)> {
    let mut members: Vec<(usize, usize)> =
        data.iter().filter(|row| row.kind == kind).map(|row| (row.layer, row.group)).collect();
    members.sort_unstable();
    members.dedup();
    let mut ranges: Vec<(usize, usize, usize)> = Vec::new();
    for (layer, group) in members {
        match ranges.last_mut() {
            Some((_, end, of)) if *of == group => *end = layer + 1,
            _ => ranges.push((layer, layer + 1, group)),
        }
    }
    ranges.into_iter().map(|(from, to, _)| (from, to)).collect()
}

fn colour(divergence: f64) -> RGBColor {
    let at = (divergence / LARGEST).clamp(0.0, 1.0) * 2.0;
    let (low, high, share) = if at < 1.0 { (SCALE[0], SCALE[1], at) } else { (SCALE[1], SCALE[2], at - 1.0) };
    let mix = |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * share).round() as u8;
    RGBColor(mix(low.0, high.0), mix(low.1, high.1), mix(low.2, high.2))
}

fn outline<DB: DrawingBackend>(canvas: &Canvas<'_, DB>, rect: Rect) -> Result<(), ReportError> {
    let Rect { left, top, right, bottom } = rect;
    let path = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)];
    canvas.line(&path, Stroke { width: 2.0, ..Stroke::solid(VERMILLION) })
}

/// Draws the colour scale under the title.
fn scale<DB: DrawingBackend>(canvas: &Canvas<'_, DB>) -> Result<(), ReportError> {
    const STEPS: usize = 60;
    let (x, y) = axes::KEY_AT;
    let first = "divergence in nats: 0";
    canvas.text(first, (x, y), TICK, GREY, Align::Left)?;
    let left = x + canvas.width_of(first, TICK)? + 8.0;
    for step in 0..STEPS {
        let from = left + 2.0 * step as f64;
        let rect = Rect { left: from, top: y - 6.0, right: from + 2.0, bottom: y + 6.0 };
        canvas.fill(rect, colour(LARGEST * step as f64 / (STEPS - 1) as f64))?;
    }
    canvas.text("ln 2 (nothing in common)", (left + 2.0 * STEPS as f64 + 8.0, y), TICK, GREY, Align::Left)
}
