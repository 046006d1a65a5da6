//! What the ablation trains: one cell per dictionary.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use kvcsr_codec::{Kind, ShardHeader, ShardWriter};
use kvcsr_neuraldict::{TrainConfig, training_vectors};
use kvcsr_report::{AblationRow, DivergenceRow};

use crate::config::sections::Target;
use crate::stage::Run;
use crate::stages::inputs::open_shard;
use crate::stages::merge;
use crate::stages::train::{GroupShards, Variant};
use crate::text::Side;

/// One dictionary to train.
pub struct Cell {
    /// `table3`, `options` or `merged`.
    pub section: &'static str,
    /// The row's name.
    pub name: String,
    pub kind: Kind,
    pub layers: Vec<usize>,
    pub config: TrainConfig,
    /// Whether vectors count by the attention they get.
    pub weighted: bool,
}

impl Cell {
    /// The key of its row for `layer`.
    pub fn key(&self, layer: usize) -> Key {
        let TrainConfig { atoms, sparsity, chunks, .. } = self.config;
        (self.section.to_owned(), self.name.clone(), self.kind, layer, [atoms, sparsity, chunks])
    }

    /// A description for people.
    pub fn title(&self) -> String {
        let TrainConfig { atoms, sparsity, chunks, .. } = self.config;
        let (section, name, kind, layers) = (self.section, &self.name, self.kind, &self.layers);
        format!("{section}, {name}: {kind}s of {layers:?}, N = {atoms}, s = {sparsity}, s_n = {chunks}")
    }

    /// A unique file name.
    pub fn file_name(&self) -> String {
        self.title().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
    }
}

/// Section, name, kind, layer, and atoms, sparsity and chunks.
pub type Key = (String, String, Kind, usize, [usize; 3]);

/// The key of a row.
pub fn key(row: &AblationRow) -> Key {
    (row.section.clone(), row.name.clone(), row.kind, row.layer, [row.atoms, row.sparsity, row.chunks])
}

/// Every cell, in the order of the table.
pub fn all(run: &Run, layers: usize, divergence: &[DivergenceRow]) -> Result<Vec<Cell>> {
    let settings = &run.config.ablate;
    for (name, wanted) in [("layers", &settings.layers), ("option_layers", &settings.option_layers)] {
        if let Some(layer) = wanted.iter().find(|&&layer| layer >= layers) {
            bail!("ablate.{name} names layer {layer}; the model has layers 0 to {}", layers - 1);
        }
    }
    let mut cells = table3(run)?;
    for option in &settings.options {
        for &layer in &settings.option_layers {
            for kind in Kind::ALL {
                cells.push(self::option(run, option, kind, layer)?);
            }
        }
    }
    if settings.merged_atoms > 0 {
        for kind in Kind::ALL {
            merged(run, kind, layers, &matrix(divergence, kind, layers), &mut cells)?;
        }
    }
    for cell in &cells {
        cell.config.validate().with_context(|| cell.title())?;
    }
    Ok(cells)
}

/// The paper's training at this stage's size.
fn base(run: &Run, kind: Kind) -> Result<TrainConfig> {
    let settings = &run.config.ablate;
    let config = Variant::of(run, kind).of_the_paper().config;
    let kmeans_sample = settings.vectors.min(config.kmeans_sample);
    Ok(TrainConfig { vectors: settings.vectors, epochs: settings.epochs, kmeans_sample, ..config })
}

fn table3(run: &Run) -> Result<Vec<Cell>> {
    let settings = &run.config.ablate;
    let mut cells = Vec::new();
    for &atoms in &settings.table_atoms {
        for &sparsity in &settings.table_sparsity {
            for &chunks in &settings.table_chunks {
                for kind in Kind::ALL {
                    for &layer in &settings.layers {
                        let width = open_shard(run, Side::Heldout, layer, kind)?.head_dim();
                        ensure!(
                            chunks > 0 && width.is_multiple_of(chunks),
                            "ablate.table_chunks: {chunks} chunks do not divide head vectors of {width} channels"
                        );
                        let config = TrainConfig { atoms, sparsity, chunks, ..base(run, kind)? };
                        cells.push(Cell {
                            section: "table3",
                            name: "neuraldict".to_owned(),
                            kind,
                            layers: vec![layer],
                            config,
                            weighted: false,
                        });
                    }
                }
            }
        }
    }
    Ok(cells)
}

