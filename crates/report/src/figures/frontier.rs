//! The quality of every scheme against its measured bits, and the frontier of the best schemes.

use plotters::{coord::Shift, drawing::DrawingArea, prelude::DrawingBackend};

use super::{distinct, listed};
use crate::{
    axes::{self, Axis, Panel},
    canvas::{Align, Canvas, Rect},
    error::ReportError,
    evidence::{is_control, is_reference},
    labels::{self, Cost, Placer, PointLabel},
    records::SchemeSummary,
    save::Figure,
    style::{GREY, INK, LABEL, PALETTE, Stroke},
};

/// Fraction of the far context that is lost (log), `1 - recovery`, against measured bits per channel (log), over all documents
/// of one context length. Every scheme has a dot, its name and its interval. Colours show methods. A dot is large if no other
/// scheme is significantly better. A thick line connects the smallest losses. The controls, which delete tokens, are black. A
/// dashed line is at the loss of deleting all but 4 sinks and the last 256 tokens. Uncompressed caches are vertical lines.
///
/// Drawing fails with [`ReportError::Empty`] unless at least one scheme loses something.
pub struct Frontier;

impl Figure for Frontier {
    type Row = SchemeSummary;
    const NAME: &'static str = "frontier";
    const SIZE: (u32, u32) = (980, 640);

    fn draw<DB: DrawingBackend>(root: &DrawingArea<DB, Shift>, rows: &[SchemeSummary]) -> Result<(), ReportError> {
        let canvas = Canvas::new(root, Self::SIZE)?;
        let (references, lossy) = parted(rows);
        if lossy.is_empty() {
            return Err(ReportError::Empty { what: "the frontier", expected: "rows of a scheme that loses something" });
        }
        let bits = lossy.iter().map(|(row, _)| *row).chain(references.iter().copied());
        let bits = bits.flat_map(|row| [0.85 * row.measured_bits, 1.15 * row.measured_bits]);
        let x = Axis::log("measured bits per channel of the KV cache, every byte of a sequence counted (log)", bits)
            .with_ticks([0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0]);
        let losses =
            lossy.iter().flat_map(|(row, loss)| [Some(*loss), ends(row).0, ends(row).1]).flatten().chain([1.0]);
        let y = Axis::log("far context lost: 0 as the exact cache, 1 as deletion (log)", losses);
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
            let label = reference.label();
            canvas.text(&label, at, SMALL, GREY, Align::Right)?;
            placer.avoid(Rect::of_text(at, canvas.width_of(&label, SMALL)?, SMALL, Align::Right), Cost::LABEL);
            placer.avoid_line(&[(x, plot.top), (x, plot.bottom)], Cost::DATA);
        }
        let (left, right) = (plot.left, plot.right);
        let deletion = panel.at(1.0, 1.0).1;
        canvas.line(&[(left, deletion), (right, deletion)], Stroke::dashed(GREY))?;
        placer.avoid_line(&[(left, deletion), (right, deletion)], Cost::FAINT);
        let path = panel.path(&least(&lossy));
        if path.len() > 1 {
            canvas.line(&path, Stroke { width: 3.0, alpha: 0.35, ..Stroke::solid(GREY) })?;
            placer.avoid_line(&path, Cost::DATA);
        }
        let methods = distinct(lossy.iter().map(|(row, _)| method(&row.scheme)).filter(|m| *m != OURS));
        let mut labels: Vec<PointLabel> = Vec::new();
        // Add the schemes on the frontier first, so that their labels get the best places.
        let mut order = lossy.clone();
        order.sort_by_key(|(row, _)| !row.frontier);
        for (row, loss) in order {
            let colour = match methods.iter().position(|m| *m == method(&row.scheme)) {
                _ if is_control(row) => INK,
                Some(place) => PALETTE[1 + place % (PALETTE.len() - 1)],
                None => PALETTE[0],
            };
            let at = panel.at(row.measured_bits, loss);
            if let (Some(low), Some(high)) = ends(row) {
                let ends = [panel.at(row.measured_bits, low), panel.at(row.measured_bits, high)];
                canvas.line(&ends, Stroke { alpha: 0.5, ..Stroke::thin(colour) })?;
                placer.avoid_line(&ends, Cost(2.0));
            }
            canvas.dot(at, if row.frontier { 5.5 } else { 3.5 }, colour, 1.0)?;
            placer.avoid(Rect::around(at, 6.0), Cost::POINT);
            let size = if row.frontier { LABEL } else { SMALL };
            labels.push(PointLabel { text: row.label(), at, colour, size });
        }
        labels::at_points(&canvas, &placer, &labels)
    }

    fn caption(rows: &[SchemeSummary]) -> String {
        let contexts = distinct(rows.iter().map(|r| r.context.to_string()));
        let documents = rows.iter().map(|r| r.n).max().unwrap_or(0);
        let best: Vec<String> =
            parted(rows).1.into_iter().filter(|(row, _)| row.frontier).map(|(row, _)| row.label()).collect();
        format!(
            "Share of the far context that is lost, against measured bits per channel, both axes logarithmic: {} schemes on the same \
         {documents} long documents, {} tokens compressed. 1 is what deleting all but 4 sinks and the last 256 tokens loses, 0 the exact \
         cache; counted are the positions where that deletion changes the model. Vertical bars: 95 % intervals over documents. Large \
         dots: no scheme of at most as many bits loses less beyond doubt: {}. Black: controls, which delete tokens. Bits count every \
         byte allocated for a sequence; dictionaries and codebooks, shared by all sequences, are reported apart.",
            rows.len(),
            listed(&contexts),
            listed(&best)
        )
    }
}

/// Splits the rows into uncompressed caches, and the others with their loss.
fn parted(rows: &[SchemeSummary]) -> (Vec<&SchemeSummary>, Vec<(&SchemeSummary, f64)>) {
    let (references, others): (Vec<&SchemeSummary>, Vec<&SchemeSummary>) =
        rows.iter().partition(|row| is_reference(row));
    let losing = others.into_iter().filter_map(|row| Some((row, row.loss().filter(|loss| *loss > 0.0)?)));
    (references, losing.collect())
}

/// Ends of the interval of a scheme's loss, if both can be shown on a logarithmic axis.
fn ends(row: &SchemeSummary) -> (Option<f64>, Option<f64>) {
    let low = row.recovery_high.map(|high| 1.0 - high).filter(|low| *low > 0.0);
    (low, low.and(row.recovery_low).map(|low| 1.0 - low))
}

/// The smallest losses, from few bits to many: the bits and the loss of each.
fn least(rows: &[(&SchemeSummary, f64)]) -> Vec<(f64, f64)> {
    let mut order: Vec<(f64, f64)> = rows.iter().map(|(row, loss)| (row.measured_bits, *loss)).collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let mut best = f64::INFINITY;
    order.retain(|(_, loss)| {
        let better = *loss < best;
        best = best.min(*loss);
        better
    });
    order
}
/// Text height of labels for schemes that are not on the frontier.
const SMALL: f64 = 12.5;
/// The method with a colour of its own.
const OURS: &str = "csr";

/// The start of a scheme's name. All levels of a method have the same start and colour.
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
