//! Time to compress a context and to decode a token after it, by the length of the context.

use plotters::{coord::Shift, drawing::DrawingArea, prelude::DrawingBackend};

use super::{distinct, frontier::method, listed};
use crate::{
    axes::{self, Axis, Panel},
    canvas::Canvas,
    error::ReportError,
    labels::{self, EndLabel},
    records::SchemeSummary,
    save::Figure,
    style::{self, INK, Stroke},
};

/// Milliseconds against tokens of context, both logarithmic. One panel shows compression and one decoding. Every scheme has a
/// line, coloured by method and named at its right end. Uncompressed caches are dark. Only rows over all domains and times above
/// 0 are drawn. An uncompressed cache takes no time to compress, because it uses the prefill as it is.
///
/// Drawing fails with [`ReportError::Empty`] without a time above 0.
pub struct TimeLength;

impl Figure for TimeLength {
    type Row = SchemeSummary;
    const NAME: &'static str = "time-length";
    const SIZE: (u32, u32) = (1240, 760);

    fn draw<DB: DrawingBackend>(root: &DrawingArea<DB, Shift>, rows: &[SchemeSummary]) -> Result<(), ReportError> {
        let canvas = Canvas::new(root, Self::SIZE)?;
        let rows = whole(rows);
        let timed = |of: Time| rows.iter().filter_map(move |row| Some((row, of(row).filter(|ms| *ms > 0.0)?)));
        if MEASURES.iter().all(|measure| timed(measure.of).next().is_none()) {
            return Err(ReportError::Empty { what: "times by context length", expected: "rows with a time above 0" });
        }
        let schemes = distinct(rows.iter().map(|row| row.label()));
        let methods = distinct(schemes.iter().map(String::as_str).filter(|scheme| !uncompressed(scheme)).map(method));
        let contexts = distinct(rows.iter().map(|row| row.context));
        let room = labels::end_room(&canvas, schemes.iter().map(String::as_str))?;
        axes::title(&canvas, "Time against context length")?;
        for (measure, plot) in
            MEASURES.iter().zip(axes::columns(Self::SIZE, MEASURES.len(), axes::TITLE_ROOM, room, true))
        {
            let x = Axis::log("tokens of context (log)", contexts.iter().map(|&n| n as f64))
                .with_ticks(contexts.iter().map(|&n| n as f64));
            let panel = Panel { plot, x, y: Axis::log(measure.axis, timed(measure.of).map(|(_, ms)| ms)) };
            panel.frame(&canvas, measure.heading)?;
            let mut ends = Vec::new();
            for scheme in &schemes {
                let place = methods.iter().position(|name| *name == method(scheme));
                let colour = place.filter(|_| !uncompressed(scheme)).map_or(INK, style::colour);
                let line: Vec<(f64, f64)> = timed(measure.of)
                    .filter(|(row, _)| row.label() == *scheme)
                    .map(|(row, ms)| (row.context as f64, ms))
                    .collect();
                let path = panel.path(&line);
                canvas.line(&path, Stroke { width: 1.5, ..Stroke::solid(colour) })?;
                for &point in &path {
                    canvas.dot(point, 3.0, colour, 1.0)?;
                }
                if let Some(&end) = path.last() {
                    ends.push(EndLabel { text: scheme.clone(), end, colour });
                }
            }
            labels::at_line_ends(&canvas, &panel, &ends)?;
        }
        Ok(())
    }

    fn caption(rows: &[SchemeSummary]) -> String {
        let rows = whole(rows);
        let contexts: Vec<String> = distinct(rows.iter().map(|row| row.context)).iter().map(usize::to_string).collect();
        let schemes = distinct(rows.iter().map(|row| row.label()));
        format!(
            "Time of {} schemes at {} tokens of context, both axes logarithmic. Left: taking the exact prefill over and compressing it, all \
         layers. Right: one token through the whole model, head included, with its attention over the compressed context. Means over \
         documents, measured on the machine of this run: compare schemes, not machines.",
            schemes.len(),
            listed(&contexts)
        )
    }
}

/// A time of a row in milliseconds, if it was measured.
type Time = fn(&SchemeSummary) -> Option<f64>;

/// One panel: the time of a scheme against the context length.
struct Measure {
    heading: &'static str,
    axis: &'static str,
    of: Time,
}

const MEASURES: [Measure; 2] = [
    Measure { heading: "Compressing the context", axis: "milliseconds (log)", of: |row| Some(row.encode_ms) },
    Measure { heading: "Decoding one token after it", axis: "milliseconds (log)", of: |row| row.decode_ms_per_token },
];

/// Rows over all domains. With rows of single domains, a scheme would be drawn twice.
fn whole(rows: &[SchemeSummary]) -> Vec<&SchemeSummary> {
    rows.iter().filter(|row| row.domain == "all").collect()
}

fn uncompressed(scheme: &str) -> bool {
    scheme.starts_with("dense")
}
