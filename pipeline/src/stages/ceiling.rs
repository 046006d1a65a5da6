//! ceiling: computes the fewest bits that a layer's keys and values can take for an error, by what is transformed together: each
//! channel, a head, a layer, keys with values, or two layers. It tells how much a transform can gain, before anything is coded.
//! Layers that an unfinished run of the same recipe completed are kept.

use std::ops::Range;
use std::path::Path;

use anyhow::{Result, ensure};
use kvcsr_cache::schemes::csr_plus::AROUND;
use kvcsr_codec::{Kind, Shard};
use kvcsr_neuraldict::ceiling::{Cloud, Covariance, bits};
use kvcsr_neuraldict::plus::{self, PlusConfig};
use kvcsr_report::{CeilingRow, ceiling, files};
use serde_json::{Map, Value};

use super::sizes::{PROGRAM, product};
use crate::config::Config;
use crate::room::{Amount, Room};
use crate::stage::{Declaration, Need, Output, Run, Stage, parameters_of, remove_file};
use crate::stages::inputs::{layers, open_shard};
use crate::text::Side;
use crate::ui;

/// File of the rows.
pub const ROWS: &str = "ceiling.jsonl";

/// See the module.
pub struct Ceiling;

static DECLARATION: Declaration = Declaration {
    name: "ceiling",
    about: "Measure the fewest bits that keys and values can take, by what is transformed together",
    needs: &[Need::Stage("calibrate")],
    makes: &[Output::rows(ROWS)],
    ..Declaration::EMPTY
};

impl Stage for Ceiling {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn check(&self, config: &Config) -> Result<()> {
        let errors = &config.ceiling.errors;
        ensure!(
            !errors.is_empty() && errors.iter().all(|error| *error > 0.0 && *error < 1.0),
            "ceiling.errors = {errors:?}: shares between 0 and 1 are expected"
        );
        Ok(())
    }

    fn plan(&self, _run: &Run) -> String {
        "principal axes of every layer's keys and values, and the bits that they take".to_owned()
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        let mut parameters = parameters_of(&run.config.ceiling)?;
        if run.config.ceiling.atoms > 0 {
            parameters.insert("seed".into(), run.config.seed.into());
            parameters.insert("iterations".into(), run.config.train_plus.iterations.into());
        }
        Ok(parameters)
    }

    fn needs_room(&self, run: &Run) -> Result<Room> {
        let keys = open_shard(run, Side::Calibration, 0, Kind::Key)?;
        let (tokens, width) = (keys.tokens(), 2 * keys.heads() * keys.head_dim());
        // A layer's tokens as read and in the metric, if atoms are learned; and the moments of two layers.
        let copies = if run.config.ceiling.atoms > 0 { 3 } else { 0 };
        let bytes = PROGRAM + 4 * copies * product(&[tokens, width]) + 8 * 8 * product(&[2 * width, 2 * width]);
        Ok(Room { memory: Amount { bytes, lower: "calibrate.tokens" }, disk: Amount { bytes: 0, lower: "" } })
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        let all = layers(run)?;
        let work: Vec<Range<usize>> = (0..all).step_by(2).map(|first| first..(first + 2).min(all)).collect();
        let part = |pair: &Range<usize>| dir.join(format!("layers-{:02}.jsonl", pair.start));
        // If an unfinished run has the joined file, it may have removed some of the files that it was joined from.
        if !dir.join(ROWS).is_file() {
            let bar = ui::bar("ceiling", work.len() as u64, "pairs of layers");
            for item in &work {
                if !part(item).is_file() {
                    files::write_jsonl(&part(item), &of_pair(run, item)?)?;
                }
                bar.inc(1);
            }
            bar.finish();
            let rows = work.iter().map(|item| files::read_jsonl(&part(item))).collect::<Result<Vec<_>, _>>()?;
            files::write_jsonl::<CeilingRow>(&dir.join(ROWS), &rows.concat())?;
        }
        work.iter().try_for_each(|item| remove_file(&part(item)))
    }

    fn summary(&self, _run: &Run, dir: &Path) -> Result<Vec<String>> {
        Ok(ceiling::lines(&files::read_jsonl(&dir.join(ROWS))?))
    }
}

/// The names of the kinds in rows, in the order of a token's channels.
const KINDS: [&str; 2] = ["keys", "values"];

/// The keys and values of a layer, token by token: keys of all heads, then values.
struct Tokens {
    kinds: [Shard; 2],
    heads: usize,
    head_dim: usize,
    /// Tokens of a text.
    length: usize,
}

impl Tokens {
    fn open(run: &Run, layer: usize) -> Result<Self> {
        let open = |kind| open_shard(run, Side::Calibration, layer, kind);
        let kinds = [open(Kind::Key)?, open(Kind::Value)?];
        let (heads, head_dim) = (kinds[0].heads(), kinds[0].head_dim());
        Ok(Self { kinds, heads, head_dim, length: run.config.calibrate.sequence })
    }

    /// Number of channels of all heads of one kind.
    fn half(&self) -> usize {
        self.heads * self.head_dim
    }

    fn texts(&self) -> usize {
        self.kinds[0].tokens() / self.length
    }

    /// The tokens of a text, `(n, 2 half)`, without the first ones: schemes keep these exact, and they can lie far from the others.
    fn text(&self, at: usize) -> Result<Vec<f32>> {
        let (half, d) = (self.half(), self.head_dim);
        let skipped = AROUND.sinks.min(self.length - 1);
        let range = (at * self.length + skipped) * self.heads..(at + 1) * self.length * self.heads;
        let mut tokens = vec![0f32; (self.length - skipped) * 2 * half];
        for (place, vectors) in self.kinds.iter().enumerate() {
            let mut rows = vec![0f32; range.len() * d];
            vectors.read(d, range.clone(), &mut rows)?;
            for (token, row) in tokens.chunks_exact_mut(2 * half).zip(rows.chunks_exact(half)) {
                token[place * half..][..half].copy_from_slice(row);
            }
        }
        Ok(tokens)
    }
}

