//! Axes and panels: plain frames with light grids, linear or logarithmic scales, and units in the titles.
//!
//! The chart builder of plotters fixes the scale of an axis in its type, and does not give pixel positions for labels. These
//! figures choose the scale from the data and place labels at the lines. This module therefore maps values to units itself, and
//! plotters only draws strokes and glyphs.

use plotters::prelude::DrawingBackend;

use crate::{
    canvas::{Align, Canvas, Rect},
    error::ReportError,
    style::{FAINT, GREY, INK, LABEL, Stroke, TICK, TITLE},
    ticks::{linear_ticks, log_ticks, number},
};

/// Linear or logarithmic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Equal differences are equal distances.
    Linear,
    /// Equal ratios are equal distances. Only positive values.
    Log,
}

/// One axis: a range, ticks and a title with its unit.
#[derive(Clone, Debug)]
pub struct Axis {
    /// Title, with the unit if there is one.
    pub title: String,
    scale: Scale,
    low: f64,
    high: f64,
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// A linear axis from `low` to `high` with round ticks.
    pub fn linear(title: &str, low: f64, high: f64) -> Self {
        let high = if high > low { high } else { low + 1.0 };
        let ticks = linear_ticks(low, high, 5.0);
        Self { title: title.to_owned(), scale: Scale::Linear, low, high, ticks }
    }

    /// A linear axis for whole numbers (layers, epochs). It has ticks at integers only.
    pub fn counted(title: &str, low: usize, high: usize) -> Self {
        let mut axis = Self::linear(title, low as f64, high.max(low + 1) as f64);
        axis.ticks.retain(|(at, _)| at.fract() == 0.0);
        axis
    }

    /// A logarithmic axis that holds all positive `values` with a margin. Other values are ignored. Without positive values it runs
    /// from 0.1 to 1.
    pub fn log(title: &str, values: impl IntoIterator<Item = f64>) -> Self {
        const MARGIN: f64 = 0.05;
        let (mut low, mut high) = (f64::INFINITY, 0.0_f64);
        for value in values.into_iter().filter(|value| value.is_finite() && *value > 0.0) {
            (low, high) = (low.min(value), high.max(value));
        }
        if high == 0.0 {
            (low, high) = (0.1, 1.0);
        }
        // A horizontal line needs a range too.
        let span = (high / low).max(1.6).ln();
        let (low, high) = (low / (MARGIN * span).exp(), high.max(low * 1.6) * (MARGIN * span).exp());
        Self { title: title.to_owned(), scale: Scale::Log, low, high, ticks: log_ticks(low, high) }
    }

    /// Replaces the ticks by those of `values` that are inside the range.
    #[must_use]
    pub fn with_ticks(mut self, values: impl IntoIterator<Item = f64>) -> Self {
        let (low, high) = (self.low, self.high);
        self.ticks = values.into_iter().filter(|at| (low..=high).contains(at)).map(|at| (at, number(at))).collect();
        self
    }

    /// The position of `value`: 0 at the low end, 1 at the high end. On a logarithmic axis values that are not positive are at the
    /// low end.
    pub fn fraction(&self, value: f64) -> f64 {
        match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log if value <= 0.0 => 0.0,
            Scale::Log => (value / self.low).ln() / (self.high / self.low).ln(),
        }
    }
}

/// One chart: a plot rectangle with its two axes.
pub struct Panel {
    /// Where values are drawn.
    pub plot: Rect,
    /// Horizontal axis.
    pub x: Axis,
    /// Vertical axis.
    pub y: Axis,
}

impl Panel {
    /// The point of the values (x, y).
    pub fn at(&self, x: f64, y: f64) -> (f64, f64) {
        (
            self.plot.left + self.x.fraction(x) * (self.plot.right - self.plot.left),
            self.plot.bottom - self.y.fraction(y) * (self.plot.bottom - self.plot.top),
        )
    }

    /// The points of a line, from left to right.
    pub fn path(&self, values: &[(f64, f64)]) -> Vec<(f64, f64)> {
        let mut values = values.to_vec();
        values.sort_by(|a, b| a.0.total_cmp(&b.0));
        values.into_iter().map(|(x, y)| self.at(x, y)).collect()
    }

