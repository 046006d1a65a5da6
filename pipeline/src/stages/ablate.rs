//! ablate: the paper's Table 3, trainer options, merged layers, and Figures 2a and 2b, from the
//! vectors that calibrate recorded.
//!
//! One row per dictionary and layer. Rows stream to disk, and a killed run continues with the first missing row. The rows that
//! `just peers` measured on the same vectors are added to the table.

mod cells;
pub mod page;
mod scatter;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result};
use kvcsr_codec::{Encoder, Kind, reconstruction_error};
use kvcsr_neuraldict::{Inputs, TrainConfig, train_group_from};
use kvcsr_records::Journal;
use kvcsr_report::figures::{PromptScatter, RotaryScatter};
use kvcsr_report::save::{self, Figure};
use kvcsr_report::{AblationRow, DivergenceRow, ablation, csv, files};
use serde_json::{Map, Value};

use self::cells::Cell;
use self::page::{ROWS, Section};
use crate::atomic;
use crate::config::{Config, check};
use crate::room::{Amount, Room};
use crate::stage::{Declaration, Need, Output, Run, Stage, parameters_of};
use crate::stages::inputs::{layers, open_shard};
use crate::stages::merge;
use crate::stages::sizes::{Sizes, product};
use crate::stages::train::GroupShards;
use crate::text::Side;
use crate::{ui, workers};

/// Folder of the vectors that the peers train on.
const PEER_VECTORS: &str = "peer-vectors";
/// The page with the tables and figures.
const PAGE: &str = "ablation.md";

/// See the module.
pub struct Ablate;

static DECLARATION: Declaration = Declaration {
    name: "ablate",
    about: "Train small dictionaries in many ways: the paper's Table 3, trainer options, merged layers, Figures 2a and 2b",
    needs: &[Need::Stage("calibrate"), Need::Stage("merge")],
    makes: &[Output::rows(ROWS)],
    ..Declaration::EMPTY
};

impl Stage for Ablate {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn check(&self, config: &Config) -> Result<()> {
        check::positive("ablate", &[("vectors", config.ablate.vectors)])
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        let mut parameters = parameters_of(&run.config.ablate)?;
        parameters.insert("train".into(), crate::stages::train::parameters(run)?.into());
        Ok(parameters)
    }

    fn needs_room(&self, run: &Run) -> Result<Room> {
        let count = layers(run)?;
        let divergence: Vec<DivergenceRow> = files::read_jsonl(&run.stage_dir("merge").join(merge::DIVERGENCE))?;
        let width = open_shard(run, Side::Heldout, 0, Kind::Key)?.head_dim();
        let of_cell = |cell: &Cell| cell.config.memory_bytes(cell.config.vectors, width / cell.config.chunks);
        let most = cells::all(run, count, &divergence)?.iter().map(of_cell).max().unwrap_or(0);
        // The vectors for the peers: f16, keys and values.
        let peers = 2 * 2 * product(&[run.config.ablate.vectors, width]);
        let training = TrainConfig::memory_bytes_of(rayon::current_num_threads(), most);
        // Figure 2b opens the model, for its position embedding.
        let memory = training.max(Sizes::of(run)?.with_prefill(0, 0));
        Ok(Room {
            memory: Amount { bytes: memory, lower: "ablate.vectors, ablate.table_atoms or threads" },
            disk: Amount { bytes: peers, lower: "ablate.vectors" },
        })
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        kvcsr_neuraldict::set_threads(1);
        let count = layers(run)?;
        let divergence: Vec<DivergenceRow> = files::read_jsonl(&run.stage_dir("merge").join(merge::DIVERGENCE))?;
        let cells = cells::all(run, count, &divergence)?;
        let path = dir.join(ROWS);
        let journal = Mutex::new(Journal::open(&path, cells::key)?.0);
        // A poisoned lock still holds a journal of whole rows.
        let journal = || journal.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let bar = ui::bar("ablate", cells.len() as u64, "dictionaries");
        workers::each(&cells, rayon::current_num_threads(), |cell| {
            let made = cell.layers.iter().all(|&layer| journal().contains(&cell.key(layer)));
            if !made {
                bar.set_message(cell.title());
                let rows = train(run, dir, cell).with_context(|| cell.title())?;
                let mut journal = journal();
                let lacks = rows.into_iter().filter(|row| !journal.contains(&cells::key(row)));
                let lacks: Vec<AblationRow> = lacks.collect();
                journal.append_all(&lacks)?;
            }
            bar.inc(1);
            Ok(())
        })?;
        bar.finish();
        in_order(&path, &cells)?;
        cells::peer_vectors(run, &dir.join(PEER_VECTORS))?;
        save::figure::<PromptScatter>(dir, &scatter::prompts(run, count)?)?;
        save::figure::<RotaryScatter>(dir, &scatter::positions(run, count)?)?;
        Ok(())
    }

