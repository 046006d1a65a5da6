//! What atoms, and what principal components, leave of a layer's vectors.
//!
//! Both describe a vector by a few numbers. Components are the same for all vectors: a transform. Atoms are chosen for each vector
//! among thousands, and their indices must be stored as well.

use std::path::Path;

use kvcsr_codec::{DictionarySet, Kind};
use kvcsr_report::notebook::{Outcome, file_of, heldout_vectors, reconstruction};
use kvcsr_report::{DictionarySource, EnergyRow};

use crate::LabError;
use crate::error::Result;
use crate::planes::{calibration, gathered, principal, spread};

/// Calibration tokens that means and components are taken from, evenly from all texts.
const FITTED: usize = 8192;

/// What rows say that vectors are made of.
pub const ATOMS: &str = "atoms";
/// See [`ATOMS`]. Principal directions of a head's vectors about zero.
pub const COMPONENTS: &str = "components";
/// See [`ATOMS`]. The mean vector of the head, which costs nothing for each vector, and principal directions about it.
pub const CENTRED: &str = "mean and components";

/// The rows of [`kvcsr_report::figures::EnergyLeft`]: the share of the energy of a layer's first `tokens` held-out tokens that is left
/// after each of `counts` atoms of the dictionaries `set`, and after as many principal components of each head. Components and means
/// are those of calibration text. Counts of atoms that the chunks of values do not divide are left out.
///
/// # Errors
/// If files are missing, the set has no dictionary for the layer, or vectors have no components.
pub fn energy_left(
    run: &Path,
    set: &DictionarySet,
    layer: usize,
    counts: &[usize],
    tokens: usize,
) -> Outcome<Vec<EnergyRow>> {
    let row = |kind: Kind, by: &str, count: usize, left: f64| EnergyRow { layer, kind, by: by.to_owned(), count, left };
    let coded = reconstruction(run, set, DictionarySource::NeuralDict, [layer], counts, tokens)?;
    let mut rows = Vec::new();
    for kind in Kind::ALL {
        let of_kind = coded.iter().filter(|row| row.kind == kind);
        rows.extend(counts.iter().filter(|&&count| count == 0).map(|_| row(kind, ATOMS, 0, 1.0)));
        rows.extend(of_kind.map(|coded| row(kind, ATOMS, coded.level(), coded.relative)));
        let (heldout, found) = heldout_vectors(run, layer, kind, tokens)?;
        let shard = calibration(&file_of(run, "calibrate"), layer, kind)?;
        let (heads, width) = (shard.heads(), shard.head_dim());
        if found * heads * width != heldout.len() {
            return Err(format!("layer {layer}: calibration and held-out {kind}s are of different shapes").into());
        }
        let picked: Vec<usize> = spread(FITTED, shard.tokens()).map(|token| token * heads).collect();
        let of_head = |head: usize| -> Result<[Vec<f64>; 2]> {
            let own: Vec<usize> = picked.iter().map(|first| first + head).collect();
            let fitted = wide(&gathered(&shard, &own)?);
            let own = heldout.chunks_exact(heads * width).flat_map(|token| &token[head * width..(head + 1) * width]);
            Ok([fitted, own.copied().map(f64::from).collect()])
        };
        let split = (0..heads).map(of_head).collect::<Result<Vec<_>>>()?;
        for (by, centred) in [(COMPONENTS, false), (CENTRED, true)] {
            let left = outside(&split, width, centred, counts).ok_or(LabError::NoComponents { layer, kind })?;
            rows.extend(counts.iter().zip(left).map(|(&count, left)| row(kind, by, count, left)));
        }
    }
    Ok(rows)
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().copied().map(f64::from).collect()
}

