//! gpu-check: checks whether everything works on a device, and measures how fast it is there.
//!
//! Every row is printed as soon as it is measured, so that an interrupted run has printed what it found. Checks that need weights
//! or texts are not here: `just gpu-check` runs two tasks of LongBench after this command.

mod agreement;
mod speed;
mod training;

use std::fmt::Display;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::Device;
use clap::Args;
use kvcsr_model::find_device;
use kvcsr_records::csv;
use serde::{Deserialize, Serialize};

/// The device to check, and where the rows go.
#[derive(Debug, Args)]
pub struct GpuCheckArgs {
    /// The device: auto, cpu or cuda:N. On the CPU the same code runs as a rehearsal
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Check small shapes only: a rehearsal that takes a minute
    #[arg(long)]
    pub quick: bool,
    /// Also write the rows to this file, as CSV
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// The result of one check or measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// The part: card, conformance, agreement, encode, decode or training.
    pub part: String,
    /// What was checked.
    pub what: String,
    /// What was found.
    pub found: String,
    /// What it is compared with, and the value of that.
    pub beside: String,
    /// Whether the check passed. A speed alone never fails.
    pub passed: bool,
}

/// What the checks share.
struct Check {
    device: Device,
    /// The device's name in libtorch.
    torch: String,
    quick: bool,
    findings: Vec<Finding>,
}

impl Check {
    fn add(&mut self, part: &'static str, what: impl Display, found: impl Display, beside: impl Display, passed: bool) {
        let finding = Finding {
            part: part.to_owned(),
            what: what.to_string(),
            found: found.to_string(),
            beside: beside.to_string(),
            passed,
        };
        let mark = if passed { "" } else { "   FAILED" };
        println!("{part:<12} {:<44} {:<24} {}{mark}", finding.what, finding.found, finding.beside);
        self.findings.push(finding);
    }

    /// Runs a part. An error in it becomes a failed finding, and the next part still runs.
    fn part(&mut self, part: &'static str, run: impl FnOnce(&mut Self) -> Result<()>) {
        let begun = Instant::now();
        if let Err(error) = run(self) {
            self.add(part, "stopped by an error", format!("{error:#}"), "", false);
        }
        println!("{part:<12} took {:.1} s", begun.elapsed().as_secs_f64());
    }
}

/// Runs all parts.
///
/// # Errors
/// If the device does not exist, or a check fails.
pub fn run(args: &GpuCheckArgs) -> Result<()> {
    let device = find_device(&args.device)?;
    let torch = match &args.device[..] {
        "auto" if device.is_cpu() => "cpu".to_owned(),
        name => name.to_owned(),
    };
    let mut check = Check { device, torch, quick: args.quick, findings: Vec::new() };
    check.part("card", card);
    check.part("conformance", agreement::conformance);
    check.part("agreement", agreement::with_the_host);
    check.part("encode", speed::encode);
    check.part("decode", speed::decode);
    check.part("training", training::one_group);
    if let Some(path) = &args.out {
        csv::write(path, &check.findings).with_context(|| path.display().to_string())?;
        println!("rows written to {}", path.display());
    }
    let failed = check.findings.iter().filter(|finding| !finding.passed).count();
    if failed > 0 {
        bail!("{failed} of {} checks failed; they are marked above", check.findings.len());
    }
    println!("all {} checks passed on {:?}", check.findings.len(), check.device.location());
    Ok(())
}

/// Which GPU it is, by `nvidia-smi`, and whether training runs on it too.
fn card(check: &mut Check) -> Result<()> {
    let query = ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"];
    let card = match Command::new("nvidia-smi").args(query).output() {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().replace('\n', "; "),
        _ => "no nvidia-smi".to_owned(),
    };
    let (model, torch) = (format!("{:?}", check.device.location()), kvcsr_neuraldict::resolve_device(&check.torch));
    let torch = torch.map_or_else(|error| error.to_string(), |device| format!("{device:?}"));
    // If the model runs on a GPU, training must run there too.
    let passed = check.device.is_cpu() || torch.starts_with("Cuda");
    check.add("card", card, format!("model on {model}"), format!("training on {torch}"), passed);
    Ok(())
}
