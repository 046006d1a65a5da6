//! The effect of position embedding on keys: the paper's Figure 2b.

use plotters::{coord::Shift, drawing::DrawingArea, prelude::DrawingBackend, style::RGBColor};

use super::scatter;
use crate::{error::ReportError, records::ScatterRow, save::Figure};

/// Colours of the first and of the last positions.
const ENDS: [RGBColor; 2] = [RGBColor(0, 114, 178), RGBColor(230, 159, 0)];
/// Groups of positions, as in the paper.
pub const GROUPS: usize = 8;

/// Keys of one head before and after position embedding. Colours show groups of positions.
pub struct RotaryScatter;

impl Figure for RotaryScatter {
    type Row = ScatterRow;
    const NAME: &'static str = "rotary-scatter";
    const SIZE: (u32, u32) = (900, 440);

    fn draw<DB: DrawingBackend>(root: &DrawingArea<DB, Shift>, rows: &[ScatterRow]) -> Result<(), ReportError> {
        scatter::draw(root, rows, Self::SIZE, "Keys by position, before and after position embedding", colour)
    }

    fn caption(rows: &[ScatterRow]) -> String {
        format!(
            "Keys of one head of one layer, coloured by their position in the sequence (eight groups), before and after rotary position \
             embedding, each in the plane of its own principal components; the paper's Figure 2b. {}",
            scatter::variances(rows)
        )
    }
}

fn colour(group: usize) -> RGBColor {
    let at = (group as f64 / (GROUPS - 1) as f64).clamp(0.0, 1.0);
    let mix = |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * at).round() as u8;
    RGBColor(mix(ENDS[0].0, ENDS[1].0), mix(ENDS[0].1, ENDS[1].1), mix(ENDS[0].2, ENDS[1].2))
}