/// The share of the heads' energy that lies outside the first `count` principal directions, for each of `counts`. A head has vectors
/// `(n, width)` that directions, and where they are `centred` the mean, are taken from, and others that are measured.
///
/// `None` for vectors without directions, or without energy.
fn outside(heads: &[[Vec<f64>; 2]], width: usize, centred: bool, counts: &[usize]) -> Option<Vec<f64>> {
    let mut left = vec![0.0; counts.len()];
    let mut energy = 0.0;
    for [fitted, measured] in heads {
        if fitted.is_empty() || fitted.iter().any(|x| !x.is_finite()) {
            return None;
        }
        let mean = if centred { mean(fitted, width) } else { vec![0.0; width] };
        let less = |rows: &[f64]| -> Vec<f64> {
            rows.chunks_exact(width).flat_map(|row| row.iter().zip(&mean).map(|(x, mean)| x - mean)).collect()
        };
        let (_, directions) = principal(&less(fitted), width)?;
        let squares = |rows: &[f64]| rows.iter().map(|x| x * x).sum::<f64>();
        energy += squares(measured);
        let rest = less(measured);
        let all = squares(&rest);
        // What lies along the directions so far, one more at a time.
        let mut along = vec![0.0; width + 1];
        for (at, axis) in directions.chunks_exact(width).enumerate() {
            let onto = |row: &[f64]| row.iter().zip(axis).map(|(x, a)| x * a).sum::<f64>().powi(2);
            along[at + 1] = along[at] + rest.chunks_exact(width).map(onto).sum::<f64>();
        }
        left.iter_mut().zip(counts).for_each(|(left, &count)| *left += (all - along[count.min(width)]).max(0.0));
    }
    (energy > 0.0).then(|| left.into_iter().map(|left| left / energy).collect())
}

/// The mean of rows `(n, width)`, of which there is one at least.
fn mean(rows: &[f64], width: usize) -> Vec<f64> {
    let n = (rows.len() / width) as f64;
    let mut mean = vec![0.0; width];
    rows.chunks_exact(width).for_each(|row| mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += x / n));
    mean
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use kvcsr_codec::{Dictionary, DictionaryGroup};

    use super::*;
    use crate::testing::write_shard;

    #[test]
    fn directions_take_their_share_and_the_mean_is_free() {
        // About (10, 0): 3 along the first channel, 1 along the second.
        let rows = vec![13.0, 0.0, 7.0, 0.0, 10.0, 1.0, 10.0, -1.0];
        let energy = 169.0 + 49.0 + 2.0 * 101.0;
        let heads = [[rows.clone(), rows]];
        let close = |found: Vec<f64>, expected: [f64; 3]| {
            found.iter().zip(expected).all(|(a, b)| (a - b / energy).abs() < 1e-12)
        };
        assert!(close(outside(&heads, 2, false, &[0, 1, 2]).unwrap(), [energy, 2.0, 0.0]));
        assert!(close(outside(&heads, 2, true, &[0, 1, 9]).unwrap(), [20.0, 2.0, 0.0]));
        assert!(outside(&[[vec![], vec![1.0, 2.0]]], 2, false, &[0]).is_none());
        assert!(outside(&[[vec![1.0, 2.0], vec![0.0, 0.0]]], 2, false, &[0]).is_none());
    }

    #[test]
    fn atoms_and_components_of_a_run_have_a_row_for_each_count() {
        let run = tempfile::tempdir().unwrap();
        let (heads, width, tokens) = (2, 8, 60);
        let vectors: Vec<f32> =
            (0..tokens * heads * width).map(|i| ((i * i * 31 + i) % 97) as f32 / 48.0 - 1.0).collect();
        for side in ["heldout", "calibration"] {
            for kind in Kind::ALL {
                write_shard(run.path(), side, 1, kind, [heads, width], &vectors);
            }
        }
        let group = |kind: Kind, chunks: usize| {
            let d = width / chunks;
            let atoms = (0..d * d).map(|at| if at / d == at % d { 1.0 } else { 0.0 }).collect();
            let dictionary = Arc::new(Dictionary::new(d, atoms).unwrap());
            DictionaryGroup { kind, layers: vec![1], chunks, sparsity: 8 / chunks, dictionary }
        };
        let groups = vec![group(Kind::Key, 1), group(Kind::Value, 2)];
        let set = DictionarySet { head_dim: width, groups, provenance: Default::default() };
        let rows = energy_left(run.path(), &set, 1, &[0, 1, 2, 8], 50).unwrap();
        // Chunks of values in two take no single atom.
        assert_eq!(rows.len(), (4 + 4 + 4) + (3 + 4 + 4));
        for kind in Kind::ALL {
            for by in [ATOMS, COMPONENTS, CENTRED] {
                let own: Vec<&EnergyRow> = rows.iter().filter(|row| row.kind == kind && row.by == by).collect();
                assert!(own.is_sorted_by(|a, b| a.count < b.count && a.left > b.left), "{own:?}");
                assert!(own[0].left <= 1.0 && own.last().unwrap().left < 1e-3, "{own:?}");
            }
        }
        assert!(energy_left(run.path(), &set, 2, &[1], 50).unwrap_err().to_string().contains("layer 2"));
    }
}