    fn finish(&self, run: &Run, dir: &Path) -> Result<()> {
        let section = Section::of(dir)?;
        let target = page_dir(run);
        std::fs::create_dir_all(&target).with_context(|| target.display().to_string())?;
        atomic::write_if_changed(&target.join("ablation.csv"), csv::to_string(&section.rows)?.as_bytes())?;
        for name in [PromptScatter::NAME, RotaryScatter::NAME] {
            for extension in ["svg", "png", "csv"] {
                let file = format!("{name}.{extension}");
                let from = dir.join(&file);
                let bytes = std::fs::read(&from).with_context(|| from.display().to_string())?;
                atomic::write_if_changed(&target.join(&file), &bytes)?;
            }
        }
        atomic::write_if_changed(&target.join(PAGE), section.page(run)?.as_bytes())
    }

    fn copies(&self, run: &Run) -> Option<PathBuf> {
        Some(page_dir(run))
    }

    fn summary(&self, run: &Run, dir: &Path) -> Result<Vec<String>> {
        let section = Section::of(dir)?;
        let mut lines = vec![ablation::coverage(&section.rows)];
        lines.extend(
            ablation::merged_verdict(&section.rows).lines().map(|line| line.trim_start_matches("- ").to_owned()),
        );
        lines.push(format!("page     {}", run.paths.show(&page_dir(run).join(PAGE))));
        if run.config.report.publish {
            lines.push(format!("{} puts it into the report and publishes it", run.command("report")));
        }
        Ok(lines)
    }
}

/// The folder of the page: beside the stage, because the peers' rows may be added later.
fn page_dir(run: &Run) -> PathBuf {
    run.paths.run.join("ablation")
}

/// Trains one dictionary and measures it on each of its layers.
fn train(run: &Run, dir: &Path, cell: &Cell) -> Result<Vec<AblationRow>> {
    let shards = GroupShards::open(run, cell.kind, &cell.layers, cell.weighted || run.config.calibrate.importance)?;
    let folder = dir.join("cells").join(cell.file_name());
    std::fs::create_dir_all(&folder)?;
    let trained = shards.with_inputs(|inputs| {
        let inputs = Inputs {
            weights: inputs.weights.filter(|_| cell.weighted),
            folder: Some(&folder),
            checkpoint_every: Duration::from_secs(30),
            ..inputs
        };
        train_group_from(&cell.config, &inputs, &mut |_| {})
    })?;
    std::fs::remove_dir_all(&folder)?;
    // Succeeds only if the folder is empty: another thread may still have its own in it.
    let _ = std::fs::remove_dir(dir.join("cells"));
    let dictionary = std::sync::Arc::new(trained.dictionary);
    let encoder = Encoder::new(dictionary.clone());
    let seconds = trained.epochs.iter().map(|epoch| epoch.seconds).sum();
    let width = dictionary.width();
    cell.layers
        .iter()
        .map(|&layer| {
            let shard = open_shard(run, Side::Heldout, layer, cell.kind)?;
            let mut vectors = vec![0f32; shard.rows(width) * width];
            shard.read(width, 0..shard.rows(width), &mut vectors)?;
            let error = reconstruction_error(&encoder, &vectors, cell.config.sparsity)?;
            let trained_on = open_shard(run, Side::Calibration, layer, cell.kind)?.rows(width) * cell.layers.len();
            Ok(AblationRow {
                section: cell.section.to_owned(),
                name: cell.name.clone(),
                layer,
                kind: cell.kind,
                atoms: cell.config.atoms,
                sparsity: cell.config.sparsity,
                chunks: cell.config.chunks,
                vectors: if cell.config.vectors == 0 { trained_on } else { cell.config.vectors.min(trained_on) },
                epochs: cell.config.epochs,
                relative: error.relative,
                mse: error.mse,
                weighted: if cell.layers.len() == 1 { trained.heldout_weighted } else { None },
                seconds,
            })
        })
        .collect()
}

/// Sorts the rows into the order of the cells.
fn in_order(path: &Path, cells: &[Cell]) -> Result<()> {
    let rows: Vec<AblationRow> = files::read_jsonl(path)?;
    let mut ordered = Vec::with_capacity(rows.len());
    for cell in cells {
        for &layer in &cell.layers {
            ordered.extend(rows.iter().find(|row| cells::key(row) == cell.key(layer)).cloned());
        }
    }
    Ok(files::write_jsonl(path, &ordered)?)
}