/// The rows of one or two layers.
fn of_pair(run: &Run, pair: &Range<usize>) -> Result<Vec<CeilingRow>> {
    let layers = pair.clone().map(|layer| Tokens::open(run, layer)).collect::<Result<Vec<_>>>()?;
    let covariance = covariance(&layers)?;
    let mut rows = of_covariance(run, pair.start, &layers, &covariance)?;
    if run.config.ceiling.atoms > 0 {
        for (at, tokens) in layers.iter().enumerate() {
            let scales = [0, 1].map(|kind| covariance.scale(&block(tokens.half(), at, kind)));
            rows.extend(after_atoms(run, pair.start + at, tokens, scales)?);
        }
    }
    Ok(rows)
}

/// The range of channels of one kind of one of the layers. Each kind has `half` channels.
fn block(half: usize, layer: usize, kind: usize) -> Range<usize> {
    (2 * layer + kind) * half..(2 * layer + kind + 1) * half
}

/// The covariance of the tokens of one or two layers.
fn covariance(layers: &[Tokens]) -> Result<Covariance> {
    let half = layers[0].half();
    let mut cloud = Cloud::new(layers.len() * 2 * half)?;
    for text in 0..layers[0].texts() {
        let parts = layers.iter().map(|layer| layer.text(text)).collect::<Result<Vec<_>>>()?;
        let rows: Vec<f32> = (0..parts[0].len() / (2 * half))
            .flat_map(|token| parts.iter().flat_map(move |part| &part[token * 2 * half..][..2 * half]))
            .copied()
            .collect();
        cloud.add(&rows)?;
    }
    Ok(cloud.covariance()?)
}

/// The rows that follow from the covariance of one or two layers.
fn of_covariance(run: &Run, first: usize, layers: &[Tokens], covariance: &Covariance) -> Result<Vec<CeilingRow>> {
    let (half, heads, d) = (layers[0].half(), layers[0].heads, layers[0].head_dim);
    let block = |layer: usize, kind: usize| block(half, layer, kind);
    let mut rows = Vec::new();
    let mut add = |layer: usize, vectors: &str, together: &str, variances: &[f64], channels: usize| {
        let total: f64 = variances.iter().sum();
        rows.extend(run.config.ceiling.errors.iter().map(|&error| CeilingRow {
            layer,
            vectors: vectors.to_owned(),
            together: together.to_owned(),
            error,
            bits: bits(variances, error * total) / channels as f64,
        }));
    };
    for at in 0..layers.len() {
        for (kind, name) in KINDS.into_iter().enumerate() {
            let all = block(at, kind);
            let of_head = |head: usize| covariance.axes(all.start + head * d..all.start + (head + 1) * d);
            let of_heads = (0..heads).map(of_head).collect::<Result<Vec<_>, _>>()?.concat();
            add(first + at, name, ceiling::CHANNEL, covariance.channels(all.clone()), half);
            add(first + at, name, ceiling::HEAD, &of_heads, half);
            add(first + at, name, ceiling::LAYER, &covariance.axes(all)?, half);
        }
        let both = covariance.relative_axes(&[block(at, 0), block(at, 1)])?;
        add(first + at, ceiling::BOTH, ceiling::LAYER, &both, 2 * half);
    }
    if layers.len() == 2 {
        for (kind, name) in KINDS.into_iter().enumerate() {
            let axes = covariance.relative_axes(&[block(0, kind), block(1, kind)])?;
            add(first, name, ceiling::TWO_LAYERS, &axes, 2 * half);
        }
        let axes = covariance.relative_axes(&[block(0, 0), block(0, 1), block(1, 0), block(1, 1)])?;
        add(first, ceiling::BOTH, ceiling::TWO_LAYERS, &axes, 4 * half);
    }
    Ok(rows)
}

/// The rows of a layer's keys and values together, after the nearest of some atoms is subtracted. `scales` give each kind a
/// variance of 1.
fn after_atoms(run: &Run, layer: usize, tokens: &Tokens, scales: [f64; 2]) -> Result<Vec<CeilingRow>> {
    let half = tokens.half();
    let all = (0..tokens.texts()).map(|text| tokens.text(text)).collect::<Result<Vec<_>>>()?.concat();
    let atoms = run.config.ceiling.atoms.min(all.len() / (2 * half));
    let metric: Vec<f32> = scales.iter().flat_map(|&scale| std::iter::repeat_n(scale as f32, half)).collect();
    let config = PlusConfig {
        atoms,
        iterations: run.config.train_plus.iterations,
        seed: run.config.seed.wrapping_add(layer as u64),
    };
    let left: Vec<f64> = plus::fit(&all, &metric, config)?
        .deviations
        .into_iter()
        .map(|deviation| f64::from(deviation).powi(2))
        .collect();
    let row = |&error: &f64| CeilingRow {
        layer,
        vectors: ceiling::BOTH.to_owned(),
        together: ceiling::ATOM.to_owned(),
        error,
        // Keys and values have a variance of 1 each.
        bits: ((atoms as f64).log2() + bits(&left, error * 2.0)) / (2 * half) as f64,
    };
    Ok(run.config.ceiling.errors.iter().map(row).collect())
}
