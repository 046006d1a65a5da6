//! Quality against a swept parameter.

use plotters::{coord::Shift, drawing::DrawingArea, prelude::DrawingBackend};

use super::distinct;
use crate::{
    axes::{self, Axis, Panel},
    canvas::{Align, Canvas},
    error::ReportError,
    labels::{self, EndLabel},
    records::SweepRow,
    save::Figure,
    style::{self, GREY, Stroke, TICK},
    ticks::number,
};

/// Mean KL per token (log) at every point of a sweep. The points are evenly spaced in their order. There is one line per scheme.
/// Schemes without loss are not shown.
///
/// Drawing fails with [`ReportError::Empty`] unless at least one scheme has a positive KL.
pub struct SweepQuality;

impl Figure for SweepQuality {
    type Row = SweepRow;
    const NAME: &'static str = "sweep-quality";
    const SIZE: (u32, u32) = (820, 440);

    fn draw<DB: DrawingBackend>(root: &DrawingArea<DB, Shift>, data: &[SweepRow]) -> Result<(), ReportError> {
        let canvas = Canvas::new(root, Self::SIZE)?;
        let lossy: Vec<&SweepRow> = data.iter().filter(|row| !lossless(row)).collect();
        if lossy.is_empty() {
            return Err(ReportError::Empty { what: "sweep", expected: "rows of a scheme whose KL is above 0" });
        }
        let points = points(data);
        let schemes = distinct(lossy.iter().map(|row| row.scheme.as_str()));
        let room = labels::end_room(&canvas, schemes.iter().copied())?;
        axes::title(&canvas, "Quality at every point of the sweep")?;
        let [plot] = axes::columns(Self::SIZE, 1, axes::TITLE_ROOM, room, false)[..] else {
            unreachable!("one column was asked for");
        };
        let last = points.len().max(2) - 1;
        let (shared, short) = shortened(&points);
        let x = Axis::linear(&shared, -0.25, last as f64 + 0.25).with_ticks([]);
        let y = Axis::log("KL to the uncompressed model, nats per token (log)", lossy.iter().map(|row| row.kl));
        let panel = Panel { plot, x, y };
        panel.frame(&canvas, "")?;
        for (index, text) in short.iter().enumerate() {
            let (x, _) = panel.at(index as f64, 1.0);
            canvas.text(text, (x, plot.bottom + 15.0), TICK, GREY, Align::Centre)?;
        }
        let mut ends = Vec::new();
        for (index, scheme) in schemes.iter().enumerate() {
            let colour = style::colour(index);
            let values: Vec<(f64, f64)> = lossy
                .iter()
                .filter(|row| row.scheme == *scheme)
                .filter_map(|row| Some((points.iter().position(|p| *p == row.point)? as f64, row.kl)))
                .collect();
            let path = panel.path(&values);
            canvas.line(&path, Stroke::solid(colour))?;
            for &at in &path {
                canvas.dot(at, 4.5, colour, 1.0)?;
            }
            if let Some(&end) = path.last() {
                ends.push(EndLabel { text: (*scheme).to_owned(), end, colour });
            }
        }
        labels::at_line_ends(&canvas, &panel, &ends)
    }

    fn caption(data: &[SweepRow]) -> String {
        let points = points(data);
        let mut text = format!(
            "Mean KL divergence of the next-token distribution from the uncompressed model's over held-out text, at {} points of a sweep; one line per scheme.",
            points.len()
        );
        let best = data.iter().filter(|row| !lossless(row)).min_by(|a, b| a.kl.total_cmp(&b.kl));
        if let Some(best) = best {
            text += &format!(" The lowest is {} nats, of {} at {}.", number(best.kl), best.scheme, best.point);
        }
        text
    }
}

fn lossless(row: &SweepRow) -> bool {
    row.scheme.starts_with("dense") || row.kl <= 0.0
}

fn points(data: &[SweepRow]) -> Vec<&str> {
    distinct(data.iter().map(|row| row.point.as_str()))
}

/// If one parameter was swept, its name is the title of the axis and its values are the ticks. If several were swept, the full
/// text of each point is the tick.
fn shortened<'r>(points: &[&'r str]) -> (String, Vec<&'r str>) {
    let split: Option<Vec<(&str, &str)>> = points.iter().map(|point| point.split_once(" = ")).collect();
    match split {
        Some(pairs)
            if !pairs.is_empty() && pairs.iter().all(|(name, value)| *name == pairs[0].0 && !value.contains(" = ")) =>
        {
            (pairs[0].0.to_owned(), pairs.into_iter().map(|(_, value)| value).collect())
        }
        _ => (String::new(), points.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::shortened;

    #[test]
    fn one_parameter_names_the_axis() {
        let (axis, ticks) = shortened(&["train.atoms = 512", "train.atoms = 1024"]);
        assert_eq!((axis.as_str(), ticks), ("train.atoms", vec!["512", "1024"]));
        let two = ["a = 1, b = 2", "a = 1, b = 3"];
        assert_eq!(shortened(&two), (String::new(), two.to_vec()));
    }
}
