//! bench: compares our kernels with named peers in the same run, and gives speeds as shares of the machine's limits.
//!
//! All contenders for one piece of work take turns, and the fastest turn of each counts ([`contest`]).

mod attend;
mod coders;
mod compress;
mod contest;
mod decode;
mod encode;
mod page;
mod roofs;
mod worker;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use kvcsr_codec::kernels::bf16_rates;
use kvcsr_neuraldict::set_threads;
use kvcsr_records::{BenchRow, csv};
use kvcsr_report::splice::splice_file;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use self::roofs::Roofs;
use crate::machine::Machine;
use crate::ui;

/// Parts, in the order in which they run.
const PARTS: [&str; 5] = ["encode", "attend", "compress", "decode", "threads"];
/// Parts that measure one model. The rows of other models stay.
const OF_ONE_MODEL: [&str; 2] = ["compress", "decode"];
/// The part that measures nothing and only writes the tables again.
const TABLES: &str = "tables";

/// What to measure, and where it goes.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What to measure: encode, attend, compress, decode, threads (default: all). `tables` measures nothing and only writes
    /// the tables again
    #[arg(value_name = "PART")]
    parts: Vec<String>,
    /// Measure small sizes only: a rehearsal of a few seconds, whose numbers say little
    #[arg(long)]
    quick: bool,
    /// Number of turns of each contender; the fastest counts
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// A Python that has SPAMS, scikit-learn, faiss and xllamacpp (`just bench` sets one up); without it these peers are left out
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,
    /// The model that `compress` and `decode` run: a GGUF file, a checkpoint folder, or an id of data/sources.toml
    #[arg(long, default_value = "default")]
    model: String,
    /// Dtype of its matrices: auto, f32, bf16, bf16-fast or f16
    #[arg(long, default_value = "auto")]
    dtype: String,
    /// File of the rows; rows of parts that are not measured now stay in it
    #[arg(long, default_value = "data/results/bench.csv", value_name = "FILE")]
    out: PathBuf,
    /// Document that the tables are written into
    #[arg(long, default_value = "docs/PERFORMANCE.md", value_name = "FILE")]
    page: PathBuf,
}

/// What the parts share.
struct Bench<'a> {
    quick: bool,
    rounds: usize,
    python: Option<&'a Path>,
    machine: &'a Machine,
}

/// Measures, and writes rows and tables.
///
/// # Errors
/// If a part is not known, a contender fails, or a file cannot be written.
pub fn run(args: &BenchArgs) -> Result<()> {
    if let Some(unknown) = args.parts.iter().find(|part| !PARTS.contains(&&part[..]) && *part != TABLES) {
        bail!("`{unknown}` is not a part: expected {} or {TABLES}", PARTS.join(", "));
    }
    let mut all: Vec<BenchRow> = if args.out.exists() { csv::read(&args.out)? } else { Vec::new() };
    set_threads(rayon::current_num_threads());
    let machine = Machine::read("cpu");
    let bench =
        Bench { quick: args.quick, rounds: args.rounds.max(1), python: args.python.as_deref(), machine: &machine };
    let parts: Vec<&str> =
        PARTS.into_iter().filter(|part| args.parts.is_empty() || args.parts.iter().any(|p| p == part)).collect();
    if !parts.is_empty() {
        let roofs = Roofs::measure(args.quick);
        ui::line(
            "bench",
            &format!(
                "memory is read at {:.1} GB/s, f32 multiplied at {:.0} GFLOP/s",
                roofs.read / 1e9,
                roofs.product / 1e9
            ),
        );
        let ways = bf16_rates().into_iter().map(|(way, rate)| format!("{:.0} GFLOP/s by {way}", 2.0 * rate / 1e9));
        ui::line("bench", &format!("bf16 multiplied on one thread: {}", ways.collect::<Vec<_>>().join(", ")));
        for part in parts {
            let rows = match part {
                "encode" => encode::run(&bench, &roofs)?,
                "attend" => attend::run(&bench, &roofs)?,
                "compress" => compress::run(&bench, &args.model, &args.dtype)?,
                "decode" => decode::run(&bench, &args.model, &args.dtype)?,
                _ => encode::threads(&bench)?,
            };
            let shapes: Vec<String> = rows.iter().map(|row| row.shape.clone()).collect();
            all.retain(|row| row.work != part || OF_ONE_MODEL.contains(&part) && !shapes.contains(&row.shape));
            all.extend(rows);
        }
        csv::write(&args.out, &all).with_context(|| args.out.display().to_string())?;
        ui::line("bench", &format!("{} rows in {}", all.len(), args.out.display()));
    }
    for (name, table) in page::TABLES {
        let table = page::part(name, table, &all)?;
        println!("{table}");
        splice_file(&args.page, name, &table)?;
    }
    ui::line("bench", &format!("tables in {}", args.page.display()));
    Ok(())
}

/// A text of random tokens of a vocabulary.
fn random_tokens(tokens: usize, vocab: usize) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    (0..tokens).map(|_| rng.random_range(0..vocab as u32)).collect()
}
