//! Draws every figure from synthetic rows. Checks the words in it, that it is not blank, and that its files are complete.
//!
//! `KVCSR_FIGURES=<folder> cargo test -p kvcsr-report --test figures` keeps the pictures in a folder.

#![allow(clippy::unwrap_used, missing_docs)]

mod codes;
mod dictionaries;
mod layers;
mod memory;
mod quality;

use std::{env, fs, path::PathBuf};

use kvcsr_report::{
    figures::LayerError,
    save::{self, Figure},
};

/// A number in 0..1 that depends only on its arguments.
fn wobble(a: usize, b: usize) -> f64 {
    let x = (a as f64 * 12.9898 + b as f64 * 78.233).sin() * 43758.5453;
    x - x.floor()
}

/// Saves the figure, checks its files and returns the SVG.
fn check<F: Figure>(rows: &[F::Row], words: &[&str]) -> String {
    let scratch = tempfile::tempdir().unwrap();
    let folder = env::var_os("KVCSR_FIGURES").map_or_else(|| scratch.path().join("new folder"), PathBuf::from);
    let saved = save::figure::<F>(&folder, rows).unwrap();

    let svg = fs::read_to_string(&saved.svg).unwrap();
    for word in words {
        assert!(svg.contains(word), "{}: `{word}` is missing from the SVG", F::NAME);
    }
    let (width, height) = F::SIZE;
    assert!(svg.starts_with(&format!(
        "<svg width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {} {}\"",
        4 * width,
        4 * height
    )));

    let png = fs::read(&saved.png).unwrap();
    assert_eq!(&png[1..4], b"PNG");
    let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    assert_eq!((number(16), number(20)), (2 * width, 2 * height), "{}: size in the PNG's header", F::NAME);

    let (pixels, size) = save::raster::<F>(rows).unwrap();
    let inked = pixels.chunks_exact(3).filter(|pixel| pixel.iter().any(|&channel| channel < 200)).count();
    let share = inked as f64 / f64::from(size.0 * size.1);
    assert!((0.005..0.5).contains(&share), "{}: {share} of the pixels are inked", F::NAME);
    let stride = size.0 as usize * 3;
    let clean = |edge: &[u8]| edge.iter().all(|&channel| channel == 255);
    assert!(clean(&pixels[..stride]), "{}: ink at the upper edge", F::NAME);
    assert!(clean(&pixels[pixels.len() - stride..]), "{}: ink at the lower edge", F::NAME);
    let right_is_clean = pixels.chunks_exact(stride).all(|row| clean(&row[stride - 3..]));
    assert!(right_is_clean, "{}: ink at the right edge, a label is cut off", F::NAME);

    let csv = fs::read_to_string(&saved.csv).unwrap();
    assert_eq!(csv.lines().count(), rows.len() + 1, "{}: lines of the CSV", F::NAME);
    if env::var_os("KVCSR_FIGURES").is_none() {
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 3, "{}: a temporary file was left behind", F::NAME);
    }
    svg
}

#[test]
fn a_failed_figure_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    assert!(save::figure::<LayerError>(folder.path(), &[]).is_err());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// A glyph that the shipped font lacks is drawn as an empty box.
#[test]
fn the_shipped_font_has_every_character_that_numbers_use() {
    use ab_glyph::{Font, FontRef};
    let font = FontRef::try_from_slice(include_bytes!("../../fonts/LiberationSans-Regular.ttf")).unwrap();
    for value in [0.0, 5.2e-7, 0.05, 2.5, 30_000.0, -40_000.0, 123_456_789.0] {
        for c in kvcsr_report::ticks::number(value).chars() {
            assert_ne!(font.glyph_id(c).0, 0, "{c:?} of {value}");
        }
    }
}
