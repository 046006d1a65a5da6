//! compare: runs every scheme on the same documents: far-context recovery, divergence, measured bits, and time, at several
//! contexts.
//!
//! Documents are scored as [`heldout`] says; the time of decoding is that of single tokens after the first document of each domain.
//!
//! Every scheme then answers records of the suite's tasks. This gives one score per scheme, which does not depend on the context.
//! Answers stream to `tasks/predictions/<scheme>/<task>.jsonl`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use kvcsr_cache::Scheme;
use kvcsr_eval::longbench::evaluate::{Summary, labels, summarise};
use kvcsr_eval::suite::grid::Grid;
use kvcsr_eval::suite::{Selection, Suite as Tasks};
use kvcsr_model::{Decoder, Tokenizer};
use kvcsr_report::{HeldoutRow, SchemeSummary, aggregate, compare, files};
use serde_json::{Map, Value, json};

use crate::config::{Config, check, sections};
use crate::room::Room;
use crate::stage::{Declaration, Need, Output, Part, Run, SchemeNames, Sliced, Stage};
use crate::stages::heldout::{self, Scoring};
use crate::stages::inputs::open_model;
use crate::stages::{artefacts, gather, scores, suite};

/// Folder of the tasks' answers and scores.
const TASKS: &str = "tasks";

/// See the module.
pub struct Compare;

/// The schemes that are compared.
fn names(config: &Config) -> SchemeNames<'_> {
    SchemeNames { names: &config.compare.schemes, profile: "" }
}

/// The documents that are scored.
fn scoring(config: &Config) -> Scoring<'_> {
    let sections::Compare { contexts, documents, decode, .. } = &config.compare;
    Scoring { stage: DECLARATION.name, contexts, documents: *documents, decode: *decode }
}

static DECLARATION: Declaration = Declaration {
    name: "compare",
    about: "Compare every scheme on the same long documents: recovery, divergence, measured bits and time",
    version: 3,
    needs: &[Need::Model, Need::Documents, Need::Tasks(|config| &config.compare.tasks), Need::Schemes(names)],
    makes: &[Output::rows(heldout::ROWS), Output::rows(heldout::THRESHOLDS)],
    grows: heldout::GROWS,
    sliced: Some(&Compare),
    ..Declaration::EMPTY
};

impl Stage for Compare {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn check(&self, config: &Config) -> Result<()> {
        let sections::Compare { schemes, contexts, documents, task_lengths, task_prompt_tokens, .. } = &config.compare;
        check::positive("compare", &[("task_prompt_tokens", *task_prompt_tokens)])?;
        config.heldout.check("compare", contexts, *documents)?;
        if let Some(length) = task_lengths.iter().find(|length| *length > task_prompt_tokens) {
            bail!(
                "compare.task_lengths holds {length}: prompts above compare.task_prompt_tokens = {task_prompt_tokens} lose their middle"
            );
        }
        check::with_dense("compare", schemes)
    }

    fn fits(&self, config: &Config, positions: usize) -> Result<()> {
        scoring(config).fits(config, positions)
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        let mut parameters = heldout::parameters(run, &run.config.compare)?;
        parameters.insert("resamples".into(), run.config.resamples.into());
        parameters.insert("task_table".into(), Tasks::embedded().table().version().into());
        parameters.insert("task_depths".into(), json!(run.config.suite.depths));
        Ok(parameters)
    }

    fn needs_room(&self, run: &Run) -> Result<Room> {
        scoring(&run.config).needs_room(run, names(&run.config), "compare.contexts or heldout.windows")
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        let (decoder, tokenizer) = open_model(run)?;
        let schemes = artefacts::schemes(run, names(&run.config), &decoder)?;
        scoring(&run.config).measure(run, (&decoder, &tokenizer), &schemes, dir)?;
        answer_tasks(run, &decoder, &tokenizer, &schemes, &dir.join(TASKS))
    }

