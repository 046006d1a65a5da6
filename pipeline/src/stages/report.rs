//! report: tables (CSV, Parquet, Markdown) and figures (SVG, PNG, and the CSV of each).
//!
//! With `report.publish`, tables and figures are copied to `data/results/<profile>` and the
//! README's results are generated between their markers.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use kvcsr_codec::Kind;
use kvcsr_report::figures::{LayerDivergence, LayerError, MemoryLength, QualityBits, RetrievalGrid, TrainingLoss};
use kvcsr_report::memory::{self, CacheShape};
use kvcsr_report::save::{self, Figure};
use kvcsr_report::{
    DivergenceRow, EpochRow, HeldoutRow, MemoryPoint, ReconstructionRow, aggregate, files, splice, tables,
};
use serde_json::{Map, Value};

use crate::manifest::Manifest;
use crate::stage::{Run, Stage, parameters_of, write_atomically};
use crate::stages::evaluate::{HELDOUT, RECONSTRUCTION};
use crate::stages::merge::DIVERGENCE;
use crate::stages::suite::Section;
use crate::stages::train::EPOCHS;
use crate::stages::{layers, open_shard};
use crate::text::Part;
use crate::ui;

/// CSR levels of the memory figure.
const MEMORY_LEVELS: [u64; 4] = [4, 6, 8, 16];
/// Stages whose circumstances a result is published with.
const STAGES: [&str; 4] = ["calibrate", "merge", "train", "evaluate"];
/// The stage of our own tasks, which the report has a section of.
const SUITE: &str = "suite";
/// The page with tables, captions and circumstances.
const PAGE: &str = "report.md";
/// What is spliced into the README.
const README_PART: &str = "readme-results.md";

/// See the module.
pub struct Report;

impl Stage for Report {
    fn name(&self) -> &'static str {
        "report"
    }

    fn version(&self) -> u32 {
        2
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        parameters_of(&run.config.report)
    }

    fn inputs(&self, run: &Run) -> Result<Map<String, Value>> {
        STAGES
            .into_iter()
            .chain([SUITE])
            .map(|stage| Ok((stage.to_owned(), run.finished(stage)?.digest.into())))
            .collect()
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        let heldout: Vec<HeldoutRow> = files::read_jsonl(&run.stage_dir("evaluate").join(HELDOUT))?;
        let restored: Vec<ReconstructionRow> = files::read_jsonl(&run.stage_dir("evaluate").join(RECONSTRUCTION))?;
        let epochs: Vec<EpochRow> = files::read_jsonl(&run.stage_dir("train").join(EPOCHS))?;
        let divergence: Vec<DivergenceRow> = files::read_jsonl(&run.stage_dir("merge").join(DIVERGENCE))?;
        let memory = memory_points(run)?;
        let suite = Section::read(run)?;

        let mut page = String::new();
        writeln!(page, "# Results of profile `{}`\n", run.profile)?;
        writeln!(page, "{}\n", circumstances(run, &heldout)?)?;
        figure::<QualityBits>(dir, &heldout, &mut page)?;
        figure::<LayerError>(dir, &restored, &mut page)?;
        figure::<TrainingLoss>(dir, &epochs, &mut page)?;
        figure::<LayerDivergence>(dir, &divergence, &mut page)?;
        figure::<MemoryLength>(dir, &memory, &mut page)?;
        if !suite.grid.is_empty() {
            figure::<RetrievalGrid>(dir, &suite.grid, &mut page)?;
        }

        let overall = aggregate::overall(&heldout)?;
        let domains = aggregate::by_domain(&heldout)?;
        table(dir, "results", &overall)?;
        table(dir, "results-by-domain", &domains)?;
        table(dir, "documents", &heldout)?;
        table(dir, "reconstruction", &restored)?;
        table(dir, "training", &epochs)?;
        table(dir, "memory", &memory)?;
        table(dir, "divergence", &divergence)?;

        let results = tables::results_markdown(&overall, false)?;
        let mut comparisons = aggregate::compare_heldout(&domains);
        let reconstruction = aggregate::compare_reconstruction(&restored);
        let verdict = format!(
            "{}\n\n{}",
            sentence("Reconstruction of held-out vectors, per layer, kind and level", &reconstruction)?,
            sentence("KL on held-out text, per domain and level", &comparisons)?
        );
        comparisons.extend(reconstruction);
        table(dir, "neuraldict-against-kmeans", &comparisons)?;
        writeln!(page, "## After compression, all texts\n\n{results}")?;
        writeln!(page, "## By text\n\n{}", tables::results_markdown(&domains, true)?)?;
        writeln!(page, "## NeuralDict against its own k-means start\n\n{verdict}\n")?;
        writeln!(page, "{}", suite.page()?)?;
        write_atomically(&dir.join(PAGE), page.as_bytes())?;

        let link = format!("data/results/{}", run.profile);
        let readme = format!(
            "{}\n\n{results}\n{verdict}\n\n![Quality against measured bits per channel]({link}/{}.svg)\n\n\
             {}\n\nTables, figures and the data of each: [`{link}`]({link}/{PAGE}).\n",
            circumstances(run, &heldout)?,
            QualityBits::NAME,
            suite.readme(),
        );
        write_atomically(&dir.join(README_PART), readme.as_bytes())?;
        Ok(())
    }

    fn finish(&self, run: &Run, dir: &Path) -> Result<()> {
        if !run.config.report.publish {
            return Ok(());
        }
        let target = &run.paths.results;
        std::fs::create_dir_all(target).with_context(|| target.display().to_string())?;
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
            if name != crate::manifest::FILE && name != README_PART {
                copy_if_changed(&path, &target.join(name))?;
            }
        }
        for stage in STAGES.into_iter().chain([SUITE]) {
            let path = run.stage_dir(stage).join(crate::manifest::FILE);
            copy_if_changed(&path, &target.join(format!("{stage}.manifest.json")))?;
        }
        let text = std::fs::read_to_string(dir.join(README_PART))?;
        splice::splice_file(&run.paths.root.join("README.md"), "results", &text)?;
        ui::line(self.name(), &format!("published in {} and README.md", run.paths.show(target)));
        Ok(())
    }

    fn summary(&self, run: &Run, dir: &Path) -> Result<Vec<String>> {
        let mut figures: Vec<String> = std::fs::read_dir(dir)?
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok())
            .filter(|n| n.ends_with(".svg"))
            .collect();
        figures.sort();
        Ok(vec![
            format!("page     {}", run.paths.show(&dir.join(PAGE))),
            format!("figures  {} (SVG, PNG, CSV each): {}", run.paths.show(dir), figures.join(", ")),
        ])
    }
}

