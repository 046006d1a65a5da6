//! Keys after position embedding.

use std::path::Path;

use candle_core::{Device, Tensor};
use kvcsr_cache::{Geometry, Rotary};
use kvcsr_codec::Kind;
use kvcsr_report::notebook::{Coded, Markdown, Outcome, Shown, heldout_vectors, neuraldict, sequence_length};

use crate::error::Result;
use crate::trial::rope_dictionaries;
use crate::{LabError, Model};

/// Relative squared errors for one layer's held-out keys at one level.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeError {
    /// Atoms per key.
    pub level: usize,
    /// Error if keys are coded before position embedding, as in CSR.
    pub before: f64,
    /// Error if keys are coded after it, with the dictionary for keys before it.
    pub after: f64,
    /// Error if keys are coded after it, with a dictionary trained on such keys. `None` if `just train-rope` has not
    /// been run.
    pub trained_after: Option<f64>,
}

/// Rows of [`before_and_after`], shown as a table.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeErrors(pub Vec<RopeError>);

/// Codes the first `tokens` held-out keys of a layer before and after position embedding, at each of `levels`. Rotation
/// does not change the length of a key, so the errors can be compared.
///
/// # Errors
/// If files are missing, or the layer has no dictionary.
pub fn before_and_after(
    run: &Path,
    model: &Model,
    layer: usize,
    levels: &[usize],
    tokens: usize,
) -> Outcome<RopeErrors> {
    let Geometry { kv_heads, head_dim, .. } = model.decoder.geometry();
    let (before, _) = heldout_vectors(run, layer, Kind::Key, tokens)?;
    let after = rotated(&before, kv_heads, head_dim, sequence_length(run)?, model.decoder.rotary().of(layer))?;
    let (own, turned) = (neuraldict(run)?, rope_dictionaries(run)?);
    let missing = || LabError::NoDictionary { layer, kind: Kind::Key };
    let group = own.group(layer, Kind::Key).ok_or_else(missing)?;
    let turned = turned.as_ref().and_then(|set| set.group(layer, Kind::Key));
    let errors = levels.iter().map(|&level| -> Outcome<RopeError> {
        let error = |group, vectors: &[f32]| -> Outcome<f64> {
            Ok(Coded::of(group, layer, kv_heads, level, vectors.to_vec())?.error()?)
        };
        Ok(RopeError {
            level,
            before: error(group, &before)?,
            after: error(group, &after)?,
            trained_after: turned.map(|group| error(group, &after)).transpose()?,
        })
    });
    Ok(RopeErrors(errors.collect::<Outcome<_>>()?))
}

impl Shown for RopeErrors {
    fn html(&self) -> String {
        let mut text = String::from(
            "| atoms | before position embedding | after it, same dictionary | after it, its own dictionary |\n|--:|--:|--:|--:|\n",
        );
        for row in &self.0 {
            let trained =
                row.trained_after.map_or_else(|| "`just train-rope`".to_owned(), |error| format!("{error:.4}"));
            text += &format!("| {} | {:.4} | {:.4} | {trained} |\n", row.level, row.before, row.after);
        }
        Markdown::of(&text).html()
    }
}

/// Rotates keys as attention does. `keys` is `(T, Hkv, D)`, from texts of `length` tokens one after another. Each key
/// is rotated by its position in its text.
///
/// # Errors
/// The errors of [`rotated_from`].
pub fn rotated(keys: &[f32], heads: usize, head_dim: usize, length: usize, rotary: &Rotary) -> Result<Vec<f32>> {
    rotated_from(keys, heads, head_dim, length, rotary, |_| 0)
}

/// The same as [`rotated`], but the first token of text number `i` is at position `first(i)`.
///
/// # Errors
/// If `keys` are not whole tokens, or a position is beyond the rotary tables.
pub fn rotated_from(
    keys: &[f32],
    heads: usize,
    head_dim: usize,
    length: usize,
    rotary: &Rotary,
    first: impl Fn(usize) -> usize,
) -> Result<Vec<f32>> {
    let mut turned = Vec::with_capacity(keys.len());
    for (number, text) in keys.chunks(length.max(1) * heads * head_dim).enumerate() {
        let tokens = text.len() / (heads * head_dim);
        // (T, Hkv, D) -> (1, Hkv, T, D) and back
        let x = Tensor::from_slice(text, (1, tokens, heads, head_dim), &Device::Cpu)?.transpose(1, 2)?;
        turned.extend(rotary.apply(&x, first(number))?.transpose(1, 2)?.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok(turned)
}

/// The position at which text number `i` of `length` tokens begins, so that the texts cover all positions below
/// `positions` evenly. The positions are multiples of the golden ratio. They are spread evenly for any number of texts,
/// and do not follow the order of the texts. The result is 0 if one text alone has at least `positions` tokens.
///
/// A dictionary of rotated keys fits only the positions on which it was trained. If it was trained only below 1024, its
/// error at later positions is four times as large.
pub fn spread(i: usize, length: usize, positions: usize) -> usize {
    const GOLDEN: f64 = 0.618_033_988_749_895;
    ((i as f64 * GOLDEN).fract() * (positions.saturating_sub(length) + 1) as f64) as usize
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn positions_start_over_with_each_text() {
        let rotary = Rotary::new(2, 1e4, 8, &Device::Cpu).unwrap();
        // Two texts of two tokens, with two heads each. All keys are (1, 0). Position 1 rotates them by one radian.
        let keys = [1.0, 0.0].repeat(8);
        let turned = rotated(&keys, 2, 2, 2, &rotary).unwrap();
        let (still, after) = ([1.0, 0.0, 1.0, 0.0], [1f32.cos(), 1f32.sin(), 1f32.cos(), 1f32.sin()]);
        for (found, expected) in turned.iter().zip([still, after, still, after].concat()) {
            assert!((found - expected).abs() < 1e-6, "{turned:?}");
        }
        assert!(rotated(&keys, 2, 2, 9, &rotary).unwrap().len() == 16);
    }

    #[test]
    fn texts_start_where_they_are_told_to() {
        let rotary = Rotary::new(2, 1e4, 16, &Device::Cpu).unwrap();
        let keys = [1.0, 0.0].repeat(4);
        let turned = rotated_from(&keys, 1, 2, 2, &rotary, |i| 3 * i).unwrap();
        let expected: Vec<f32> = [0f32, 1.0, 3.0, 4.0].iter().flat_map(|p| [p.cos(), p.sin()]).collect();
        for (found, expected) in turned.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{turned:?}");
        }
        assert!(rotated_from(&keys, 1, 2, 2, &rotary, |i| 15 * i).is_err(), "beyond the tables");
    }

    #[test]
    fn starts_cover_all_positions_evenly_in_no_order() {
        let starts: Vec<usize> = (0..64).map(|i| spread(i, 1024, 8192)).collect();
        assert!(starts.iter().all(|&start| start + 1024 <= 8192));
        for part in 0..8 {
            let inside = starts.iter().filter(|&&start| start / 896 == part).count();
            assert!((6..=10).contains(&inside), "{inside} of 64 start in eighth {part}: {starts:?}");
        }
        // The first and the second half of the texts come from different corpora. Their positions are distributed in
        // the same way.
        let mean = |half: &[usize]| half.iter().sum::<usize>() as f64 / half.len() as f64;
        assert!((mean(&starts[..32]) - mean(&starts[32..])).abs() < 400.0, "{starts:?}");
        assert_eq!((spread(5, 1024, 1024), spread(5, 1024, 100)), (0, 0));
    }
}
