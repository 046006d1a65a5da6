//! Vectors in the plane of their two principal components: the paper's Figure 2.

use std::path::Path;

use candle_core::{Device, Tensor};
use kvcsr_cache::Rotary;
use kvcsr_cache::schemes::svdq::symmetric_eigenvectors;
use kvcsr_codec::{Kind, Shard};
use kvcsr_report::{ScatterRow, figures::rotary_scatter::GROUPS};

use crate::LabError;
use crate::error::Result;

/// The number of prompts shown, and the number of head vectors of each.
const PROMPTS: usize = 6;
const PER_PROMPT: usize = 240;
/// The number of keys shown for each group of positions.
const PER_GROUP: usize = 150;

/// The layers that correspond to the paper's layers 5 and 30 of 32 in a model of another depth: a shallow and a deep
/// one.
pub fn depths(layers: usize) -> [usize; 2] {
    [5, 30].map(|layer| (layer * layers / 32).min(layers.saturating_sub(1)))
}

/// `count` numbers of `0..of`, evenly spaced.
pub(crate) fn spread(count: usize, of: usize) -> impl Iterator<Item = usize> {
    let count = count.min(of);
    (0..count).map(move |at| at * of / count.max(1))
}

/// Figure 2a: keys and values of a shallow and of a deep layer, grouped by text. `calibrate` is the folder of that
/// stage. Prompts are calibration sequences of `length` tokens, taken evenly from all texts.
///
/// # Errors
/// If a shard cannot be read.
pub fn prompts(calibrate: &Path, layers: usize, length: usize) -> Result<Vec<ScatterRow>> {
    let mut rows = Vec::new();
    for layer in depths(layers) {
        for kind in Kind::ALL {
            rows.extend(by_prompt(&calibration(calibrate, layer, kind)?, layer, kind, length)?);
        }
    }
    Ok(rows)
}

/// Figure 2b: keys of the first head of the shallow layer, grouped by position, before and after position embedding.
///
/// # Errors
/// If the shard cannot be read, or its texts are longer than the rotary tables.
pub fn positions(calibrate: &Path, layers: usize, length: usize, rotary: &Rotary) -> Result<Vec<ScatterRow>> {
    let [layer, _] = depths(layers);
    by_position(&calibration(calibrate, layer, Kind::Key)?, layer, length, rotary)
}

pub(crate) fn calibration(calibrate: &Path, layer: usize, kind: Kind) -> Result<Shard> {
    Ok(Shard::open(calibrate.join(format!("calibration/layer-{layer:02}-{kind}s.safetensors")))?)
}

/// Figure 2a for one layer: keys or values of several texts, grouped by text. The shard holds texts of `length` tokens,
/// one after another.
///
/// # Errors
/// If the shard cannot be read.
pub fn by_prompt(shard: &Shard, layer: usize, kind: Kind, length: usize) -> Result<Vec<ScatterRow>> {
    let width = shard.head_dim();
    let per_text = length * shard.heads();
    let prompts: Vec<usize> = spread(PROMPTS, shard.tokens() / length.max(1)).collect();
    let each: Vec<usize> = spread(PER_PROMPT, per_text).collect();
    let picked: Vec<usize> =
        prompts.iter().flat_map(|prompt| each.iter().map(move |at| prompt * per_text + at)).collect();
    let label = |at: usize| (at / each.len().max(1), format!("prompt {}", at / each.len().max(1) + 1));
    panel(&format!("{kind}s, layer {layer}"), &gathered(shard, &picked)?, width, label)
}

/// Figure 2b for one layer: keys of its first head, grouped by position, before and after position embedding.
///
/// # Errors
/// If the shard cannot be read, or its texts are longer than the rotary tables.
pub fn by_position(shard: &Shard, layer: usize, length: usize, rotary: &Rotary) -> Result<Vec<ScatterRow>> {
    let (width, heads) = (shard.head_dim(), shard.heads());
    let sequences = shard.tokens() / length.max(1);
    let group_length = (length / GROUPS).max(1);
    let mut picked = Vec::new();
    let mut at = Vec::new();
    for group in 0..GROUPS.min(length) {
        // Positions of the group, taken evenly over all texts.
        for choice in spread(PER_GROUP, sequences * group_length) {
            let (sequence, offset) = (choice / group_length, choice % group_length);
            let position = group * group_length + offset;
            picked.push((sequence * length + position) * heads);
            at.push((group, position));
        }
    }
    let before = gathered(shard, &picked)?;
    let mut after = Vec::with_capacity(before.len());
    for (row, &(_, position)) in before.chunks_exact(width).zip(&at) {
        let one = Tensor::from_slice(row, (1, 1, 1, width), &Device::Cpu)?;
        after.extend(rotary.apply(&one, position)?.flatten_all()?.to_vec1::<f32>()?);
    }
    let label = |row: usize| {
        let group = at[row].0;
        (group, format!("{}-{}", group * group_length, (group + 1) * group_length - 1))
    };
    let mut rows = panel(&format!("before, layer {layer}"), &before, width, label)?;
    rows.extend(panel(&format!("after, layer {layer}"), &after, width, label)?);
    Ok(rows)
}

