//! The points of Figures 2a and 2b.

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use kvcsr_codec::{Kind, Shard};
use kvcsr_neuraldict::plane::principal_plane;
use kvcsr_report::figures::{ScatterRow, rotary_scatter::GROUPS};

use crate::stage::Run;
use crate::stages::{open_model, open_shard};
use crate::text::Part;

/// Prompts shown, and head vectors of each.
const PROMPTS: usize = 6;
const PER_PROMPT: usize = 240;
/// Keys shown of each group of positions.
const PER_GROUP: usize = 150;

/// The paper's layers 5 and 30 of 32 at this model's depth: shallow and deep.
fn depths(layers: usize) -> [usize; 2] {
    [5, 30].map(|layer| (layer * layers / 32).min(layers - 1))
}

/// `count` of `0..of`, evenly spaced.
fn spread(count: usize, of: usize) -> impl Iterator<Item = usize> {
    let count = count.min(of);
    (0..count).map(move |at| at * of / count.max(1))
}

/// Figure 2a: keys and values of a shallow and of a deep layer, by prompt. Prompts are calibration
/// sequences, taken evenly from all texts.
pub fn prompts(run: &Run, layers: usize) -> Result<Vec<ScatterRow>> {
    let length = run.config.calibrate.sequence;
    let mut rows = Vec::new();
    for layer in depths(layers) {
        for kind in Kind::ALL {
            let shard = open_shard(run, Part::Calibration, layer, kind)?;
            let width = shard.head_dim();
            let per_sequence = length * shard.heads();
            let prompts: Vec<usize> = spread(PROMPTS, shard.tokens() / length).collect();
            let picked: Vec<usize> = prompts
                .iter()
                .flat_map(|prompt| spread(PER_PROMPT, per_sequence).map(move |at| prompt * per_sequence + at))
                .collect();
            let of = |at: usize| (at * prompts.len() / picked.len().max(1), "prompt");
            let panel = format!("{kind}s, layer {layer}");
            rows.extend(panel_of(&panel, &gathered(&shard, &picked)?, width, |at| {
                let (group, word) = of(at);
                (group, format!("{word} {}", group + 1))
            })?);
        }
    }
    Ok(rows)
}

/// Figure 2b: keys of the first head of the shallow layer by position, before and after position
/// embedding.
pub fn positions(run: &Run, layers: usize) -> Result<Vec<ScatterRow>> {
    let [layer, _] = depths(layers);
    let length = run.config.calibrate.sequence;
    let shard = open_shard(run, Part::Calibration, layer, Kind::Key)?;
    let (width, heads) = (shard.head_dim(), shard.heads());
    let sequences = shard.tokens() / length;
    let group_length = (length / GROUPS).max(1);
    let mut picked = Vec::new();
    let mut at = Vec::new();
    for group in 0..GROUPS.min(length) {
        // Positions of the group over all sequences, evenly.
        for choice in spread(PER_GROUP, sequences * group_length) {
            let (sequence, offset) = (choice / group_length, choice % group_length);
            let position = group * group_length + offset;
            picked.push((sequence * length + position) * heads);
            at.push((group, position));
        }
    }
    let before = gathered(&shard, &picked)?;
    let (decoder, _) = open_model(run)?;
    let rotary = decoder.rotary();
    let mut after = Vec::with_capacity(before.len());
    for (row, &(_, position)) in before.chunks_exact(width).zip(&at) {
        let one = Tensor::from_slice(row, (1, 1, 1, width), &Device::Cpu)?;
        after.extend(rotary.apply(&one, position)?.flatten_all()?.to_vec1::<f32>()?);
    }
    let label = |row: usize| {
        let group = at[row].0;
        (group, format!("{}-{}", group * group_length, (group + 1) * group_length - 1))
    };
    let mut rows = panel_of(&format!("before, layer {layer}"), &before, width, label)?;
    rows.extend(panel_of(&format!("after, layer {layer}"), &after, width, label)?);
    Ok(rows)
}

fn gathered(shard: &Shard, picked: &[usize]) -> Result<Vec<f32>> {
    let width = shard.head_dim();
    let mut vectors = vec![0f32; picked.len() * width];
    shard.gather(width, picked, &mut vectors).context("vectors of a figure")?;
    Ok(vectors)
}

fn panel_of(
    panel: &str,
    vectors: &[f32],
    width: usize,
    of: impl Fn(usize) -> (usize, String),
) -> Result<Vec<ScatterRow>> {
    let (points, variance) = principal_plane(vectors, width)?;
    let row = |(at, (x, y)): (usize, (f64, f64))| {
        let (group, label) = of(at);
        ScatterRow { panel: panel.to_owned(), group, label, x, y, variance }
    };
    Ok(points.into_iter().enumerate().map(row).collect())
}
