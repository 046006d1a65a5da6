//! Labels at the data instead of in a legend, placed so that they do not overlap.

use plotters::{prelude::DrawingBackend, style::RGBColor};

use crate::{
    axes::Panel,
    canvas::{Align, Canvas},
    error::ReportError,
    style::{GREY, LABEL, Stroke},
};

mod placer;

use placer::leader;
pub use placer::{Cost, Extent, Placer};

/// Moves the wanted positions apart, so that neighbours are at least `gap` from each other and all lie in `low..=high`. The
/// results are in the order of the input. The moves are as small as possible: positions that collide become a block, and a block
/// is centred on the mean of the positions that its members wanted. If `low..=high` is too short for all, the gap becomes
/// smaller.
pub fn spread(wanted: &[f64], gap: f64, low: f64, high: f64) -> Vec<f64> {
    let Some(intervals) = wanted.len().checked_sub(1) else {
        return Vec::new();
    };
    let gap = if intervals == 0 { gap } else { gap.min((high - low).max(0.0) / intervals as f64) };
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|&a, &b| wanted[a].total_cmp(&wanted[b]));

    // (sum of the members' wanted positions, number of members, top of the block)
    let mut blocks: Vec<(f64, usize, f64)> = Vec::new();
    let extent = |count: usize| gap * (count as f64 - 1.0);
    for &index in &order {
        let mut block = (wanted[index], 1, wanted[index].clamp(low, high));
        while let Some(&(sum, count, top)) = blocks.last() {
            if top + extent(count) + gap <= block.2 {
                break;
            }
            blocks.pop();
            // The members of a block are `gap` apart. Its best top is the mean of (wanted - offset), which is mean - extent / 2.
            let (sum, count) = (sum + block.0, count + block.1);
            let top = sum / count as f64 - extent(count) / 2.0;
            block = (sum, count, top.clamp(low, (high - extent(count)).max(low)));
        }
        blocks.push(block);
    }

    let mut placed = vec![0.0; wanted.len()];
    let mut members = order.into_iter();
    for (_, count, top) in blocks {
        for (rank, index) in members.by_ref().take(count).enumerate() {
            placed[index] = top + gap * rank as f64;
        }
    }
    placed
}

/// A label for the right end of a line.
pub struct EndLabel {
    /// The text.
    pub text: String,
    /// The line's last point, in units.
    pub end: (f64, f64),
    /// The line's colour.
    pub colour: RGBColor,
}

/// Writes the labels to the right of the panel. Each is as near to the end of its line as the others allow. A label that had to
/// move gets a thin leader line.
pub fn at_line_ends<DB: DrawingBackend>(
    canvas: &Canvas<'_, DB>,
    panel: &Panel,
    labels: &[EndLabel],
) -> Result<(), ReportError> {
    const LEADER: f64 = 12.0;
    let wanted: Vec<f64> = labels.iter().map(|label| label.end.1).collect();
    let placed = spread(&wanted, LABEL, panel.plot.top, panel.plot.bottom);
    for (label, y) in labels.iter().zip(placed) {
        let x = panel.plot.right + 4.0;
        let leader = Stroke { width: 1.0, alpha: 0.6, ..Stroke::solid(label.colour) };
        canvas.line(&[(label.end.0 + 3.0, label.end.1), (x, label.end.1), (x + LEADER - 3.0, y)], leader)?;
        canvas.text(&label.text, (x + LEADER, y), LABEL, label.colour, Align::Left)?;
    }
    Ok(())
}

/// The room that [`at_line_ends`] needs to the right of a panel for these texts.
pub fn end_room<'t, DB: DrawingBackend>(
    canvas: &Canvas<'_, DB>,
    texts: impl IntoIterator<Item = &'t str>,
) -> Result<f64, ReportError> {
    let mut widest = 0.0_f64;
    for text in texts {
        widest = widest.max(canvas.width_of(text, LABEL)?);
    }
    Ok(widest + 22.0)
}

/// A text next to its point.
#[derive(Clone, Debug)]
pub struct PointLabel {
    /// The text.
    pub text: String,
    /// The point.
    pub at: (f64, f64),
    /// Colour of the text.
    pub colour: RGBColor,
    /// Height of the text in units.
    pub size: f64,
}

/// Writes one label next to each point, with a thin leader line if the label had to move away.
pub fn at_points<DB: DrawingBackend>(
    canvas: &Canvas<'_, DB>,
    placer: &Placer,
    labels: &[PointLabel],
) -> Result<(), ReportError> {
    let texts = labels
        .iter()
        .map(|label| {
            let width = canvas.width_of(&label.text, label.size)?;
            Ok(Extent { at: label.at, width, height: 0.8 * label.size })
        })
        .collect::<Result<Vec<_>, ReportError>>()?;
    for (label, rect) in labels.iter().zip(placer.place(&texts)) {
        if let Some(leader) = leader(label.at, &rect) {
            canvas.line(&leader, Stroke { width: 0.8, alpha: 0.55, ..Stroke::solid(GREY) })?;
        }
        let at = (rect.left, (rect.top + rect.bottom) / 2.0);
        canvas.text(&label.text, at, label.size, label.colour, Align::Left)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_positions_stay_where_they_are() {
        assert_eq!(spread(&[50.0, 10.0, 90.0], 12.0, 0.0, 100.0), [50.0, 10.0, 90.0]);
    }

    #[test]
    fn colliding_positions_are_centred_on_their_mean() {
        assert_eq!(spread(&[50.0, 50.0, 50.0], 10.0, 0.0, 100.0), [40.0, 50.0, 60.0]);
        // The positions 20 and 24 each move by 3. The position 80 does not move.
        assert_eq!(spread(&[24.0, 80.0, 20.0], 10.0, 0.0, 100.0), [27.0, 80.0, 17.0]);
    }

    #[test]
    fn bounds_hold_and_order_is_kept_when_there_is_too_little_room() {
        let placed = spread(&[99.0, 98.0, 100.0, 97.0], 10.0, 0.0, 100.0);
        assert_eq!(placed, [90.0, 80.0, 100.0, 70.0]);
        assert_eq!(spread(&[5.0, 5.0, 5.0], 10.0, 0.0, 10.0), [0.0, 5.0, 10.0]);
        assert!(spread(&[], 10.0, 0.0, 1.0).is_empty());
    }
}
