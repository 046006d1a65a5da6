//! What atoms, and what principal components, leave of a layer's vectors.

use plotters::{coord::Shift, drawing::DrawingArea, prelude::DrawingBackend};

use super::{distinct, shared};
use crate::{
    axes::{self, Axis, Panel},
    canvas::Canvas,
    error::ReportError,
    grouping,
    labels::{self, EndLabel},
    records::EnergyRow,
    save::Figure,
    style::{self, Stroke},
};

/// Share of the energy that is left (log) against the numbers kept of each head vector, keys and values in panels of one scale, one line
/// for each of what vectors are made of.
///
/// Drawing fails with [`ReportError::Empty`] without rows, [`ReportError::Mixed`] with rows of several layers.
pub struct EnergyLeft;

impl Figure for EnergyLeft {
    type Row = EnergyRow;
    const NAME: &'static str = "energy-left";
    const SIZE: (u32, u32) = (1080, 420);

    fn draw<DB: DrawingBackend>(root: &DrawingArea<DB, Shift>, data: &[EnergyRow]) -> Result<(), ReportError> {
        let canvas = Canvas::new(root, Self::SIZE)?;
        let layer = shared("energy left", "energy rows of one layer", data, "layer", |row| row.layer)?;
        axes::title(&canvas, &format!("What is left of layer {layer}'s held-out vectors"))?;
        let names = distinct(data.iter().map(|row| row.by.as_str()));
        let room = labels::end_room(&canvas, names.iter().copied())?;
        let counts = grouping::sorted(data.iter().map(|row| row.count));
        let most = counts.last().copied().unwrap_or(1);
        let kinds = grouping::kinds(data, |row| row.kind);
        let plots = axes::columns(Self::SIZE, kinds.len(), axes::TITLE_ROOM, room, true);
        for (kind, plot) in kinds.into_iter().zip(plots) {
            let x = Axis::counted("atoms or components of a head vector", 0, most);
            let panel = Panel {
                plot,
                x: x.with_ticks(counts.iter().map(|&count| count as f64)),
                y: Axis::log("share of the energy left (log)", data.iter().map(|row| row.left)),
            };
            panel.frame(&canvas, style::heading(kind))?;
            let mut ends = Vec::new();
            for (index, name) in names.iter().enumerate() {
                let rows = data.iter().filter(|row| row.kind == kind && row.by == *name);
                let path = panel.path(&rows.map(|row| (row.count as f64, row.left)).collect::<Vec<_>>());
                let colour = style::colour(index);
                canvas.line(&path, Stroke::solid(colour))?;
                for at in &path {
                    canvas.dot(*at, 3.5, colour, 1.0)?;
                }
                if let Some(&end) = path.last() {
                    ends.push(EndLabel { text: (*name).to_owned(), end, colour });
                }
            }
            labels::at_line_ends(&canvas, &panel, &ends)?;
        }
        Ok(())
    }

    fn caption(data: &[EnergyRow]) -> String {
        let layer = data.first().map_or(0, |row| row.layer);
        format!(
            "Share of the squared length of layer {layer}'s held-out vectors that is left (logarithmic), by how many atoms of the dictionary, or \
             how many of the first principal components of its head, make up each of them. An atom takes an index and a coefficient, a \
             component a coefficient alone; means and components come from calibration vectors."
        )
    }
}
