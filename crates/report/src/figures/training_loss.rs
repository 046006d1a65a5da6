//! Held-out error during training.

use plotters::{coord::Shift, drawing::DrawingArea, prelude::DrawingBackend};

use super::{RELATIVE_ERROR, distinct};
use crate::{
    axes::{self, Axis, Panel},
    canvas::Canvas,
    error::ReportError,
    grouping::{self, median},
    labels::{self, EndLabel},
    records::{EpochRow, Kind},
    save::Figure,
    style::{self, BLUE, GREY, Stroke, VERMILLION},
    ticks::number,
};

/// Held-out relative squared error (log) by epoch. Keys and values have panels with separate scales. Each group of merged layers
/// has a thin line. The median over the groups is a thick line.
///
/// Drawing fails with [`ReportError::Empty`] without rows.
pub struct TrainingLoss;

impl Figure for TrainingLoss {
    type Row = EpochRow;
    const NAME: &'static str = "training-loss";
    const SIZE: (u32, u32) = (960, 420);

    fn draw<DB: DrawingBackend>(root: &DrawingArea<DB, Shift>, data: &[EpochRow]) -> Result<(), ReportError> {
        let canvas = Canvas::new(root, Self::SIZE)?;
        let kinds = grouping::kinds(data, |row| row.kind);
        if kinds.is_empty() {
            return Err(ReportError::Empty { what: "training loss", expected: "epoch rows" });
        }
        axes::title(&canvas, "Held-out reconstruction error while NeuralDict trains")?;
        canvas.key(
            axes::KEY_AT,
            &[(Stroke::thin(GREY), "one group of layers"), (Stroke { width: 3.0, ..Stroke::solid(GREY) }, "median")],
        )?;
        let room = labels::end_room(&canvas, ["median"])?;
        let plots = axes::columns(Self::SIZE, kinds.len(), axes::TITLE_AND_KEY_ROOM, room, true);
        for (kind, plot) in kinds.into_iter().zip(plots) {
            let rows: Vec<&EpochRow> = data.iter().filter(|row| row.kind == kind).collect();
            let (first, last) =
                rows.iter().fold((usize::MAX, 0), |(low, high), row| (low.min(row.epoch), high.max(row.epoch)));
            let panel = Panel {
                plot,
                x: Axis::counted("epoch", first, last),
                y: Axis::log(&format!("{RELATIVE_ERROR} (log)"), rows.iter().map(|row| row.heldout_relative)),
            };
            let groups = distinct(rows.iter().map(|row| row.group.as_str()));
            panel.frame(&canvas, &format!("{}, {} groups", style::heading(kind), groups.len()))?;
            let colour = if kind == Kind::Key { BLUE } else { VERMILLION };
            for group in groups {
                let line: Vec<(f64, f64)> = rows
                    .iter()
                    .filter(|row| row.group == group)
                    .map(|row| (row.epoch as f64, row.heldout_relative))
                    .collect();
                canvas.line(&panel.path(&line), Stroke::thin(colour))?;
            }
            let path = panel.path(&medians(data, kind));
            canvas.line(&path, Stroke { width: 3.0, ..Stroke::solid(colour) })?;
            if let Some(&end) = path.last() {
                labels::at_line_ends(&canvas, &panel, &[EndLabel { text: "median".to_owned(), end, colour }])?;
            }
        }
        Ok(())
    }

    fn caption(data: &[EpochRow]) -> String {
        let mut text = "Relative squared error of held-out vectors after each training epoch. Thin: one group of merged layers; thick: the median over groups.".to_owned();
        for kind in grouping::kinds(data, |row| row.kind) {
            let medians = medians(data, kind);
            if let (Some(first), Some(last)) = (medians.first(), medians.last()) {
                text += &format!(
                    " {}: median {} at epoch {}, {} at epoch {}.",
                    style::heading(kind),
                    number(first.1),
                    first.0,
                    number(last.1),
                    last.0
                );
            }
        }
        text
    }
}

/// Pairs (epoch, median over the groups that have this epoch), sorted by epoch.
fn medians(data: &[EpochRow], kind: Kind) -> Vec<(f64, f64)> {
    let mut epochs = distinct(data.iter().filter(|row| row.kind == kind).map(|row| row.epoch));
    epochs.sort_unstable();
    epochs
        .into_iter()
        .filter_map(|epoch| {
            let mut values: Vec<f64> = data
                .iter()
                .filter(|row| row.kind == kind && row.epoch == epoch)
                .map(|row| row.heldout_relative)
                .collect();
            median(&mut values).map(|middle| (epoch as f64, middle))
        })
        .collect()
}