pub(crate) fn gathered(shard: &Shard, picked: &[usize]) -> Result<Vec<f32>> {
    let mut vectors = vec![0f32; picked.len() * shard.head_dim()];
    shard.gather(shard.head_dim(), picked, &mut vectors)?;
    Ok(vectors)
}

/// The points of one panel: `vectors` in their own plane. `of` gives the colour and the name for the index of a vector.
///
/// # Errors
/// The errors of [`principal_plane`].
pub fn panel(
    heading: &str,
    vectors: &[f32],
    width: usize,
    of: impl Fn(usize) -> (usize, String),
) -> Result<Vec<ScatterRow>> {
    let (points, variance) = principal_plane(vectors, width)?;
    let row = |(at, (x, y)): (usize, (f64, f64))| {
        let (group, label) = of(at);
        ScatterRow { panel: heading.to_owned(), group, label, x, y, variance }
    };
    Ok(points.into_iter().enumerate().map(row).collect())
}

/// The coordinates of `vectors`, `(n, width)`, relative to their mean, in the plane of their two directions of largest
/// variance. Also returns the share of the variance that is in the plane. The sign of each direction is chosen so that
/// its largest entry is positive.
///
/// # Errors
/// [`LabError::NoPlane`] if there are no vectors, fewer than two channels, or numbers that are not finite.
pub fn principal_plane(vectors: &[f32], width: usize) -> Result<(Vec<(f64, f64)>, f64)> {
    let n = vectors.len().checked_div(width).unwrap_or(0);
    let none = || LabError::NoPlane { vectors: n, width };
    if n == 0 || width < 2 || vectors.iter().any(|x| !x.is_finite()) {
        return Err(none());
    }
    let mut mean = vec![0.0; width];
    for row in vectors.chunks_exact(width) {
        mean.iter_mut().zip(row).for_each(|(mean, &x)| *mean += f64::from(x) / n as f64);
    }
    let centred: Vec<f64> = vectors
        .chunks_exact(width)
        .flat_map(|row| row.iter().zip(&mean).map(|(&x, mean)| f64::from(x) - mean))
        .collect();
    let (values, directions) = principal(&centred, width).ok_or_else(none)?;
    let mut axes = directions.chunks_exact(width).map(|axis| {
        let largest = axis.iter().fold(0.0f64, |most, &x| if x.abs() > most.abs() { x } else { most });
        axis.iter().map(|x| x * largest.signum()).collect::<Vec<f64>>()
    });
    let (first, second) = (axes.next().ok_or_else(none)?, axes.next().ok_or_else(none)?);
    let along = |row: &[f64], axis: &[f64]| row.iter().zip(axis).map(|(x, a)| x * a).sum::<f64>();
    let points = centred.chunks_exact(width).map(|row| (along(row, &first), along(row, &second))).collect();
    let total: f64 = values.iter().map(|value| value.max(0.0)).sum();
    Ok((points, if total > 0.0 { (values[0] + values[1]).max(0.0) / total } else { 0.0 }))
}

/// Sums of squares of `rows`, `(n, width)`, along their principal directions about zero, in falling order, and these directions, one per
/// row. `None` if they do not settle.
pub(crate) fn principal(rows: &[f64], width: usize) -> Option<(Vec<f64>, Vec<f64>)> {
    // The lower triangle, which is all that the eigenvectors need.
    let mut scatter = vec![0.0; width * width];
    for row in rows.chunks_exact(width) {
        for (i, &x) in row.iter().enumerate() {
            scatter[i * width..i * width + i + 1].iter_mut().zip(row).for_each(|(sum, y)| *sum += x * y);
        }
    }
    symmetric_eigenvectors(&scatter, width)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_plane_holds_the_two_widest_directions() {
        // The variance is largest along channel 2, then along channel 0. Channel 1 hardly varies. The mean is not zero.
        let rows: Vec<f32> = (0..100)
            .flat_map(|i| {
                let (a, b) = ((i % 10) as f32, (i / 10) as f32);
                [5.0 + b, 7.0 + 0.01 * ((i % 3) as f32), 10.0 * a]
            })
            .collect();
        let (points, share) = principal_plane(&rows, 3).unwrap();
        assert!(share > 0.999 && share < 1.0, "{share}");
        assert!((points[9].0 - points[0].0 - 90.0).abs() < 0.1, "{:?} {:?}", points[0], points[9]);
        assert!((points[90].1 - points[0].1 - 9.0).abs() < 0.1, "{:?} {:?}", points[0], points[90]);
        let centre: f64 = points.iter().map(|p| p.0).sum();
        assert!(centre.abs() < 1e-6);
        assert!(matches!(principal_plane(&[], 3), Err(LabError::NoPlane { vectors: 0, width: 3 })));
        assert!(principal_plane(&[1.0, f32::NAN], 2).is_err());
    }

    #[test]
    fn depths_stay_within_the_model() {
        assert_eq!((depths(32), depths(30), depths(1)), ([5, 30], [4, 28], [0, 0]));
    }
}
