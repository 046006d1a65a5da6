//! Every scheme's quality against its measured bits, and the frontier of those that no other beats.

use plotters::{coord::Shift, drawing::DrawingArea, prelude::DrawingBackend};

use super::{distinct, listed};
use crate::{
    axes::{self, Axis, Panel},
    canvas::{Align, Canvas, Rect},
    compare::{CompareRow, frontier},
    error::ReportError,
    labels::{self, Cost, Placer, PointLabel},
    save::Figure,
    style::{GREY, LABEL, PALETTE, Stroke},
};

/// Mean KL per token (log) against measured bits per channel (log), over all texts of one context length: a dot for every
/// scheme with its name and its interval, coloured by method; a thick line through those that no other scheme beats in
/// both. Uncompressed caches stand as vertical lines.
///
/// Drawing fails with [`ReportError::Empty`] unless at least one scheme has a positive KL.
pub struct Frontier;

impl Figure for Frontier {
    type Row = CompareRow;
    const NAME: &'static str = "frontier";
    const SIZE: (u32, u32) = (980, 640);

    fn draw<DB: DrawingBackend>(root: &DrawingArea<DB, Shift>, rows: &[CompareRow]) -> Result<(), ReportError> {
        let canvas = Canvas::new(root, Self::SIZE)?;
        let (references, lossy): (Vec<CompareRow>, Vec<CompareRow>) = rows.iter().cloned().partition(is_reference);
        if lossy.is_empty() {
            return Err(ReportError::Empty { what: "the frontier", expected: "rows of a scheme whose KL is above 0" });
        }
        let bits = lossy.iter().chain(&references).flat_map(|r| [0.85 * r.measured_bits, 1.15 * r.measured_bits]);
        let x = Axis::log("measured bits per channel of the KV cache, every byte of a sequence counted (log)", bits)
            .with_ticks([0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0]);
        let kl = lossy.iter().flat_map(|r| [Some(r.kl), r.kl_low, r.kl_high]).flatten();
        let y = Axis::log("KL to the uncompressed model, nats per token (log)", kl);
        let [plot] = axes::columns(Self::SIZE, 1, axes::TITLE_ROOM, 20.0, false)[..] else {
            unreachable!("one column was asked for");
        };
        let panel = Panel { plot, x, y };
        let context = distinct(rows.iter().map(|r| r.context.to_string())).join(", ");
        axes::title(&canvas, &format!("Every scheme at a context of {context} tokens"))?;
        panel.frame(&canvas, "")?;
        let mut placer = Placer::new(plot);
        for (index, reference) in references.iter().enumerate() {
            let (x, _) = panel.at(reference.measured_bits, 1.0);
            canvas.line(&[(x, plot.top), (x, plot.bottom)], Stroke::dashed(GREY))?;
            let at = (x - 6.0, plot.top + 10.0 + LABEL * index as f64);
            canvas.text(&reference.scheme, at, SMALL, GREY, Align::Right)?;
            placer
                .avoid(Rect::of_text(at, canvas.width_of(&reference.scheme, SMALL)?, SMALL, Align::Right), Cost::LABEL);
            placer.avoid_line(&[(x, plot.top), (x, plot.bottom)], Cost::DATA);
        }
        let best = frontier(&lossy);
        let path = panel.path(&best.iter().map(|r| (r.measured_bits, r.kl)).collect::<Vec<_>>());
        if path.len() > 1 {
            canvas.line(&path, Stroke { width: 3.0, alpha: 0.35, ..Stroke::solid(GREY) })?;
            placer.avoid_line(&path, Cost::DATA);
        }
        let methods = distinct(lossy.iter().map(|r| method(&r.scheme)).filter(|m| *m != OURS));
        // Those on the frontier first: they are the ones that the others give way to.
        let mut labels: Vec<PointLabel> = Vec::new();
        let mut order: Vec<(bool, &CompareRow)> =
            lossy.iter().map(|row| (best.iter().any(|b| b.scheme == row.scheme), row)).collect();
        order.sort_by_key(|(on_frontier, _)| !on_frontier);
        for (on_frontier, row) in order {
            let colour = match methods.iter().position(|m| *m == method(&row.scheme)) {
                Some(place) => PALETTE[1 + place % (PALETTE.len() - 1)],
                None => PALETTE[0],
            };
            let at = panel.at(row.measured_bits, row.kl);
            if let (Some(low), Some(high)) = (row.kl_low.filter(|&low| low > 0.0), row.kl_high) {
                let ends = [panel.at(row.measured_bits, low), panel.at(row.measured_bits, high)];
                canvas.line(&ends, Stroke { alpha: 0.5, ..Stroke::thin(colour) })?;
                placer.avoid_line(&ends, Cost(2.0));
            }
            canvas.dot(at, if on_frontier { 5.5 } else { 3.5 }, colour, 1.0)?;
            placer.avoid(Rect::around(at, 6.0), Cost::POINT);
            let size = if on_frontier { LABEL } else { SMALL };
            labels.push(PointLabel { text: row.scheme.clone(), at, colour, size });
        }
        labels::at_points(&canvas, &placer, &labels)
    }

    fn caption(rows: &[CompareRow]) -> String {
        let contexts = distinct(rows.iter().map(|r| r.context.to_string()));
        let documents = rows.iter().map(|r| r.n).max().unwrap_or(0);
        let lossy: Vec<CompareRow> = rows.iter().filter(|r| !is_reference(r)).cloned().collect();
        let best: Vec<String> = frontier(&lossy).iter().map(|r| r.scheme.clone()).collect();
        format!(
            "Mean KL divergence of the next-token distribution from the uncompressed model's, against measured bits per channel, both axes \
         logarithmic: {} schemes on the same {documents} documents, {} tokens compressed. Vertical bars: 95 % bootstrap intervals over \
         documents. The grey line joins the schemes that no other beats in both: {}. Bits count every byte allocated for a sequence; \
         offline dictionaries and codebooks, shared by all sequences, are reported apart.",
            rows.len(),
            listed(&contexts),
            listed(&best)
        )
    }
}

/// Uncompressed caches, whose KL is 0 or rounding: they stand as lines at their bits.
fn is_reference(row: &CompareRow) -> bool {
    row.scheme.starts_with("dense") || row.kl <= 0.0
}

/// Height of the labels of schemes that another beats.
const SMALL: f64 = 12.5;
/// The method whose colour no other has.
const OURS: &str = "csr";

/// What a scheme's name begins with: one colour for all levels of a method.
pub(super) fn method(scheme: &str) -> &str {
    scheme.split(['-', '(', '+', '@']).next().unwrap_or(scheme)
}

#[cfg(test)]
mod tests {
    use super::method;

    #[test]
    fn levels_of_a_method_share_a_colour() {
        assert_eq!(method("svdq-2(values=kivi-2)"), method("svdq-1.25"));
        assert_eq!(method("csr-8+window"), "csr");
    }
}
