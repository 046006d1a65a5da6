//! The one style of every figure: font, palette, sizes, strokes.
//!
//! Lengths are in *units*: one unit is one pixel of a figure at its nominal size, half a printed page wide or high.
//! [`crate::canvas::Canvas`] scales them to whatever area a figure is drawn on.

use plotters::style::{FontStyle, IntoFont, RGBColor, register_font};

use crate::{error::ReportError, records::Kind};

/// The shipped font first, then fonts of the same metrics for viewers of the SVG.
pub const FONT: &str = "Liberation Sans, Arial, Helvetica, sans-serif";
const FONT_FILE: &str = "LiberationSans-Regular.ttf";
static FONT_BYTES: &[u8] = include_bytes!("../fonts/LiberationSans-Regular.ttf");

/// Makes [`FONT`] known to plotters.
///
/// Every draw function calls this, because a notebook's cells are separate libraries with separate registries: what one cell registers, the next lacks.
pub fn register() -> Result<(), ReportError> {
    register_font(FONT, FontStyle::Normal, FONT_BYTES).map_err(|_| ReportError::Font(FONT_FILE))
}

/// The width of a text in the shipped font, in the unit of its height. The font must be registered.
pub fn width_of(text: &str, height: f64) -> Result<f64, ReportError> {
    // Measured large, because plotters truncates to whole pixels.
    const ENLARGED: f64 = 16.0;
    let font = (FONT, height * ENLARGED).into_font();
    let (width, _) = font.box_size(text).map_err(|error| ReportError::Draw(error.to_string()))?;
    Ok(f64::from(width) / ENLARGED)
}

/// Okabe and Ito's colour-blind-safe palette (<https://jfly.uni-koeln.de/color/>), without its yellow, which is too light for lines on white.
pub const PALETTE: [RGBColor; 6] = [BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY];
/// Blue: NeuralDict wherever colour means the dictionary.
pub const BLUE: RGBColor = RGBColor(0, 114, 178);
/// Vermillion: k-means wherever colour means the dictionary.
pub const VERMILLION: RGBColor = RGBColor(213, 94, 0);
/// Bluish green.
pub const GREEN: RGBColor = RGBColor(0, 158, 115);
/// Reddish purple.
pub const PURPLE: RGBColor = RGBColor(204, 121, 167);
/// Orange.
pub const ORANGE: RGBColor = RGBColor(230, 159, 0);
/// Sky blue.
pub const SKY: RGBColor = RGBColor(86, 180, 233);
/// Titles.
pub const INK: RGBColor = RGBColor(32, 32, 32);
/// Axis text, references, thin lines.
pub const GREY: RGBColor = RGBColor(96, 96, 96);
/// Grid lines.
pub const FAINT: RGBColor = RGBColor(226, 226, 226);

/// Text heights in units.
pub const TITLE: f64 = 19.0;
/// Panel headings and line labels.
pub const LABEL: f64 = 16.0;
/// Axis titles and ticks.
pub const TICK: f64 = 15.0;

/// The palette's colour number `index`, starting over after the last.
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
    /// Dash and gap of equal length.
    pub dashed: bool,
}

impl Stroke {
    /// A solid line of the usual weight.
    pub fn solid(colour: RGBColor) -> Self {
        Self { colour, alpha: 1.0, width: 2.0, dashed: false }
    }

    /// The lighter, dashed line of a baseline or variant.
    pub fn dashed(colour: RGBColor) -> Self {
        Self { colour, alpha: 0.75, width: 1.5, dashed: true }
    }

    /// One of many: a single run behind a median.
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
