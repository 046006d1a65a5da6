//! KV-cache memory by sequence length (paper, Figure 4), with and without the bytes that the paper does not count.

use plotters::{coord::Shift, drawing::DrawingArea, prelude::DrawingBackend};

use super::{distinct, listed};
use crate::{
    axes::{self, Axis, Panel},
    canvas::Canvas,
    error::ReportError,
    labels::{self, EndLabel},
    memory::WITH_DICTIONARIES,
    records::MemoryPoint,
    save::Figure,
    style::{self, GREY, INK, Stroke},
};

/// KV-cache gigabytes (10^9 bytes, log) against sequence length (log), one panel per model with the same scale. Solid lines: the
/// paper's count (codes only). Dashed lines, for schemes whose name ends in [`WITH_DICTIONARIES`]: codes, dictionaries and
/// online atoms. The paper's figure has linear axes. On those the bytes of the dictionaries cannot be seen for short contexts.
///
/// Drawing fails with [`ReportError::Empty`] without points.
pub struct MemoryLength;

impl Figure for MemoryLength {
    type Row = MemoryPoint;
    const NAME: &'static str = "memory-length";
    const SIZE: (u32, u32) = (1080, 430);

    fn draw<DB: DrawingBackend>(root: &DrawingArea<DB, Shift>, data: &[MemoryPoint]) -> Result<(), ReportError> {
        const GIGABYTE: f64 = 1e9;
        let canvas = Canvas::new(root, Self::SIZE)?;
        let models = models(data);
        if models.is_empty() {
            return Err(ReportError::Empty { what: "memory by sequence length", expected: "memory points" });
        }
        let schemes = distinct(data.iter().map(base));
        let room = labels::end_room(&canvas, schemes.iter().copied())?;
        axes::title(&canvas, "KV-cache memory of one sequence")?;
        canvas.key(
            axes::KEY_AT,
            &[
                (Stroke::solid(GREY), "codes only (nominal)"),
                (Stroke::dashed(GREY), "with offline dictionaries and online atoms"),
            ],
        )?;
        let plots = axes::columns(Self::SIZE, models.len(), axes::TITLE_AND_KEY_ROOM, room, true);
        for (model, plot) in models.into_iter().zip(plots) {
            let panel = Panel {
                plot,
                x: Axis::log("tokens (log)", data.iter().map(|point| point.tokens as f64)).with_ticks([
                    100.0,
                    300.0,
                    1000.0,
                    3000.0,
                    10_000.0,
                    30_000.0,
                    100_000.0,
                    300_000.0,
                    1_000_000.0,
                ]),
                y: Axis::log("GB (log)", data.iter().map(|point| point.bytes as f64 / GIGABYTE)),
            };
            panel.frame(&canvas, model)?;
            let mut ends = Vec::new();
            for (index, scheme) in schemes.iter().enumerate() {
                let colour = if is_csr(scheme) { style::colour(index.saturating_sub(1)) } else { INK };
                for dictionaries in [true, false] {
                    let line: Vec<(f64, f64)> = data
                        .iter()
                        .filter(|point| {
                            point.model == model && base(point) == *scheme && has_dictionaries(point) == dictionaries
                        })
                        .map(|point| (point.tokens as f64, point.bytes as f64 / GIGABYTE))
                        .collect();
                    let path = panel.path(&line);
                    canvas.line(&path, if dictionaries { Stroke::dashed(colour) } else { Stroke::solid(colour) })?;
                    if let (Some(&end), false) = (path.last(), dictionaries) {
                        ends.push(EndLabel { text: (*scheme).to_owned(), end, colour });
                    }
                }
            }
            labels::at_line_ends(&canvas, &panel, &ends)?;
        }
        Ok(())
    }

    fn caption(data: &[MemoryPoint]) -> String {
        let models: Vec<String> = models(data).into_iter().map(str::to_owned).collect();
        format!(
            "KV-cache bytes of one sequence against its length for {} (1 GB = 10⁹ bytes, both axes logarithmic; the paper's Figure 4 has linear ones). \
         Solid lines count codes alone, as the paper does. Dashed lines add one FP16 dictionary per layer for keys and one for values (8192 atoms each for \
         the paper's models), and the online atoms where the paper states their number. Arithmetic from published model shapes, not a measurement.",
            listed(&models)
        )
    }
}

fn models(data: &[MemoryPoint]) -> Vec<&str> {
    distinct(data.iter().map(|point| point.model.as_str()))
}

fn base(point: &MemoryPoint) -> &str {
    point.scheme.strip_suffix(WITH_DICTIONARIES).unwrap_or(&point.scheme)
}

fn has_dictionaries(point: &MemoryPoint) -> bool {
    point.scheme.ends_with(WITH_DICTIONARIES)
}

fn is_csr(scheme: &str) -> bool {
    scheme.to_ascii_lowercase().starts_with("csr")
}
