//! compare: every scheme on the same prompts: quality after compression, measured bits, and time, at several contexts.
//!
//! Documents are scored as [`heldout`](super::heldout) says; the time of decoding is that of single tokens.
//!
//! Every scheme then answers a few records of the suite's tasks, which gives it one score whatever the context; answers stream
//! to `tasks/predictions/<scheme>/<task>.jsonl`.
//!
//! What it costs on 2 cores with 33 schemes: a document about 50 s at 1024 tokens and 2 minutes at 4096,
//! estimated 4 minutes at 7936, and 5 to 10 for the tasks: their prompts are prefilled once, and answers are short.

use std::path::Path;

use anyhow::{Context, Result, bail};
use kvcsr_cache::Scheme;
use kvcsr_eval::longbench::evaluate::{Summary, labels, summarise};
use kvcsr_eval::stats::Bootstrap;
use kvcsr_eval::suite::grid::Grid;
use kvcsr_eval::suite::{Selection, Suite as Tasks};
use kvcsr_model::{Decoder, Tokenizer};
use kvcsr_report::compare::{self, CompareDocument, CompareRow};
use kvcsr_report::files;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::config::{Config, check};
use crate::stage::{Declaration, Need, Output, Run, SchemeNames, Stage};
use crate::stages::heldout::Scoring;
use crate::stages::{artefacts, open_model, scores, suite, text_parameters};

/// Folder of the tasks' answers and scores.
const TASKS: &str = "tasks";
/// File of the rows per document and scheme.
const DOCUMENTS: &str = "documents.jsonl";

/// The section `[compare]`; `profiles/defaults.toml` explains every parameter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub schemes: Vec<String>,
    pub contexts: Vec<usize>,
    pub documents: Vec<usize>,
    pub continuation: usize,
    pub decode: usize,
    pub tasks: Vec<String>,
    pub task_limit: usize,
    pub task_lengths: Vec<usize>,
    pub task_prompt_tokens: usize,
    pub resamples: usize,
}

/// See the module.
pub struct Compare;

/// The schemes that are compared.
fn names(config: &Config) -> SchemeNames<'_> {
    SchemeNames { names: &config.compare.schemes, profile: "" }
}

static DECLARATION: Declaration = Declaration {
    name: "compare",
    about: "Compare every scheme on the same prompts: quality, measured bits and time, as a table and a figure",
    version: 3,
    needs: &[Need::Model, Need::Corpora, Need::Tasks(|config| &config.compare.tasks), Need::Schemes(names)],
    makes: &[Output::rows(DOCUMENTS)],
    ..Declaration::EMPTY
};

impl Stage for Compare {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn check(&self, config: &Config) -> Result<()> {
        let Settings { schemes, contexts, documents, continuation, task_lengths, task_prompt_tokens, .. } =
            &config.compare;
        check::positive("compare", &[("task_prompt_tokens", *task_prompt_tokens)])?;
        if contexts.is_empty() || contexts.len() != documents.len() {
            bail!(
                "compare.documents needs a number for each of the {} contexts, found {}",
                contexts.len(),
                documents.len()
            );
        }
        if *continuation < 2 || contexts.iter().chain(documents).any(|&n| n == 0) {
            bail!("compare: contexts and documents must be at least 1, continuation at least 2");
        }
        if let Some(length) = task_lengths.iter().find(|length| *length > task_prompt_tokens) {
            bail!(
                "compare.task_lengths holds {length}: prompts above compare.task_prompt_tokens = {task_prompt_tokens} lose their middle"
            );
        }
        check::with_dense("compare", schemes)
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        let mut parameters = text_parameters(run, &run.config.compare)?;
        parameters.insert("task_table".into(), Tasks::embedded().table().version().into());
        parameters.insert("task_depths".into(), json!(run.config.suite.depths));
        Ok(parameters)
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        let path = dir.join(DOCUMENTS);
        let (decoder, tokenizer) = open_model(run)?;
        let schemes = artefacts::schemes(run, names(&run.config), decoder.geometry())?;
        let settings = &run.config.compare;
        let contexts: Vec<(usize, usize)> =
            settings.contexts.iter().copied().zip(settings.documents.iter().copied()).collect();
        let scoring = Scoring {
            stage: self.name(),
            contexts: &contexts,
            continuation: settings.continuation,
            decode: settings.decode,
            row: |row, decode| CompareDocument { decode_ms_per_token: decode.unwrap_or(0.0), ..(&row).into() },
            key: |row| (row.id.clone(), row.context, row.scheme.clone()),
        };
        scoring.measure(run, (&decoder, &tokenizer), &schemes, &path)?;
        answer_tasks(run, &decoder, &tokenizer, &schemes, &dir.join(TASKS))
    }

