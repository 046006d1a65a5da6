//! The common style of all figures: font, palette, sizes, strokes.
//!
//! Lengths are in *units*. One unit is one pixel of a figure at its nominal size, half a printed page wide or high.
//! [`crate::canvas::Canvas`] scales units to the area on which a figure is drawn.

use plotters::style::{FontStyle, IntoFont, RGBColor, register_font};

use crate::{error::ReportError, records::Kind};

/// The included font first, then fonts with the same metrics for viewers of the SVG.
pub const FONT: &str = "Liberation Sans, Arial, Helvetica, sans-serif";
const FONT_FILE: &str = "LiberationSans-Regular.ttf";
static FONT_BYTES: &[u8] = include_bytes!("../fonts/LiberationSans-Regular.ttf");

/// Registers [`FONT`] in plotters.
///
/// Every draw function calls this, because the cells of a notebook are separate libraries with separate registries. A font that
/// one cell registers is missing in the next.
pub fn register() -> Result<(), ReportError> {
    register_font(FONT, FontStyle::Normal, FONT_BYTES).map_err(|_| ReportError::Font(FONT_FILE))
}

/// The width of a text in the included font, in the unit of its height. The font must be registered.
pub fn width_of(text: &str, height: f64) -> Result<f64, ReportError> {
    // Measure an enlarged text, because plotters truncates to whole pixels.
    const ENLARGED: f64 = 16.0;
    let font = (FONT, height * ENLARGED).into_font();
    let (width, _) = font.box_size(text).map_err(|error| ReportError::Draw(error.to_string()))?;
    Ok(f64::from(width) / ENLARGED)
}

/// Okabe and Ito's colour-blind-safe palette (<https://jfly.uni-koeln.de/color/>) without its yellow, which is too light for lines
/// on white.
pub const PALETTE: [RGBColor; 6] = [BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY];
/// Blue. It means NeuralDict if colours show the dictionary.
pub const BLUE: RGBColor = RGBColor(0, 114, 178);
/// Vermillion. It means k-means if colours show the dictionary.
pub const VERMILLION: RGBColor = RGBColor(213, 94, 0);
/// Bluish green.
pub const GREEN: RGBColor = RGBColor(0, 158, 115);
/// Reddish purple.
pub const PURPLE: RGBColor = RGBColor(204, 121, 167);
/// Orange.
pub const ORANGE: RGBColor = RGBColor(230, 159, 0);
/// Sky blue.
pub const SKY: RGBColor = RGBColor(86, 180, 233);
/// Colour of titles.
pub const INK: RGBColor = RGBColor(32, 32, 32);
/// Colour of axis text, references and thin lines.
pub const GREY: RGBColor = RGBColor(96, 96, 96);
/// Colour of grid lines.
pub const FAINT: RGBColor = RGBColor(226, 226, 226);

/// Text height of titles, in units.
pub const TITLE: f64 = 19.0;
/// Text height of panel headings and line labels.
pub const LABEL: f64 = 16.0;
/// Text height of axis titles and ticks.
pub const TICK: f64 = 15.0;

/// Colour number `index` of the palette. After the last colour it starts again.
pub fn colour(index: usize) -> RGBColor {
    PALETTE[index % PALETTE.len()]
}

/// How a line is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stroke {
    /// Colour.
    pub colour: RGBColor,
    /// Opacity, 0 to 1.
    pub alpha: f64,
    /// Width in units.
    pub width: f64,
    /// Whether the line is dashed. Dashes and gaps have equal lengths.
    pub dashed: bool,
}

impl Stroke {
    /// A solid line of normal width.
    pub fn solid(colour: RGBColor) -> Self {
        Self { colour, alpha: 1.0, width: 2.0, dashed: false }
    }

    /// A lighter, dashed line for a baseline or variant.
    pub fn dashed(colour: RGBColor) -> Self {
        Self { colour, alpha: 0.75, width: 1.5, dashed: true }
    }

    /// A line for one of many, for example a single run behind a median.
    pub fn thin(colour: RGBColor) -> Self {
        Self { colour, alpha: 0.35, width: 1.0, dashed: false }
    }
}

/// The heading of a panel: `Keys` or `Values`.
pub fn heading(kind: Kind) -> &'static str {
    match kind {
        Kind::Key => "Keys",
        Kind::Value => "Values",
    }
}
