//! How long keys are with and without the bias of their projection, by layer.

use plotters::{coord::Shift, drawing::DrawingArea, prelude::DrawingBackend};

use crate::{
    axes::{self, Axis, Panel},
    canvas::Canvas,
    error::ReportError,
    labels::{self, EndLabel},
    records::KeyBiasRow,
    save::Figure,
    style::{BLUE, GREY, Stroke, VERMILLION},
    ticks,
};

/// Root mean square lengths (log) by layer: keys as they are, keys less the bias, and the bias alone.
///
/// Drawing fails with [`ReportError::Empty`] without rows.
pub struct KeyBias;

impl Figure for KeyBias {
    type Row = KeyBiasRow;
    const NAME: &'static str = "key-bias";
    const SIZE: (u32, u32) = (880, 420);

    fn draw<DB: DrawingBackend>(root: &DrawingArea<DB, Shift>, data: &[KeyBiasRow]) -> Result<(), ReportError> {
        let canvas = Canvas::new(root, Self::SIZE)?;
        if data.is_empty() {
            return Err(ReportError::Empty {
                what: "key bias by layer",
                expected: "rows of layers whose keys have a bias",
            });
        }
        let room = labels::end_room(&canvas, LINES.iter().map(|line| line.name))?;
        axes::title(&canvas, "Length of keys before position embedding, by layer")?;
        let (first, last) =
            data.iter().fold((usize::MAX, 0), |(low, high), row| (low.min(row.layer), high.max(row.layer)));
        let [plot] = axes::columns(Self::SIZE, 1, axes::TITLE_ROOM, room, false)[..] else {
            unreachable!("one column was asked for");
        };
        let lengths = LINES.iter().flat_map(|line| data.iter().map(line.of));
        let y = Axis::log("root mean square length (log)", lengths);
        let panel = Panel { plot, x: Axis::counted("layer", first, last), y };
        panel.frame(&canvas, "")?;
        let mut ends = Vec::new();
        for Line { name, of, stroke } in LINES {
            let path = panel.path(&data.iter().map(|row| (row.layer as f64, of(row))).collect::<Vec<_>>());
            canvas.line(&path, *stroke)?;
            for at in &path {
                canvas.dot(*at, 2.5, stroke.colour, 1.0)?;
            }
            if let Some(&end) = path.last() {
                ends.push(EndLabel { text: (*name).to_owned(), end, colour: stroke.colour });
            }
        }
        labels::at_line_ends(&canvas, &panel, &ends)?;
        Ok(())
    }

    fn caption(data: &[KeyBiasRow]) -> String {
        let mut text = "Root mean square length of each layer's keys before position embedding (logarithmic): as they are, less the \
                        bias of their head, and that bias alone."
            .to_owned();
        let gain = |row: &KeyBiasRow| if row.without > 0.0 { row.keys / row.without } else { 0.0 };
        if let Some(most) = data.iter().max_by(|a, b| gain(a).total_cmp(&gain(b))) {
            text += &format!(
                " The bias counts most in layer {}: keys are {} times as long as without it.",
                most.layer,
                ticks::number((10.0 * gain(most)).round() / 10.0)
            );
        }
        text
    }
}

struct Line {
    name: &'static str,
    of: fn(&KeyBiasRow) -> f64,
    stroke: Stroke,
}

const LINES: &[Line] = &[
    Line { name: "keys", of: |row| row.keys, stroke: solid(BLUE) },
    Line { name: "keys less bias", of: |row| row.without, stroke: solid(VERMILLION) },
    Line { name: "bias", of: |row| row.bias, stroke: Stroke { width: 1.5, dashed: true, ..solid(GREY) } },
];

/// [`Stroke::solid`] in a constant.
const fn solid(colour: plotters::style::RGBColor) -> Stroke {
    Stroke { colour, alpha: 1.0, width: 2.0, dashed: false }
}