fn figure<F: Figure>(dir: &Path, rows: &[F::Row], page: &mut String) -> Result<()> {
    save::figure::<F>(dir, rows)?;
    writeln!(page, "![{0}]({0}.svg)\n\n{1}\n", F::NAME, F::caption(rows))?;
    Ok(())
}

fn table<R: tables::Tabular>(dir: &Path, name: &str, rows: &[R]) -> Result<()> {
    tables::write_csv(&dir.join(format!("{name}.csv")), rows)?;
    tables::write_parquet(&dir.join(format!("{name}.parquet")), rows)?;
    Ok(())
}

fn sentence(what: &str, comparisons: &[aggregate::Comparison]) -> Result<String> {
    Ok(format!("{what}: {}", tables::losses_markdown(comparisons)?.trim_end()))
}

/// Model, sizes, machine, commit and time of the run, in one paragraph.
fn circumstances(run: &Run, heldout: &[HeldoutRow]) -> Result<String> {
    let manifests = STAGES.into_iter().map(|s| run.finished(s)).collect::<Result<Vec<Manifest>>>()?;
    let evaluate = &manifests[STAGES.len() - 1];
    let documents = heldout.iter().map(|r| &r.id).collect::<std::collections::BTreeSet<_>>().len();
    let scored: usize = heldout.iter().filter(|r| r.scheme == "dense").map(|r| r.scored).sum();
    let times: Vec<String> = manifests
        .iter()
        .map(|m| format!("{} {}", m.recipe.stage, ui::duration(std::time::Duration::from_secs_f64(m.wall_seconds))))
        .collect();
    let machine = &evaluate.machine;
    Ok(format!(
        "`{}`, f32, {} calibration tokens, {} atoms per dictionary; n = {documents} held-out documents of {}: {} tokens prefilled exactly and \
         compressed, {scored} following tokens scored in all. Made by `just reproduce` at commit {} on {} ({} cores, {} GB), {}: {}.",
        run.config.model,
        parameter(&manifests[0], "tokens"),
        parameter(trained(&manifests)?, "atoms"),
        run.config.corpora.join(", "),
        parameter(evaluate, "context"),
        machine.git,
        machine.cpu,
        machine.cores,
        machine.memory_gb,
        evaluate.finished.split('T').next().unwrap_or_default(),
        times.join(", "),
    ))
}

/// A parameter as the stage was really run with, which the command line of this run may not repeat.
fn parameter(manifest: &Manifest, name: &str) -> String {
    manifest.recipe.parameters.get(name).map_or_else(|| "?".to_owned(), Value::to_string)
}

fn trained(manifests: &[Manifest]) -> Result<&Manifest> {
    manifests.iter().find(|m| m.recipe.stage == "train").context("the train stage has a record")
}

/// The paper's Figure 4 for its two published shapes and for the model of this run.
fn memory_points(run: &Run) -> Result<Vec<MemoryPoint>> {
    let shard = open_shard(run, Part::Heldout, 0, Kind::Key)?;
    let layers = layers(run)? as u64;
    let own = CacheShape {
        model: run.config.model.clone(),
        layers,
        kv_heads: shard.heads() as u64,
        head_dim: shard.head_dim() as u64,
        offline_atoms: parameter(&run.finished("train")?, "atoms").parse().context("train.atoms in its record")?,
        online_atoms: 0,
    };
    let lengths: Vec<usize> =
        memory::paper_lengths().into_iter().filter(|&n| n <= run.config.report.memory_tokens).collect();
    let shapes = [own, CacheShape::llama2_7b(), CacheShape::llama3_8b()];
    Ok(shapes.iter().flat_map(|s| s.points(&MEMORY_LEVELS, &lengths)).collect())
}

fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let bytes = std::fs::read(from).with_context(|| from.display().to_string())?;
    if std::fs::read(to).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    write_atomically(to, &bytes)
}