    fn summary(&self, run: &Run, dir: &Path) -> Result<Vec<String>> {
        let rows: Vec<HeldoutRow> = files::read_jsonl(&dir.join(heldout::ROWS))?;
        let context = shown(&run.config.compare.contexts);
        let mut rows: Vec<SchemeSummary> =
            aggregate::overall(&rows)?.into_iter().filter(|row| row.context == context).collect();
        rows.sort_by(|a, b| a.measured_bits.total_cmp(&b.measured_bits));
        let mut lines = vec![format!("tables and figures: `{}`", run.command("report"))];
        lines.extend(heldout::lines(&rows));
        Ok(lines)
    }
}

impl Sliced for Compare {
    fn units(&self, run: &Run) -> Result<usize> {
        let tasks = suite::most_records(&selection(&run.config))?;
        Ok(scoring(&run.config).most_units(&run.config).max(tasks))
    }

    fn make_part(&self, run: &Run, part: Part, dir: &Path) -> Result<()> {
        let (decoder, tokenizer) = open_model(run)?;
        let schemes = artefacts::schemes(run, names(&run.config), &decoder)?;
        scoring(&run.config).measure_part(run, (&decoder, &tokenizer), &schemes, Some(part), dir)?;
        if run.config.compare.tasks.is_empty() {
            return Ok(());
        }
        let model = (&decoder, &tokenizer);
        suite::answer("compare", run, model, &prompts(&run.config), &schemes, Some(part), &dir.join(TASKS)).map(drop)
    }

    fn gather(&self, _run: &Run, slices: &[PathBuf], dir: &Path) -> Result<()> {
        heldout::gather_rows(slices, dir)?;
        gather::predictions(slices, &Path::new(TASKS).join(scores::PREDICTIONS), dir)
    }
}

/// The context that is shown if only one is shown: the middle one.
pub fn shown(contexts: &[usize]) -> usize {
    contexts[contexts.len() / 2]
}

/// What the finished stage of this profile measured.
pub struct Measured {
    /// Every scheme on every document and passage at every context.
    pub documents: Vec<HeldoutRow>,
    /// Every scheme at every context, over all documents and over each domain, with its score on tasks.
    pub rows: Vec<SchemeSummary>,
    /// The scores on tasks; empty where none were run.
    pub tasks: Summary,
    /// The parameters that it was run with.
    pub parameters: Map<String, Value>,
}

impl Measured {
    /// Reads the finished stage.
    pub fn read(run: &Run) -> Result<Self> {
        let parameters = run.finished("compare")?.recipe.parameters;
        let dir = run.stage_dir("compare");
        let documents: Vec<HeldoutRow> = files::read_jsonl(&dir.join(heldout::ROWS))?;
        let tasks = match dir.join(TASKS) {
            tasks if tasks.is_dir() => scores::read(&tasks)?,
            _ => Summary { tasks: Vec::new(), overall: Vec::new() },
        };
        let mut rows = aggregate::summarise(&documents, heldout::statistics(&run.config))?;
        compare::add_tasks(&mut rows, &tasks.overall);
        Ok(Self { documents, rows, tasks, parameters })
    }
}

/// The records of the suite that are answered.
fn selection(config: &Config) -> Selection<'_> {
    let settings = &config.compare;
    let grid = Grid { lengths: &settings.task_lengths, depths: &config.suite.depths, repeats: 1 };
    Selection { tasks: &settings.tasks, limit: settings.task_limit, grid }
}

fn prompts(config: &Config) -> suite::Prompts<'_> {
    suite::Prompts { selection: selection(config), max_tokens: config.compare.task_prompt_tokens }
}

/// Lets every scheme answer the tasks' records, and scores them; without tasks nothing is run.
fn answer_tasks(
    run: &Run,
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    schemes: &[Box<dyn Scheme>],
    dir: &Path,
) -> Result<()> {
    if run.config.compare.tasks.is_empty() {
        return Ok(());
    }
    let prompts = prompts(&run.config);
    let (work, predictions) = suite::answer("compare", run, (decoder, tokenizer), &prompts, schemes, None, dir)?;
    let bootstrap = run.config.bootstrap();
    let table = Tasks::embedded().table();
    scores::write(dir, &summarise(table, &work, &labels(schemes), predictions.rows(), bootstrap)?)
}
