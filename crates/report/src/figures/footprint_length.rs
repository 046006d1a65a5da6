//! KV-cache memory by sequence length (paper, Figure 4), with linear axes as in the paper. Every byte is counted.

use plotters::{coord::Shift, drawing::DrawingArea, prelude::DrawingBackend};

use super::{distinct, listed};
use crate::{
    axes::{self, Axis, Panel},
    canvas::Canvas,
    error::ReportError,
    labels::{self, EndLabel},
    records::FootprintRow,
    save::Figure,
    style::{self, GREY, INK, Stroke},
};

const GIGABYTE: f64 = 1e9;

/// Gigabytes (10^9 bytes) against tokens, one panel per model, each with its own linear scale. Solid lines: all bytes of the
/// sequences. Dashed lines, for schemes with offline dictionaries: including these dictionaries in f16.
///
/// Drawing fails with [`ReportError::Empty`] without rows.
pub struct FootprintLength;

impl Figure for FootprintLength {
    type Row = FootprintRow;
    const NAME: &'static str = "footprint-length";
    const SIZE: (u32, u32) = (1080, 470);

    fn draw<DB: DrawingBackend>(root: &DrawingArea<DB, Shift>, data: &[FootprintRow]) -> Result<(), ReportError> {
        let canvas = Canvas::new(root, Self::SIZE)?;
        let models = distinct(data.iter().map(|row| row.model.as_str()));
        if models.is_empty() {
            return Err(ReportError::Empty { what: "footprint by sequence length", expected: "footprint rows" });
        }
        let schemes = distinct(data.iter().map(|row| row.scheme.as_str()));
        let room = labels::end_room(&canvas, schemes.iter().copied())?;
        axes::title(&canvas, "KV-cache memory, every byte counted")?;
        canvas.key(
            axes::KEY_AT,
            &[
                (Stroke::solid(GREY), "allocated per sequence"),
                (Stroke::dashed(GREY), "with the shared offline dictionaries"),
            ],
        )?;
        let plots = axes::columns(Self::SIZE, models.len(), axes::TITLE_AND_KEY_ROOM, room, true);
        for (model, plot) in models.into_iter().zip(plots) {
            let of_model = || data.iter().filter(|row| row.model == model);
            let most = of_model().map(|row| gigabytes(row, true)).fold(0.0, f64::max);
            let longest = of_model().map(|row| row.tokens).max().unwrap_or(1);
            let panel =
                Panel { plot, x: Axis::linear("tokens", 0.0, longest as f64), y: Axis::linear("GB", 0.0, 1.05 * most) };
            panel.frame(&canvas, model)?;
            let mut ends = Vec::new();
            for (index, scheme) in schemes.iter().enumerate() {
                let rows = || of_model().filter(|row| row.scheme == *scheme);
                let colour = if index == 0 { INK } else { style::colour(index - 1) };
                for (dictionaries, stroke) in [(true, Stroke::dashed(colour)), (false, Stroke::solid(colour))] {
                    if dictionaries && rows().all(|row| row.dictionaries == 0) {
                        continue;
                    }
                    let line: Vec<(f64, f64)> =
                        rows().map(|row| (row.tokens as f64, gigabytes(row, dictionaries))).collect();
                    let path = panel.path(&line);
                    canvas.line(&path, stroke)?;
                    if let (Some(&end), false) = (path.last(), dictionaries) {
                        ends.push(EndLabel { text: (*scheme).to_owned(), end, colour });
                    }
                }
            }
            labels::at_line_ends(&canvas, &panel, &ends)?;
        }
        Ok(())
    }

    fn caption(data: &[FootprintRow]) -> String {
        let models: Vec<String> = distinct(data.iter().map(|row| row.model.clone()));
        let batches: Vec<String> = distinct(data.iter().map(|row| row.batch)).iter().map(usize::to_string).collect();
        format!(
            "KV-cache bytes against sequence length for {} (1 GB = 10⁹ bytes; batch {}). Solid lines count every byte that the sequences allocate: codes, \
         scales, windows, online atoms, tables. Dashed lines add the offline dictionaries in f16, one per layer and kind. By formula from published \
         shapes; the formula of CSR is tested against the allocator.",
            listed(&models),
            listed(&batches)
        )
    }
}

fn gigabytes(row: &FootprintRow, dictionaries: bool) -> f64 {
    (row.total + if dictionaries { row.dictionaries } else { 0 }) as f64 / GIGABYTE
}
