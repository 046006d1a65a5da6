//! What made the results: every stage's parameters, inputs, machine, time and memory, as its manifest records them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result};
use kvcsr_report::HeldoutRow;
use kvcsr_report::records::heldout::REPEAT;
use serde_json::Value;

use crate::manifest::Manifest;
use crate::stage::Run;
use crate::stages::report::sheet::Sheet;
use crate::ui;

/// Stages that every result goes through.
const STAGES: [&str; 4] = ["calibrate", "merge", "train", "evaluate"];

/// Its heading.
pub const TITLE: &str = "How this was made";

/// Writes the records of the stages that the page shows.
pub fn write(run: &Run, shown: &[&str], sheet: &mut Sheet<'_>) -> Result<()> {
    let published = |stage: &str| {
        let path = run.paths.results.join(format!("{stage}.manifest.json"));
        run.config.report.publish.then(|| Manifest::read_file(&path)).flatten()
    };
    let record = |stage: &&str| run.finished(stage).ok().or_else(|| published(stage));
    let records: Vec<Manifest> = shown.iter().filter_map(record).collect();
    let mut text = "| stage | commit | finished | time | memory | threads | device | outputs | digest |\n\
                    |---|---|---|--:|--:|--:|---|--:|---|\n"
        .to_owned();
    for m in &records {
        let bytes: u64 = m.outputs.iter().map(|output| output.bytes).sum();
        writeln!(
            text,
            "| {} | `{}` | {} | {} | {} | {} | {} | {} files, {:.1} MB | `{}` |",
            m.recipe.stage,
            m.machine.git,
            m.finished,
            ui::duration(Duration::from_secs_f64(m.wall_seconds)),
            m.peak_memory_bytes.map_or_else(String::new, |b| format!("{:.2} GB", b as f64 / 1e9)),
            m.machine.threads,
            m.machine.device,
            m.outputs.len(),
            bytes as f64 / 1e6,
            &m.digest[..m.digest.len().min(12)],
        )?;
    }
    sheet.markdown(&text);
    let machines: BTreeSet<String> = records
        .iter()
        .map(|m| {
            format!("{}, {} cores, {} GB, {}", m.machine.cpu, m.machine.cores, m.machine.memory_gb, m.machine.rustc)
        })
        .collect();
    sheet.markdown(&format!("Machine: {}.", machines.into_iter().collect::<Vec<_>>().join("; ")));
    for m in &records {
        let recipe = serde_json::to_string_pretty(&m.recipe)?;
        sheet.folded(&format!("{}: parameters and inputs", m.recipe.stage), &format!("```json\n{recipe}\n```\n"));
    }
    Ok(())
}

/// The page's first lines.
pub fn lead(run: &Run) -> String {
    format!("`{}` on {}. Made by `{}`.", run.config.model, run.config.corpora.join(", "), run.command("report"))
}

/// Model, sizes, machine, commit and time of the run, in one paragraph.
pub fn circumstances(run: &Run, heldout: &[HeldoutRow]) -> Result<String> {
    let manifests = STAGES.into_iter().map(|s| run.finished(s)).collect::<Result<Vec<Manifest>>>()?;
    let evaluate = &manifests[STAGES.len() - 1];
    let trained = manifests.iter().find(|m| m.recipe.stage == "train").context("the train stage has a record")?;
    let single = || heldout.iter().filter(|row| row.scheme == "dense" && row.domain != REPEAT);
    let domains = single().map(|row| row.domain.as_str()).collect::<BTreeSet<_>>();
    let scored: usize = single().map(|row| row.scored).sum();
    let times: Vec<String> = manifests
        .iter()
        .map(|m| format!("{} {}", m.recipe.stage, ui::duration(Duration::from_secs_f64(m.wall_seconds))))
        .collect();
    Ok(format!(
        "`{}`, {}, {} calibration tokens, {} atoms per dictionary; n = {} single long documents ({}): at most {} tokens prefilled \
         exactly and compressed, {scored} following positions scored in all. {} Stages: {}.",
        run.config.model,
        evaluate.dtype,
        parameter(&manifests[0], "tokens"),
        parameter(trained, "atoms"),
        single().count(),
        domains.into_iter().collect::<Vec<_>>().join(", "),
        parameter(evaluate, "contexts").trim_matches(['[', ']']),
        made_by(run, "evaluate")?,
        times.join(", "),
    ))
}

/// Which command made a table, at which commit, on what machine and when.
pub fn made_by(run: &Run, stage: &str) -> Result<String> {
    let record = run.finished(stage)?;
    let machine = &record.machine;
    Ok(format!(
        "Made by `just {stage}` at commit {} on {} ({} cores, {} GB), {}, in {}.",
        machine.git,
        machine.cpu,
        machine.cores,
        machine.memory_gb,
        record.date(),
        ui::duration(Duration::from_secs_f64(record.wall_seconds)),
    ))
}

/// A parameter that the stage was really run with. The command line of this run may give another value.
pub fn parameter(manifest: &Manifest, name: &str) -> String {
    manifest.recipe.parameters.get(name).map_or_else(|| "?".to_owned(), Value::to_string)
}
