//! What the ablation shows: its own page, and its section in the report.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use kvcsr_report::figures::{PromptScatter, RotaryScatter};
use kvcsr_report::save::Figure;
use kvcsr_report::{AblationRow, ScatterRow, ablation, csv, files};

use crate::manifest::Manifest;
use crate::stage::Run;
use crate::ui;

/// File of the rows.
pub const ROWS: &str = "ablation.jsonl";
/// Rows of the peers, beside the stage's folder.
const PEERS: &str = "peers.jsonl";

/// The results of the finished stage and of `just peers`.
pub struct Section {
    pub rows: Vec<AblationRow>,
    /// Figures 2a and 2b.
    pub prompts: Vec<ScatterRow>,
    pub positions: Vec<ScatterRow>,
    manifest: Manifest,
}

impl Section {
    /// Reads the stage's folder, and the peers' rows beside it.
    pub fn read(run: &Run) -> Result<Self> {
        Self::of(&run.stage_dir("ablate"))
    }

    pub(super) fn of(dir: &Path) -> Result<Self> {
        let mut rows: Vec<AblationRow> = files::read_jsonl(&dir.join(ROWS))?;
        if let Some(peers) = peers(dir) {
            let theirs: Vec<AblationRow> = files::read_jsonl(&peers)?;
            rows.extend(theirs.into_iter().map(|row| AblationRow { section: ablation::PEERS.to_owned(), ..row }));
        }
        let points = |name: &str| csv::read(&dir.join(format!("{name}.csv")));
        Ok(Self {
            rows,
            prompts: points(PromptScatter::NAME)?,
            positions: points(RotaryScatter::NAME)?,
            manifest: Manifest::read(dir).context("the stage has no record")?,
        })
    }

    fn of_section(&self, section: &str) -> impl Iterator<Item = &AblationRow> {
        self.rows.iter().filter(move |row| row.section == section)
    }

    /// The distinct values in the rows of a section, separated by commas.
    fn values(&self, section: &str, of: fn(&AblationRow) -> usize) -> String {
        let values: BTreeSet<usize> = self.of_section(section).map(of).collect();
        values.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
    }

    /// Model, machine, commit and time.
    pub fn circumstances(&self, run: &Run) -> String {
        let Manifest { machine, wall_seconds, .. } = &self.manifest;
        format!(
            "`{}`; errors are those of held-out vectors of {} tokens. Made by `just ablate`{} at commit {} on {} ({} cores), {}, in {}.",
            run.config.model,
            run.config.calibrate.heldout_tokens,
            if self.of_section(ablation::PEERS).next().is_some() { " and `just peers`" } else { "" },
            machine.git,
            machine.cpu,
            machine.cores,
            self.manifest.date(),
            ui::duration(Duration::from_secs_f64(*wall_seconds)),
        )
    }

    /// The paper's Table 3, and which of its cells there are.
    pub fn table3(&self) -> String {
        format!(
            "Held-out MSE (mean of `|x - x'|²` over coded vectors, which are chunks) and, in brackets, the error relative to `|x|²`: \
             means over layers, at most {} training vectors and {} epochs each. `s` counts atoms per chunk. {}\n\n{}",
            self.of_section("table3").map(|row| row.vectors).max().unwrap_or(0),
            self.values("table3", |row| row.epochs),
            ablation::coverage(&self.rows),
            ablation::table3_markdown(&self.rows)
        )
    }

    /// The trainer options; and the peers, on the vectors that they were given.
    pub fn trainers(&self) -> String {
        let mut text = format!(
            "Relative held-out error by matching pursuit at equal N = {} and s, the same weighted by the attention that vectors get, and \
             seconds of training (one thread, other work beside it): means over layers. `neuraldict` is the paper's method.\n\n{}",
            self.values("options", |row| row.atoms),
            ablation::options_markdown(&self.rows)
        );
        let peers = ablation::peers_markdown(&self.rows);
        if !peers.is_empty() {
            text += "\nOn the very vectors that other projects' learners were given:\n\n";
            text += &peers;
        }
        text
    }

    /// Merged layers; nothing if the comparison was left out.
    pub fn merged(&self) -> Option<String> {
        let per_layer = self.of_section("merged").map(|row| row.vectors).min()?;
        Some(format!(
            "Half as many dictionaries as layers, {per_layer} training vectors per layer. N twice as large keeps the number of atoms, not \
             of dictionaries.\n\n{}\n{}\n",
            ablation::merged_markdown(&self.rows),
            ablation::merged_verdict(&self.rows)
        ))
    }

    /// All of it as one page, with links to the figures beside it.
    pub fn page(&self, run: &Run) -> Result<String> {
        let mut page = String::new();
        writeln!(page, "# Ablations of dictionary training, profile `{}`\n", run.label())?;
        writeln!(page, "{}\n", self.circumstances(run))?;
        writeln!(page, "## The paper's Table 3\n\n{}", self.table3())?;
        writeln!(page, "## Trainers\n\n{}", self.trainers())?;
        if let Some(merged) = self.merged() {
            writeln!(page, "## Merged layers\n\n{merged}")?;
        }
        let captions = [
            (PromptScatter::NAME, PromptScatter::caption(&self.prompts)),
            (RotaryScatter::NAME, RotaryScatter::caption(&self.positions)),
        ];
        for (name, caption) in captions {
            writeln!(page, "![{name}]({name}.svg)\n\n{caption}\n")?;
        }
        Ok(page)
    }

    /// What docs/RESULTS.md shows: trainers and merged layers.
    pub fn shown(&self, run: &Run, link: &str) -> String {
        let merged = match self.merged() {
            Some(_) => format!(
                "Half as many dictionaries as layers, against one per layer:\n\n{}\n\n",
                ablation::merged_verdict(&self.rows)
            ),
            None => String::new(),
        };
        format!(
            "{}\n\n{}\n{merged}The paper's Table 3 and Figures 2a and 2b for this model: [`{link}`]({link}/report.md).\n",
            self.circumstances(run),
            self.trainers()
        )
    }
}

/// The rows that `just peers` measured, if it was run.
pub fn peers(dir: &Path) -> Option<PathBuf> {
    Some(dir.parent()?.join(PEERS)).filter(|path| path.is_file())
}