    fn summary(&self, run: &Run, dir: &Path) -> Result<Vec<String>> {
        let rows: Vec<CompareDocument> = files::read_jsonl(&dir.join(DOCUMENTS))?;
        let summaries = compare::summarise(&rows, |_| None);
        let context = shown(&run.config.compare.contexts);
        let rows: Vec<CompareRow> =
            summaries.into_iter().filter(|r| r.context == context && r.domain == "all").collect();
        let mut lines =
            vec![format!("frontier at {context} tokens (tables and figures: `{}`):", run.command("report"))];
        lines.extend(compare::frontier(&rows).iter().map(|r| {
            format!("  {:<24} KL {:.5} nats/token at {:.2} measured bits per channel", r.scheme, r.kl, r.measured_bits)
        }));
        Ok(lines)
    }
}

/// The context that stands for all where only one is shown: the middle one.
pub fn shown(contexts: &[usize]) -> usize {
    contexts[contexts.len() / 2]
}

/// What the finished stage of this profile measured.
pub struct Measured {
    /// Every scheme at every context, over all texts and over each domain, with its score on tasks.
    pub rows: Vec<CompareRow>,
    /// The scores on tasks; empty where none were run.
    pub tasks: Summary,
    /// What it was run with.
    pub parameters: Map<String, Value>,
}

impl Measured {
    /// Reads the finished stage.
    pub fn read(run: &Run) -> Result<Self> {
        let parameters = run.finished("compare")?.recipe.parameters;
        let dir = run.stage_dir("compare");
        let documents: Vec<CompareDocument> = files::read_jsonl(&dir.join(DOCUMENTS))?;
        let tasks = match dir.join(TASKS) {
            tasks if tasks.is_dir() => scores::read(&tasks)?,
            _ => Summary { tasks: Vec::new(), overall: Vec::new() },
        };
        let number = |name: &str| parameters.get(name).and_then(Value::as_u64);
        let resamples = number("resamples").context("compare's record names its resamples")? as usize;
        let bootstrap = Bootstrap { resamples, level: 0.95, seed: number("seed").unwrap_or_default() };
        let interval = |x: &[f64]| bootstrap.interval(&[x.to_vec()]).map(|i| (i.low, i.high));
        let mut rows = compare::summarise(&documents, interval);
        compare::add_tasks(&mut rows, &tasks.overall);
        Ok(Self { rows, tasks, parameters })
    }
}

/// Lets every scheme answer the tasks' records, and scores them; without tasks nothing is run.
fn answer_tasks(
    run: &Run,
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    schemes: &[Box<dyn Scheme>],
    dir: &Path,
) -> Result<()> {
    let settings = &run.config.compare;
    if settings.tasks.is_empty() {
        return Ok(());
    }
    let grid = Grid { lengths: &settings.task_lengths, depths: &run.config.suite.depths, repeats: 1 };
    let selection = Selection { tasks: &settings.tasks, limit: settings.task_limit, grid };
    let prompts = suite::Prompts { selection, max_tokens: settings.task_prompt_tokens };
    let (work, predictions) = suite::answer("compare", run, (decoder, tokenizer), &prompts, schemes, dir)?;
    let bootstrap = Bootstrap { resamples: settings.resamples, level: 0.95, seed: run.config.seed };
    let table = Tasks::embedded().table();
    scores::write(dir, &summarise(table, &work, &labels(schemes), predictions.rows(), bootstrap)?)
}
