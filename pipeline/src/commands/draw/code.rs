//! Draws a key as three atoms, coded by the encoder that the caches use.

use std::sync::Arc;

use anyhow::Result;
use kvcsr_codec::{Dictionary, Encoder};

use super::paper::{Anchor, Sheet};

/// Channels of the key, atoms of the dictionary, and atoms of the code.
const CHANNELS: usize = 32;
const ATOMS: usize = 64;
const SPARSITY: usize = 3;
const CLASSES: [&str; SPARSITY] = ["a", "b", "c"];

/// Smooth waves of several lengths and phases, each of norm 1. They are polynomials, so that every machine draws the same.
fn dictionary() -> Result<Arc<Dictionary>> {
    let wave = |atom: usize, channel: usize| {
        let (periods, phase) = (1.0 + (atom % 8) as f32 * 0.75, (atom / 8) as f32 * 0.125);
        let at = channel as f32 / CHANNELS as f32;
        let place = periods * at + phase;
        let slope = 1.0 - 4.0 * (place - place.floor() - 0.5).abs();
        slope * (1.5 - 0.5 * slope * slope) * (1.0 - (at - 0.125 * (atom % 7) as f32).abs())
    };
    let numbers = (0..ATOMS).flat_map(|atom| (0..CHANNELS).map(move |channel| wave(atom, channel))).collect();
    Ok(Arc::new(Dictionary::normalised(CHANNELS, numbers)?))
}

/// The drawing.
pub(super) fn draw() -> Result<String> {
    let dictionary = dictionary()?;
    // A key that three atoms fit well but not exactly, like the keys of a model.
    let mix = [(13, 2.6f32), (42, -1.7), (27, 1.1), (50, 0.35), (5, -0.3)];
    let mut key = vec![0f32; CHANNELS];
    for (atom, weight) in mix {
        key.iter_mut().zip(dictionary.atom(atom)).for_each(|(x, a)| *x += weight * a);
    }
    let (mut indices, mut coefficients) = ([0u16; SPARSITY], [0f32; SPARSITY]);
    Encoder::new(dictionary.clone()).encode(&key, SPARSITY, &mut indices, &mut coefficients)?;
    let mut restored = vec![0f32; CHANNELS];
    for (index, coefficient) in indices.iter().zip(coefficients) {
        restored.iter_mut().zip(dictionary.atom(usize::from(*index))).for_each(|(x, a)| *x += coefficient * a);
    }
    let square = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>();
    let left: Vec<f32> = key.iter().zip(&restored).map(|(a, b)| a - b).collect();
    let kept = 100.0 * (1.0 - square(&left) / square(&key));

    let (step, width) = (5.0, 5.0 * CHANNELS as f64);
    let stored = SPARSITY * 4;
    let dense = CHANNELS * 2;
    let title = format!(
        "A key of {CHANNELS} channels as {SPARSITY} atoms of a dictionary: {stored} bytes instead of {dense}, and {kept:.0} % of its energy"
    );
    let mut sheet = Sheet::new((940, 320), &title);
    let row = 105.0;
    sheet.text("strong", Anchor::Start, (20.0, 28.0), format!("A key of {CHANNELS} channels"));
    sheet.bars("d", (20.0, row), &key, step, 45.0);
    sheet.text("", Anchor::Middle, (200.0, row + 5.0), "≈");
    for (at, (index, coefficient)) in indices.iter().zip(coefficients).enumerate() {
        let x = 222.0 + at as f64 * 236.0;
        let sign = match (at, coefficient < 0.0) {
            (0, false) => "",
            (_, false) => "+ ",
            (_, true) => "− ",
        };
        let size = coefficient.abs();
        sheet.text("", Anchor::Start, (x, row + 5.0), format!("{sign}{size:.2} ×"));
        sheet.text("small", Anchor::Middle, (x + 68.0 + width / 2.0, 28.0), format!("atom {index} of {ATOMS}"));
        sheet.bars(CLASSES[at], (x + 68.0, row), dictionary.atom(usize::from(*index)), step, 90.0);
    }
    let base = 190.0;
    sheet.text("strong", Anchor::Start, (20.0, base), "What is stored");
    for (at, (index, coefficient)) in indices.iter().zip(coefficients).enumerate() {
        let x = 222.0 + at as f64 * 236.0;
        sheet.rect("code", (x, base - 20.0), (200.0, 30.0), 4.0);
        sheet.text(
            "mono",
            Anchor::Middle,
            (x + 100.0, base),
            format!("atom {index:>2}   coefficient {coefficient:>5.2}"),
        );
    }
    sheet.text(
        "small",
        Anchor::Start,
        (222.0, base + 32.0),
        format!("2 bytes for each number: {stored} bytes instead of {dense}. The dictionary is shared by all tokens."),
    );
    let base = 285.0;
    sheet.text("strong", Anchor::Start, (20.0, base - 5.0), "What comes back");
    sheet.bars("d", (222.0, base), &restored, step, 28.0);
    sheet.text(
        "small",
        Anchor::Start,
        (240.0 + width, base - 2.0),
        format!("{kept:.0} % of the key's energy. Keys are restored a tile at a time, never all at once."),
    );
    Ok(sheet.finish())
}
