//! What schemes do to keys and to attention logits, by layer.

use plotters::{coord::Shift, drawing::DrawingArea, prelude::DrawingBackend};

use super::{RELATIVE_ERROR, distinct};
use crate::{
    axes::{self, Axis, Panel},
    canvas::Canvas,
    error::ReportError,
    grouping::{grouped, mean},
    labels::{self, EndLabel},
    records::LogitRow,
    save::Figure,
    style::{self, GREY, Stroke},
};

/// The part of a scheme's name that says that it subtracts the mean key.
const CENTRE: &str = "+centre";

/// Error of keys (log), and one less the correlation of logits (log), by layer. One colour per scheme; with `+centre` dashed.
///
/// Drawing fails with [`ReportError::Empty`] without rows.
pub struct LogitCorrelation;

impl Figure for LogitCorrelation {
    type Row = LogitRow;
    const NAME: &'static str = "logit-correlation";
    const SIZE: (u32, u32) = (1160, 460);

    fn draw<DB: DrawingBackend>(root: &DrawingArea<DB, Shift>, data: &[LogitRow]) -> Result<(), ReportError> {
        let canvas = Canvas::new(root, Self::SIZE)?;
        if data.is_empty() {
            return Err(ReportError::Empty { what: "correlation of logits by layer", expected: "logit rows" });
        }
        let schemes = distinct(data.iter().map(|row| plain(&row.scheme)));
        let room = labels::end_room(&canvas, schemes.iter().map(String::as_str))?;
        axes::title(&canvas, "What schemes do to the keys of a layer, and to its logits")?;
        canvas.key(axes::KEY_AT, &[(Stroke::solid(GREY), "keys as they are"), (Stroke::dashed(GREY), CENTRE)])?;
        let (first, last) =
            data.iter().fold((usize::MAX, 0), |(low, high), row| (low.min(row.layer), high.max(row.layer)));
        let lines = grouped(data, |row| &row.scheme);
        let plots = axes::columns(Self::SIZE, PANELS.len(), axes::TITLE_AND_KEY_ROOM, room, true);
        for ((heading, title, of), plot) in PANELS.into_iter().zip(plots) {
            let y = Axis::log(&format!("{title} (log)"), data.iter().map(of));
            let panel = Panel { plot, x: Axis::counted("layer", first, last), y };
            panel.frame(&canvas, heading)?;
            let mut ends: Vec<EndLabel> = Vec::new();
            for (scheme, rows) in &lines {
                let text = plain(scheme);
                let colour = style::colour(schemes.iter().position(|known| *known == text).unwrap_or(0));
                let dashed = scheme.contains(CENTRE);
                let stroke = if dashed { Stroke::dashed(colour) } else { Stroke::solid(colour) };
                let path = panel.path(&rows.iter().map(|row| (row.layer as f64, of(row))).collect::<Vec<_>>());
                canvas.line(&path, stroke)?;
                // The two lines of a colour share a label.
                match path.last() {
                    Some(&end) if ends.iter().all(|label| label.text != text) => {
                        ends.push(EndLabel { text, end, colour });
                    }
                    _ => {}
                }
            }
            labels::at_line_ends(&canvas, &panel, &ends)?;
        }
        Ok(())
    }

    fn caption(data: &[LogitRow]) -> String {
        let mut text = "Left: squared error of a layer's keys as a share of their energy. Right: one less the correlation between the \
                        logits of queries with exact keys and with the scheme's (0: the same but for a shift and a scale; 1: nothing in common). \
                        Dashed: the mean key of each head is subtracted first."
            .to_owned();
        for (scheme, rows) in grouped(data, |row| &row.scheme) {
            let worst = rows.iter().min_by(|a, b| a.correlation.total_cmp(&b.correlation));
            if let (Some(mean), Some(worst)) = (mean(rows.iter().map(|row| row.correlation)), worst) {
                text += &format!(
                    " {scheme}: correlation {mean:.3} on average, {:.3} in layer {}.",
                    worst.correlation, worst.layer
                );
            }
        }
        text
    }
}

/// A panel's heading, the title of its vertical axis, and what it shows of a row.
type Shows = (&'static str, &'static str, fn(&LogitRow) -> f64);

const PANELS: [Shows; 2] =
    [("Keys", RELATIVE_ERROR, |row| row.relative), ("Logits", "1 - correlation", |row| 1.0 - row.correlation)];

/// A scheme's name without `+centre`.
fn plain(scheme: &str) -> String {
    scheme.replacen(CENTRE, "", 1)
}