/// `a+b` applies both options to the paper's training.
fn option(run: &Run, name: &str, kind: Kind, layer: usize) -> Result<Cell> {
    let config = TrainConfig { atoms: run.config.ablate.options_atoms, ..base(run, kind)? };
    let Variant { config, weighted } = Variant { config, weighted: false }.with(name, "ablate.options")?;
    Ok(Cell { section: "options", name: name.to_owned(), kind, layers: vec![layer], config, weighted })
}

/// Adds the cells of the merged layers: one dictionary per layer; then half as many dictionaries, by either threshold, each with
/// as many atoms and with twice as many.
fn merged(run: &Run, kind: Kind, layers: usize, matrix: &[f64], cells: &mut Vec<Cell>) -> Result<()> {
    let settings = &run.config.ablate;
    let each = TrainConfig { atoms: settings.merged_atoms, ..base(run, kind)? };
    let mut push = |name: String, groups: &[Vec<usize>], atoms: usize| {
        for layers in groups {
            let vectors = settings.merged_vectors * each.chunks * layers.len();
            let config = TrainConfig { atoms, vectors, kmeans_sample: vectors, ..each.clone() };
            cells.push(Cell {
                section: "merged",
                name: name.clone(),
                kind,
                layers: layers.clone(),
                config,
                weighted: false,
            });
        }
    };
    let singles: Vec<Vec<usize>> = (0..layers).map(|layer| vec![layer]).collect();
    push(format!("{layers}, one per layer"), &singles, settings.merged_atoms);
    for target in [Target::Delta1, Target::Delta2] {
        let (groups, threshold) = merge::for_target(matrix, layers, layers.div_ceil(2), target);
        let name = format!("{} merged at {threshold}", groups.len());
        push(name.clone(), &groups, settings.merged_atoms);
        push(name, &groups, 2 * settings.merged_atoms);
    }
    Ok(())
}

/// Saves the vectors that the options are trained and measured on, for `just peers`: keys and values of the middle one of the
/// option layers, each chunk as a head vector of its own.
pub fn peer_vectors(run: &Run, dir: &Path) -> Result<()> {
    let layers = &run.config.ablate.option_layers;
    let Some(&layer) = layers.get(layers.len() / 2) else { return Ok(()) };
    std::fs::create_dir_all(dir)?;
    for kind in Kind::ALL {
        let config = TrainConfig { atoms: run.config.ablate.options_atoms, ..base(run, kind)? };
        let shards = GroupShards::open(run, kind, &[layer], false)?;
        let (train, heldout, width) = shards.with_inputs(|inputs| -> Result<_> {
            let whole = TrainConfig { vectors: 0, ..config.clone() };
            let width = inputs.train[0].head_dim() / config.chunks;
            Ok((training_vectors(&config, inputs.train)?, training_vectors(&whole, inputs.heldout)?, width))
        })?;
        for (side, rows) in [("train", train), ("heldout", heldout)] {
            let settings = [
                ("atoms", config.atoms.to_string()),
                ("sparsity", config.sparsity.to_string()),
                ("chunks", config.chunks.to_string()),
            ];
            let extra: BTreeMap<String, String> = settings.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
            let header = ShardHeader { layer, kind, tokens: rows.len() / width, heads: 1, head_dim: width, extra };
            let mut writer = ShardWriter::create(dir.join(format!("{kind}s-{side}.safetensors")), header)?;
            writer.append(&rows)?;
            writer.finish()?;
        }
    }
    Ok(())
}

/// The divergences of one kind as a `(layers, layers)` matrix.
fn matrix(rows: &[DivergenceRow], kind: Kind, layers: usize) -> Vec<f64> {
    let mut matrix = vec![0.0; layers * layers];
    for row in rows.iter().filter(|row| row.kind == kind && row.layer < layers && row.other < layers) {
        if row.layer != row.other {
            matrix[row.layer * layers + row.other] = row.divergence;
        }
    }
    matrix
}