    /// Draws grid, ticks and titles. The heading and the title of the y axis are horizontal texts above the plot.
    pub fn frame<DB: DrawingBackend>(&self, canvas: &Canvas<'_, DB>, heading: &str) -> Result<(), ReportError> {
        let Rect { left, top, right, bottom } = self.plot;
        let grid = Stroke { width: 1.0, ..Stroke::solid(FAINT) };
        for (value, text) in &self.y.ticks {
            let (_, y) = self.at(self.x.low, *value);
            canvas.line(&[(left, y), (right, y)], grid)?;
            canvas.text(text, (left - 7.0, y), TICK, GREY, Align::Right)?;
        }
        let mut free = f64::NEG_INFINITY;
        for (value, text) in &self.x.ticks {
            let (x, _) = self.at(*value, self.y.low);
            canvas.line(&[(x, bottom), (x, bottom + 5.0)], Stroke { width: 1.0, ..Stroke::solid(GREY) })?;
            let width = canvas.width_of(text, TICK)?;
            if x - width / 2.0 > free {
                canvas.text(text, (x, bottom + 15.0), TICK, GREY, Align::Centre)?;
                free = x + width / 2.0 + 6.0;
            }
        }
        canvas.line(&[(left, bottom), (right, bottom)], Stroke { width: 1.0, ..Stroke::solid(GREY) })?;
        canvas.text(&self.x.title, ((left + right) / 2.0, bottom + 36.0), TICK, GREY, Align::Centre)?;
        let margin = left - AXIS_ROOM + 4.0;
        canvas.text(&self.y.title, (margin, top - 16.0), TICK, GREY, Align::Left)?;
        canvas.text(heading, (margin, top - 38.0), LABEL, INK, Align::Left)
    }
}

const AXIS_ROOM: f64 = 62.0;
const HEADING_ROOM: f64 = 52.0;
const BELOW_ROOM: f64 = 52.0;

/// Draws the figure's title at the top.
pub fn title<DB: DrawingBackend>(canvas: &Canvas<'_, DB>, text: &str) -> Result<(), ReportError> {
    canvas.text(text, (4.0, 16.0), TITLE, INK, Align::Left)
}

/// Height of the title alone. [`TITLE_AND_KEY_ROOM`] is the height of the title with a [`Canvas::key`] under it at [`KEY_AT`].
pub const TITLE_ROOM: f64 = 30.0;
/// See [`TITLE_ROOM`].
pub const TITLE_AND_KEY_ROOM: f64 = 56.0;
/// Position of a key under the title.
pub const KEY_AT: (f64, f64) = (4.0, 42.0);

/// `count` plot rectangles of equal size side by side in a figure of nominal `size`. They are below `above` units of title, and
/// leave room for axes. Each has `label_room` to its right for labels at line ends. Without headings less room is left above.
pub fn columns(size: (u32, u32), count: usize, above: f64, label_room: f64, headings: bool) -> Vec<Rect> {
    let (width, height) = (f64::from(size.0), f64::from(size.1));
    let each = width / count as f64;
    let heading = if headings { HEADING_ROOM } else { HEADING_ROOM - 22.0 };
    (0..count)
        .map(|index| Rect {
            left: each * index as f64 + AXIS_ROOM,
            top: above + heading,
            right: each * (index + 1) as f64 - label_room.max(14.0),
            bottom: height - BELOW_ROOM,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, text)| text.as_str()).collect()
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(&Axis::linear("x", 0.0, 29.0)), ["0", "10", "20"]);
        assert_eq!(ticks(&Axis::linear("x", 0.0, 1.0)), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(ticks(&Axis::counted("x", 0, 3)), ["0", "1", "2", "3"]);
        assert_eq!(ticks(&Axis::log("x", [0.001, 10.0])), ["0.001", "0.01", "0.1", "1", "10"]);
    }

    #[test]
    fn a_narrow_or_flat_log_axis_still_has_ticks() {
        for values in [vec![0.2], vec![0.21, 0.26], vec![0.0, -1.0], vec![3.0, 5.0]] {
            let axis = Axis::log("x", values.clone());
            assert!(axis.ticks.len() >= 3, "{values:?} gives {:?}", axis.ticks);
            assert!(values.iter().all(|v| (0.0..=1.0).contains(&axis.fraction(*v))));
        }
    }

    #[test]
    fn log_positions_depend_on_ratios() {
        let axis = Axis::log("x", [1.0, 100.0]);
        let (a, b, c) = (axis.fraction(1.0), axis.fraction(10.0), axis.fraction(100.0));
        assert!((b - a - (c - b)).abs() < 1e-12);
        assert_eq!(axis.fraction(0.0), 0.0);
    }
}
