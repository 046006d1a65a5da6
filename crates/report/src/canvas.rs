//! Drawing in units on an area of any pixel size, with any backend.

use plotters::{
    coord::Shift,
    drawing::DrawingArea,
    element::{Circle, DashedPathElement, PathElement, Rectangle},
    prelude::{DrawingBackend, Text},
    style::{
        Color, IntoFont, RGBColor, ShapeStyle, TextStyle, WHITE,
        text_anchor::{HPos, Pos, VPos},
    },
};

use crate::{
    error::ReportError,
    style::{self, FONT, GREY, Stroke, TICK},
};

/// Position of a text relative to its point. Vertically it is always centred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Starts at the point.
    Left,
    /// Centred on the point.
    Centre,
    /// Ends at the point.
    Right,
}

/// A rectangle in units, `y` downwards.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rect {
    /// Left edge.
    pub left: f64,
    /// Upper edge.
    pub top: f64,
    /// Right edge.
    pub right: f64,
    /// Lower edge.
    pub bottom: f64,
}

impl Rect {
    /// The rectangle covered by a text of this width and height.
    pub fn of_text(at: (f64, f64), width: f64, height: f64, align: Align) -> Self {
        let left = match align {
            Align::Left => at.0,
            Align::Centre => at.0 - width / 2.0,
            Align::Right => at.0 - width,
        };
        Self { left, top: at.1 - height / 2.0, right: left + width, bottom: at.1 + height / 2.0 }
    }

    /// The square around a point that extends `reach` in each direction.
    pub fn around(at: (f64, f64), reach: f64) -> Self {
        Self { left: at.0 - reach, top: at.1 - reach, right: at.0 + reach, bottom: at.1 + reach }
    }

    /// The point of the rectangle nearest to `at`.
    pub fn nearest(&self, at: (f64, f64)) -> (f64, f64) {
        (at.0.clamp(self.left, self.right), at.1.clamp(self.top, self.bottom))
    }

    /// The distance of `at` from the rectangle.
    pub fn distance(&self, at: (f64, f64)) -> f64 {
        let near = self.nearest(at);
        (near.0 - at.0).hypot(near.1 - at.1)
    }

    /// Whether the two rectangles overlap.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.left < other.right && other.left < self.right && self.top < other.bottom && other.top < self.bottom
    }

    /// Whether `other` is inside this rectangle.
    pub fn contains(&self, other: &Self) -> bool {
        self.left <= other.left && other.right <= self.right && self.top <= other.top && other.bottom <= self.bottom
    }
}

/// An area and its scale: `area pixels = units * scale`.
pub struct Canvas<'a, DB: DrawingBackend> {
    area: &'a DrawingArea<DB, Shift>,
    scale: f64,
}

impl<'a, DB: DrawingBackend> Canvas<'a, DB> {
    /// Fills `area` with white and scales a figure of nominal `size` (width, height in units) to fit it. Registers the font.
    pub fn new(area: &'a DrawingArea<DB, Shift>, size: (u32, u32)) -> Result<Self, ReportError> {
        style::register()?;
        area.fill(&WHITE)?;
        let (width, height) = area.dim_in_pixel();
        let scale = (f64::from(width) / f64::from(size.0)).min(f64::from(height) / f64::from(size.1));
        Ok(Self { area, scale })
    }

    fn pixels(&self, at: (f64, f64)) -> (i32, i32) {
        ((at.0 * self.scale).round() as i32, (at.1 * self.scale).round() as i32)
    }

    fn shape(&self, colour: RGBColor, alpha: f64, width: f64) -> ShapeStyle {
        ShapeStyle {
            color: colour.mix(alpha),
            filled: false,
            stroke_width: ((width * self.scale).round() as u32).max(1),
        }
    }

    /// A line through `points`. With fewer than two points it draws nothing.
    pub fn line(&self, points: &[(f64, f64)], stroke: Stroke) -> Result<(), ReportError> {
        if points.len() < 2 {
            return Ok(());
        }
        let path: Vec<(i32, i32)> = points.iter().map(|&at| self.pixels(at)).collect();
        let shape = self.shape(stroke.colour, stroke.alpha, stroke.width);
        if stroke.dashed {
            let dash = ((5.0 * self.scale).round() as i32).max(1);
            self.area.draw(&DashedPathElement::new(path, dash, dash, shape))?;
        } else {
            self.area.draw(&PathElement::new(path, shape))?;
        }
        Ok(())
    }

    /// A filled disc.
    pub fn dot(&self, at: (f64, f64), radius: f64, colour: RGBColor, alpha: f64) -> Result<(), ReportError> {
        let size = ((radius * self.scale).round() as i32).max(1);
        self.area.draw(&Circle::new(self.pixels(at), size, colour.mix(alpha).filled()))?;
        Ok(())
    }

    /// A filled rectangle.
    pub fn fill(&self, rect: Rect, colour: RGBColor) -> Result<(), ReportError> {
        let corners = [self.pixels((rect.left, rect.top)), self.pixels((rect.right, rect.bottom))];
        self.area.draw(&Rectangle::new(corners, colour.filled()))?;
        Ok(())
    }

    /// A text of height `size` units, vertically centred on `at`.
    pub fn text(
        &self,
        text: &str,
        at: (f64, f64),
        size: f64,
        colour: RGBColor,
        align: Align,
    ) -> Result<(), ReportError> {
        let horizontal = match align {
            Align::Left => HPos::Left,
            Align::Centre => HPos::Center,
            Align::Right => HPos::Right,
        };
        let font = TextStyle::from((FONT, size * self.scale).into_font())
            .color(&colour)
            .pos(Pos::new(horizontal, VPos::Center));
        // Both backends place lower-case text too high to look centred next to a point or tick.
        let at = (at.0, at.1 + 0.12 * size);
        self.area.draw(&Text::new(text.to_owned(), self.pixels(at), font))?;
        Ok(())
    }

    /// The width of a text in units.
    pub fn width_of(&self, text: &str, size: f64) -> Result<f64, ReportError> {
        style::width_of(text, size)
    }

    /// A row of line samples with their meaning, starting at `at`. It explains dashes and line widths. Colours are explained by
    /// labels at the lines.
    pub fn key(&self, at: (f64, f64), entries: &[(Stroke, &str)]) -> Result<(), ReportError> {
        const SAMPLE: f64 = 26.0;
        let mut x = at.0;
        for (stroke, meaning) in entries {
            self.line(&[(x, at.1), (x + SAMPLE, at.1)], *stroke)?;
            x += SAMPLE + 6.0;
            self.text(meaning, (x, at.1), TICK, GREY, Align::Left)?;
            x += self.width_of(meaning, TICK)? + 20.0;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rectangles_that_touch_do_not_overlap() {
        let left = Rect { left: 0.0, top: 0.0, right: 10.0, bottom: 10.0 };
        let right = Rect { left: 10.0, ..left };
        let right = Rect { right: 20.0, ..right };
        assert!(!left.overlaps(&right));
        assert!(left.overlaps(&Rect { left: 9.5, ..right }));
    }

    #[test]
    fn text_rectangles_follow_the_alignment() {
        let at = (100.0, 50.0);
        let left = |align| Rect::of_text(at, 40.0, 10.0, align).left;
        assert_eq!((left(Align::Left), left(Align::Centre), left(Align::Right)), (100.0, 80.0, 60.0));
    }
}
