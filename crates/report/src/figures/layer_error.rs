//! Reconstruction error by layer.

use plotters::{coord::Shift, drawing::DrawingArea, prelude::DrawingBackend};

use super::{RELATIVE_ERROR, distinct, listed};
use crate::{
    aggregate::{compare_reconstruction, not_better},
    axes::{self, Axis, Panel},
    canvas::Canvas,
    error::ReportError,
    grouping,
    labels::{self, EndLabel},
    records::{DictionarySource, Kind, ReconstructionRow},
    save::Figure,
    style::{self, GREY, Stroke},
};

/// Relative squared error (log) by layer. Keys and values have panels with the same scale. There is one colour per CSR level.
/// NeuralDict is solid, k-means is dashed.
///
/// Drawing fails with [`ReportError::Empty`] without rows.
pub struct LayerError;

impl Figure for LayerError {
    type Row = ReconstructionRow;
    const NAME: &'static str = "layer-error";
    const SIZE: (u32, u32) = (960, 420);

    fn draw<DB: DrawingBackend>(root: &DrawingArea<DB, Shift>, data: &[ReconstructionRow]) -> Result<(), ReportError> {
        let canvas = Canvas::new(root, Self::SIZE)?;
        let kinds = grouping::kinds(data, |row| row.kind);
        if kinds.is_empty() {
            return Err(ReportError::Empty { what: "error by layer", expected: "reconstruction rows" });
        }
        let levels = levels(data);
        let names: Vec<String> = levels.iter().map(|level| format!("CSR-{level}")).collect();
        let room = labels::end_room(&canvas, names.iter().map(String::as_str))?;
        axes::title(&canvas, "Reconstruction error of held-out vectors by layer")?;
        canvas.key(axes::KEY_AT, &[(Stroke::solid(GREY), "NeuralDict"), (Stroke::dashed(GREY), "k-means only")])?;

        let (first, last) =
            data.iter().fold((usize::MAX, 0), |(low, high), row| (low.min(row.layer), high.max(row.layer)));
        let plots = axes::columns(Self::SIZE, kinds.len(), axes::TITLE_AND_KEY_ROOM, room, true);
        for (kind, plot) in kinds.into_iter().zip(plots) {
            let panel = Panel {
                plot,
                x: Axis::counted("layer", first, last),
                y: Axis::log(&format!("{RELATIVE_ERROR} (log)"), data.iter().map(|row| row.relative)),
            };
            panel.frame(&canvas, style::heading(kind))?;
            let mut ends = Vec::new();
            for (index, (level, name)) in levels.iter().zip(&names).enumerate() {
                let colour = style::colour(index);
                let kmeans = panel.path(&line(data, kind, *level, DictionarySource::KMeans));
                canvas.line(&kmeans, Stroke::dashed(colour))?;
                let neuraldict = panel.path(&line(data, kind, *level, DictionarySource::NeuralDict));
                canvas.line(&neuraldict, Stroke::solid(colour))?;
                if let Some(&end) = neuraldict.last().or(kmeans.last()) {
                    ends.push(EndLabel { text: name.clone(), end, colour });
                }
            }
            labels::at_line_ends(&canvas, &panel, &ends)?;
        }
        Ok(())
    }

    fn caption(data: &[ReconstructionRow]) -> String {
        let comparisons = compare_reconstruction(data);
        let levels: Vec<String> = levels(data).iter().map(|level| format!("CSR-{level}")).collect();
        let vectors = data.iter().map(|row| row.vectors).min().unwrap_or(0);
        let mut text = format!(
            "Relative squared error of held-out key and value vectors by layer, after matching pursuit with {} (at least {vectors} vectors per point). \
         Solid: NeuralDict; dashed: the k-means centroids that training starts from.",
            listed(&levels)
        );
        if !comparisons.is_empty() {
            let wins = comparisons.len() - not_better(&comparisons).len();
            text += &format!(" NeuralDict's error is the lower one in {wins} of {} pairs.", comparisons.len());
        }
        text
    }
}

fn levels(data: &[ReconstructionRow]) -> Vec<usize> {
    let mut levels = distinct(data.iter().map(ReconstructionRow::level));
    levels.sort_unstable();
    levels
}

fn line(data: &[ReconstructionRow], kind: Kind, level: usize, dictionary: DictionarySource) -> Vec<(f64, f64)> {
    data.iter()
        .filter(|row| row.kind == kind && row.level() == level && row.dictionary == dictionary)
        .map(|row| (row.layer as f64, row.relative))
        .collect()
}
