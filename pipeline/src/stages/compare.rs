//! compare: every scheme on the same prompts: quality after compression, measured bits, and time, at several contexts.
//!
//! One exact prefill per document serves every scheme. Rows stream to disk as they are made; an unfinished run of the same
//! recipe goes on with the first document and scheme it lacks. Quality is scored over a continuation read in one pass, in
//! which every token sees what it would see if they came one by one; the time of decoding is that of single tokens.
//!
//! Every scheme then answers a few records of the suite's tasks, which gives it one score whatever the context; answers stream
//! to `tasks/predictions/<scheme>/<task>.jsonl`.
//!
//! What it costs on 2 cores with 33 schemes: a document about 50 s at 1024 tokens and 2 minutes at 4096,
//! estimated 4 minutes at 7936, and 5 to 10 for the tasks: their prompts are prefilled once, and answers are short.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use kvcsr_cache::{Scheme, SchemeContext, registry};
use kvcsr_eval::heldout::{HeldoutText, Reference};
use kvcsr_eval::longbench::evaluate::{Summary, labels, summarise};
use kvcsr_eval::longbench::predictions::label;
use kvcsr_eval::stats::Bootstrap;
use kvcsr_eval::suite::grid::Grid;
use kvcsr_eval::suite::{Selection, Suite as Tasks};
use kvcsr_model::{Decoder, Tokenizer};
use kvcsr_report::compare::{self, CompareDocument, CompareRow};
use kvcsr_report::files;
use serde_json::{Map, Value, json};

use crate::stage::{Run, Stage};
use crate::stages::{
    PREFILL_CHUNK, corpus, open_model, rows_left, scores, suite, text_and_model_inputs, text_parameters,
};
use crate::text::Part;
use crate::ui;

/// Folder of the tasks' answers and scores.
const TASKS: &str = "tasks";
/// File of the rows per document and scheme.
const DOCUMENTS: &str = "documents.jsonl";

/// See the module.
pub struct Compare;

impl Stage for Compare {
    fn name(&self) -> &'static str {
        "compare"
    }

    fn version(&self) -> u32 {
        2
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        let mut parameters = text_parameters(run, &run.config.compare)?;
        parameters.insert("task_table".into(), Tasks::embedded().table().version().into());
        parameters.insert("task_depths".into(), json!(run.config.suite.depths));
        Ok(parameters)
    }

    fn inputs(&self, run: &Run) -> Result<Map<String, Value>> {
        let mut inputs = text_and_model_inputs(run)?;
        suite::add_texts(run, &run.config.compare.tasks, &mut inputs)?;
        scores::add_inputs(run, &run.config.compare.schemes, "", &mut inputs)?;
        Ok(inputs)
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        let path = dir.join(DOCUMENTS);
        let (decoder, tokenizer) = open_model(run)?;
        let schemes = scores::schemes(run, &run.config.compare.schemes, "", decoder.geometry())?;
        measure(run, &decoder, &tokenizer, &schemes, &path)?;
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
        compare::add_tasks(&mut rows, &scores::overall_rows(&tasks.overall));
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

/// Scores every scheme on every document, appending a row each.
fn measure(
    run: &Run,
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    schemes: &[Box<dyn Scheme>],
    path: &Path,
) -> Result<()> {
    let settings = &run.config.compare;
    let geometry = decoder.geometry();
    let most = settings.contexts.iter().max().copied().unwrap_or(0) + settings.continuation - 1 + settings.decode;
    if most > decoder.rotary().max_positions() {
        bail!(
            "compare: a context with its continuation and decoded tokens takes {most} positions; the model has {}",
            decoder.rotary().max_positions()
        );
    }
    let dense = registry::build("dense", &SchemeContext::new(geometry))?;
    let done = finished_rows(path)?;
    let mut out = OpenOptions::new().create(true).append(true).open(path)?;
    let documents: usize = settings.documents.iter().sum::<usize>() * run.config.corpora.len();
    let bar = ui::bar("compare", (documents * schemes.len()) as u64, "documents x schemes");
    for (&tokens, &count) in settings.contexts.iter().zip(&settings.documents) {
        for domain in &run.config.corpora {
            let length = tokens + settings.continuation;
            for (i, ids) in corpus(run, tokenizer, domain, Part::Heldout, length, count)?.into_iter().enumerate() {
                let id = format!("{domain}-{i:03}");
                let named = |s: &dyn Scheme| label(s.name(), s.dictionaries());
                let todo: Vec<&Box<dyn Scheme>> =
                    schemes.iter().filter(|s| !done.contains(&(id.clone(), tokens, named(s.as_ref())))).collect();
                bar.inc((schemes.len() - todo.len()) as u64);
                if todo.is_empty() {
                    continue;
                }
                bar.set_message(format!("{id} at {tokens}: prefill"));
                let text = HeldoutText { ids, context: tokens };
                let reference = Reference::new(decoder, &text, PREFILL_CHUNK, dense.as_ref())?;
                for scheme in todo {
                    let name = named(scheme.as_ref());
                    bar.set_message(format!("{id} at {tokens}: {name}"));
                    let score = reference
                        .score_and_decode(decoder, scheme.as_ref(), settings.decode)
                        .with_context(|| format!("document {id} at {tokens} tokens, scheme {name}"))?;
                    let row = CompareDocument {
                        id: id.clone(),
                        domain: domain.clone(),
                        scheme: name,
                        context: tokens,
                        scored: score.scored,
                        nll_sum: score.nll_sum,
                        kl_sum: score.kl_sum,
                        top1_agree: score.top1_agree,
                        nominal_bits: scheme.nominal_bits().0,
                        measured_bits: score.measured_bits(decoder.geometry()).0,
                        shared_bytes: scheme.shared_bytes(),
                        encode_ms: score.encode_ms,
                        decode_ms_per_token: score.decode_ms_per_token.unwrap_or(f64::NAN),
                    };
                    writeln!(out, "{}", serde_json::to_string(&row)?)?;
                    out.flush()?;
                    bar.inc(1);
                }
            }
        }
    }
    out.sync_all()?;
    bar.finish();
    Ok(())
}

/// Document, context and scheme of the rows an unfinished run left; a last line that was cut off is removed.
fn finished_rows(path: &Path) -> Result<HashSet<(String, usize, String)>> {
    let rows: Vec<CompareDocument> = rows_left(path)?;
    Ok(rows.into_iter().map(|row| (row.id, row.context, row.scheme)).collect())
}
