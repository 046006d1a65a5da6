//! Shows whether the vectors of different prompts lie in the same space: the paper's Figure 2a.

use plotters::{coord::Shift, drawing::DrawingArea, prelude::DrawingBackend};

use super::scatter;
use crate::{error::ReportError, records::ScatterRow, save::Figure, style};

/// Keys and values of a shallow and a deep layer in the plane of their principal components, coloured by prompt.
pub struct PromptScatter;

impl Figure for PromptScatter {
    type Row = ScatterRow;
    const NAME: &'static str = "prompt-scatter";
    const SIZE: (u32, u32) = (1320, 420);

    fn draw<DB: DrawingBackend>(root: &DrawingArea<DB, Shift>, rows: &[ScatterRow]) -> Result<(), ReportError> {
        scatter::draw(root, rows, Self::SIZE, "Keys and values of different prompts", style::colour)
    }

    fn caption(rows: &[ScatterRow]) -> String {
        format!(
            "Head vectors of a shallow and a deep layer in the plane of their two principal components, coloured by prompt; the paper's \
             Figure 2a. Keys are taken before position embedding. {}",
            scatter::variances(rows)
        )
    }
}
