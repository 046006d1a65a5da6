//! Writes figures to files and shows them in notebooks.

use std::path::{Path, PathBuf};

use plotters::{
    backend::{BitMapBackend, SVGBackend},
    coord::Shift,
    drawing::{DrawingArea, IntoDrawingArea},
    prelude::DrawingBackend,
};

use crate::{
    error::ReportError,
    notebook::Shown,
    page::escaped,
    records::{Row, csv, files},
    svg,
};

/// A figure: it draws rows and describes them in a caption.
pub trait Figure {
    /// The type of its rows.
    type Row: Row;
    /// The stem of the names of its files.
    const NAME: &'static str;
    /// Its nominal width and height in units.
    const SIZE: (u32, u32);

    /// Draws `rows` on `root`, scaled to fit its width and its height.
    fn draw<DB: DrawingBackend>(root: &DrawingArea<DB, Shift>, rows: &[Self::Row]) -> Result<(), ReportError>;

    /// What the figure shows, in plain sentences.
    fn caption(rows: &[Self::Row]) -> String;
}

/// The files of a drawing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drawn {
    /// Vector graphic.
    pub svg: PathBuf,
    /// Raster graphic of twice the nominal size.
    pub png: PathBuf,
}

/// The files of a figure: its drawing and its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Vector graphic.
    pub svg: PathBuf,
    /// Raster graphic of twice the nominal size.
    pub png: PathBuf,
    /// The rows of the figure.
    pub csv: PathBuf,
}

/// Backends use whole pixels. Figures are drawn larger than nominal by this factor, which keeps curves smooth. The SVG is then
/// displayed smaller, and the PNG is averaged.
const FINE: u32 = 4;
/// Pixels per unit of a PNG.
const PNG_SCALE: u32 = 2;

/// Draws `rows` into `folder` as `stem.svg` and `stem.png`, each through a temporary file.
///
/// # Errors
/// The errors of the figure's `draw`, and [`kvcsr_records::RecordsError::Io`] with the file.
pub fn drawing<F: Figure>(folder: &Path, stem: &str, rows: &[F::Row]) -> Result<Drawn, ReportError> {
    let path = |extension: &str| folder.join(format!("{stem}.{extension}"));
    let drawn = Drawn { svg: path("svg"), png: path("png") };
    files::write_text(&drawn.svg, &svg::<F>(rows)?)?;
    png::<F>(&drawn.png, rows)?;
    Ok(drawn)
}

/// Draws `rows` into `folder` under the figure's own name, and writes them as CSV into the same folder.
///
/// # Errors
/// The same as [`drawing`].
pub fn figure<F: Figure>(folder: &Path, rows: &[F::Row]) -> Result<Saved, ReportError> {
    let Drawn { svg, png } = drawing::<F>(folder, F::NAME, rows)?;
    let csv = svg.with_extension("csv");
    csv::write(&csv, rows)?;
    Ok(Saved { svg, png, csv })
}

/// The figure as the text of an SVG file of nominal size.
pub fn svg<F: Figure>(rows: &[F::Row]) -> Result<String, ReportError> {
    let fine = (F::SIZE.0 * FINE, F::SIZE.1 * FINE);
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, fine).into_drawing_area();
        F::draw(&root, rows)?;
        root.present()?;
    }
    svg::with_text_widths(&svg::of_size(&text, fine, F::SIZE))
}

/// The figure as RGB bytes, row by row, and its width and height in pixels, which are twice the nominal size.
pub fn raster<F: Figure>(rows: &[F::Row]) -> Result<(Vec<u8>, (u32, u32)), ReportError> {
    let fine = (F::SIZE.0 * FINE, F::SIZE.1 * FINE);
    let mut pixels = vec![0_u8; fine.0 as usize * fine.1 as usize * 3];
    {
        let root = BitMapBackend::with_buffer(&mut pixels, fine).into_drawing_area();
        F::draw(&root, rows)?;
        root.present()?;
    }
    let size = (F::SIZE.0 * PNG_SCALE, F::SIZE.1 * PNG_SCALE);
    Ok((averaged(&pixels, size, (FINE / PNG_SCALE) as usize), size))
}

/// Writes [`raster`] as a PNG file.
pub fn png<F: Figure>(path: &Path, rows: &[F::Row]) -> Result<(), ReportError> {
    let (pixels, size) = raster::<F>(rows)?;
    files::replace(path, |file| {
        let mut encoder = png::Encoder::new(file, size.0, size.1);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let encoded = encoder.write_header().and_then(|mut image| {
            image.write_image_data(&pixels)?;
            image.finish()
        });
        encoded.map_err(|error| ReportError::Draw(format!("{}: {error}", path.display())))
    })
}

/// Averages blocks of `factor * factor` RGB pixels into an image of `size`.
fn averaged(pixels: &[u8], size: (u32, u32), factor: usize) -> Vec<u8> {
    let (width, height) = (size.0 as usize, size.1 as usize);
    let stride = width * factor * 3;
    let count = (factor * factor) as u32;
    let mut small = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            for channel in 0..3 {
                let sum: u32 = (0..factor)
                    .flat_map(|dy| {
                        (0..factor).map(move |dx| (y * factor + dy) * stride + (x * factor + dx) * 3 + channel)
                    })
                    .map(|at| u32::from(pixels[at]))
                    .sum();
                small.push(((sum + count / 2) / count) as u8);
            }
        }
    }
    small
}

/// A figure for the last line of a notebook cell.
pub struct Inline {
    svg: String,
    caption: String,
}

impl Shown for Inline {
    fn html(&self) -> String {
        let Self { svg, caption } = self;
        let caption = escaped(caption);
        format!("<figure style=\"margin:0\">{svg}<figcaption style=\"max-width:46rem\">{caption}</figcaption></figure>")
    }
}

/// Draws a figure for a notebook. It is shown if it is the last value of a cell:
/// `save::inline::<SparsityError>(&rows).unwrap()`.
pub fn inline<F: Figure>(rows: &[F::Row]) -> Result<Inline, ReportError> {
    Ok(Inline { svg: svg::<F>(rows)?, caption: F::caption(rows) })
}

#[cfg(test)]
mod tests {
    use super::averaged;

    #[test]
    fn averaging_rounds_to_nearest_and_keeps_channels_apart() {
        // A block of two by two pixels becomes one pixel: red 0, 0, 1, 1 -> 0.5 -> 1; green is always 10; blue 0, 4, 8, 12 -> 6.
        let pixels = [0, 10, 0, 0, 10, 4, 1, 10, 8, 1, 10, 12];
        assert_eq!(averaged(&pixels, (1, 1), 2), [1, 10, 6]);
    }
}
