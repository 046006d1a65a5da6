//! KV-cache bytes against sequence length: the paper's Figure 4.

use anyhow::{Context, Result};
use kvcsr_codec::Kind;
use kvcsr_report::MemoryPoint;
use kvcsr_report::figures::MemoryLength;
use kvcsr_report::memory::{self, CacheShape};

use super::provenance::parameter;
use crate::stage::Run;
use crate::stages::inputs::{layers, open_shard};
use crate::stages::report::section::Section;
use crate::stages::report::sheet::Sheet;
use crate::text::Side;

/// CSR levels of the figure.
const LEVELS: [u64; 4] = [4, 6, 8, 16];

/// See the module.
pub struct Memory;

impl Section for Memory {
    fn title(&self) -> &'static str {
        "Memory against sequence length"
    }

    fn stages(&self) -> &'static [&'static str] {
        &["calibrate", "train"]
    }

    fn command(&self, run: &Run) -> String {
        run.command("report")
    }

    fn write(&self, run: &Run, sheet: &mut Sheet<'_>) -> Result<()> {
        let points = points(run)?;
        sheet.figure::<MemoryLength>(&points)?;
        sheet.table("memory", &points)
    }
}

/// The paper's Figure 4 for its two published shapes and for the model of this run.
fn points(run: &Run) -> Result<Vec<MemoryPoint>> {
    let shard = open_shard(run, Side::Heldout, 0, Kind::Key)?;
    let own = CacheShape {
        model: run.config.model.clone(),
        layers: layers(run)? as u64,
        kv_heads: shard.heads() as u64,
        head_dim: shard.head_dim() as u64,
        offline_atoms: parameter(&run.finished("train")?, "atoms").parse().context("train.atoms in its record")?,
        online_atoms: 0,
    };
    let lengths: Vec<usize> =
        memory::paper_lengths().into_iter().filter(|&n| n <= run.config.report.memory_tokens).collect();
    let shapes = [own, CacheShape::llama2_7b(), CacheShape::llama3_8b()];
    Ok(shapes.iter().flat_map(|s| s.points(&LEVELS, &lengths)).collect())
}
