//! Reconstruction error of one layer by sparsity.

use plotters::{coord::Shift, drawing::DrawingArea, prelude::DrawingBackend};

use super::{RELATIVE_ERROR, distinct, shared};
use crate::{
    axes::{self, Axis, Panel},
    canvas::Canvas,
    error::ReportError,
    grouping,
    labels::{self, EndLabel},
    records::{DictionarySource, ReconstructionRow},
    save::Figure,
    style::{self, BLUE, Stroke, VERMILLION},
};

/// Relative squared error (log) of one layer's vectors against sparsity (log), NeuralDict compared with k-means. Keys and
/// values have separate panels if both are present.
///
/// Drawing fails with [`ReportError::Empty`] without rows, [`ReportError::Mixed`] with rows of several layers.
pub struct SparsityError;

impl Figure for SparsityError {
    type Row = ReconstructionRow;
    const NAME: &'static str = "sparsity-error";
    const SIZE: (u32, u32) = (880, 400);

    fn draw<DB: DrawingBackend>(root: &DrawingArea<DB, Shift>, data: &[ReconstructionRow]) -> Result<(), ReportError> {
        let canvas = Canvas::new(root, Self::SIZE)?;
        let layer = shared("error by sparsity", "reconstruction rows of one layer", data, "layer", |row| row.layer)?;
        axes::title(&canvas, &format!("Reconstruction error of layer {layer}'s held-out vectors"))?;
        let lines = [
            (DictionarySource::KMeans, Stroke { width: 2.0, ..Stroke::dashed(VERMILLION) }),
            (DictionarySource::NeuralDict, Stroke::solid(BLUE)),
        ];
        let room = labels::end_room(&canvas, lines.iter().map(|(dictionary, _)| dictionary.label()))?;
        let kinds = grouping::kinds(data, |row| row.kind);
        let plots = axes::columns(Self::SIZE, kinds.len(), axes::TITLE_ROOM, room, true);
        for (kind, plot) in kinds.into_iter().zip(plots) {
            let rows: Vec<&ReconstructionRow> = data.iter().filter(|row| row.kind == kind).collect();
            let chunks = distinct(rows.iter().map(|row| row.chunks));
            let per = if chunks == [1] { "non-zeros per head vector (log)" } else { "non-zeros per chunk (log)" };
            let sparsities = || rows.iter().map(|row| row.sparsity as f64);
            let panel = Panel {
                plot,
                x: Axis::log(per, sparsities()).with_ticks(distinct(sorted(sparsities()))),
                y: Axis::log(&format!("{RELATIVE_ERROR} (log)"), data.iter().map(|row| row.relative)),
            };
            let heading = match chunks[..] {
                [1] => style::heading(kind).to_owned(),
                [several] => format!("{}, {several} chunks per head vector", style::heading(kind)),
                _ => style::heading(kind).to_owned(),
            };
            panel.frame(&canvas, &heading)?;
            let mut ends = Vec::new();
            for (dictionary, stroke) in lines {
                let line: Vec<(f64, f64)> = rows
                    .iter()
                    .filter(|row| row.dictionary == dictionary)
                    .map(|row| (row.sparsity as f64, row.relative))
                    .collect();
                let path = panel.path(&line);
                canvas.line(&path, stroke)?;
                for at in &path {
                    canvas.dot(*at, 3.5, stroke.colour, 1.0)?;
                }
                if let Some(&end) = path.last() {
                    ends.push(EndLabel { text: dictionary.label().to_owned(), end, colour: stroke.colour });
                }
            }
            labels::at_line_ends(&canvas, &panel, &ends)?;
        }
        Ok(())
    }

    fn caption(data: &[ReconstructionRow]) -> String {
        let layer = data.first().map_or(0, |row| row.layer);
        let vectors = data.iter().map(|row| row.vectors).min().unwrap_or(0);
        format!(
            "Relative squared error of layer {layer}'s held-out vectors after matching pursuit, by the number of non-zero coefficients (both axes \
         logarithmic; at least {vectors} vectors per point). NeuralDict is trained through matching pursuit; k-means is the clustering that training starts from."
        )
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}
