//! suite: answers our own tasks under every scheme, for machines without LongBench. These tasks are not LongBench.
//!
//! Tasks, prompts and builders are in [`kvcsr_eval::suite`]; the texts are inputs of `data/sources.toml`. Answers stream to
//! `predictions/<scheme>/<task>.jsonl`; a killed run continues with the first missing record.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kvcsr_cache::Scheme;
use kvcsr_eval::longbench::evaluate::{Summary, in_order, labels, summarise};
use kvcsr_eval::longbench::metrics::MetricOptions;
use kvcsr_eval::longbench::predictions::Predictions;
use kvcsr_eval::longbench::prompt::Chat;
use kvcsr_eval::longbench::record::Work;
use kvcsr_eval::longbench::runner::{RunOptions, Runner};
use kvcsr_eval::longbench::tasks::Task;
use kvcsr_eval::suite::grid::{self, Grid};
use kvcsr_eval::suite::{Selection, Suite as Tasks, Texts};
use kvcsr_model::{Decoder, Tokenizer};
use kvcsr_report::longbench::{run_markdown, schemes_markdown};
use kvcsr_report::{RetrievalRow, files};
use serde_json::{Map, Value};

use super::{gather, scores};
use crate::config::{Config, check, sections};
use crate::room::Room;
use crate::sources::{SourceKind, Sources};
use crate::stage::{Declaration, Need, Output, Part, Run, SchemeNames, Sliced, Stage, parameters_of};
use crate::stages::artefacts;
use crate::stages::inputs::{PREFILL_CHUNK, open_model};

/// File of the retrieval grids' cells.
pub const GRID: &str = "retrieval.jsonl";

/// See the module.
pub struct Suite;

/// The schemes that answer.
fn names(config: &Config) -> SchemeNames<'_> {
    SchemeNames { names: &config.suite.schemes, profile: &config.suite.dictionaries }
}

static DECLARATION: Declaration = Declaration {
    name: "suite",
    about: "Answer our own tasks under every scheme: questions, summaries, notes, code, retrieval, arithmetic (not LongBench)",
    version: 2,
    needs: &[Need::Model, Need::Tasks(|config| &config.suite.tasks), Need::Schemes(names)],
    makes: &[Output::rows(scores::RESULTS), Output::rows(scores::OVERALL), Output::rows(GRID)],
    reproduced: true,
    sliced: Some(&Suite),
    ..Declaration::EMPTY
};

impl Stage for Suite {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn check(&self, config: &Config) -> Result<()> {
        let sections::Suite { tasks, max_prompt_tokens, repeats, depths, schemes, dictionaries, .. } = &config.suite;
        check::positive("suite", &[("max_prompt_tokens", *max_prompt_tokens), ("repeats", *repeats)])?;
        check::with_dense("suite", schemes)?;
        check::some_task("suite", tasks)?;
        if let Some(depth) = depths.iter().find(|depth| !(0.0..=1.0).contains(*depth)) {
            bail!("suite.depths holds {depth}, expected shares from 0 to 1");
        }
        check::profile_or_own("suite", dictionaries)
    }

    fn plan(&self, run: &Run) -> String {
        let sections::Suite { schemes, limit, .. } = &run.config.suite;
        format!("{} schemes on {limit} records of each task", schemes.len())
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        let mut parameters = parameters_of(&run.config.suite)?;
        // The place of the dictionaries does not change the results: they are inputs, by their contents.
        parameters.remove("dictionaries");
        parameters.insert("seed".into(), run.config.seed.into());
        parameters.insert("resamples".into(), run.config.resamples.into());
        parameters.insert("task_table".into(), Tasks::embedded().table().version().into());
        Ok(parameters)
    }

    fn needs_room(&self, run: &Run) -> Result<Room> {
        scores::needs_room(run, names(&run.config), run.config.suite.max_prompt_tokens, "suite.max_prompt_tokens")
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        let settings = &run.config.suite;
        let (decoder, tokenizer) = open_model(run)?;
        let schemes = artefacts::schemes(run, names(&run.config), &decoder)?;
        let prompts = Prompts { selection: selection(&run.config), max_tokens: settings.max_prompt_tokens };
        let (work, predictions) = answer(self.name(), run, (&decoder, &tokenizer), &prompts, &schemes, None, dir)?;
        let bootstrap = run.config.bootstrap();
        // The grids are scored separately: their cells are not a random sample.
        let (grids, tasks): (Vec<_>, Vec<_>) = work.into_iter().partition(|work| is_grid(&work.task.name));
        let summary = summarise(Tasks::embedded().table(), &tasks, &labels(&schemes), predictions.rows(), bootstrap)?;
        scores::write(dir, &summary)?;
        let cells = grid::cells(&in_order(&grids, &labels(&schemes), predictions.rows()));
        Ok(files::write_jsonl(&dir.join(GRID), &cells)?)
    }

    fn summary(&self, _run: &Run, dir: &Path) -> Result<Vec<String>> {
        scores::lines(dir)
    }
}

impl Sliced for Suite {
    fn units(&self, run: &Run) -> Result<usize> {
        most_records(&selection(&run.config))
    }

    fn make_part(&self, run: &Run, part: Part, dir: &Path) -> Result<()> {
        let (decoder, tokenizer) = open_model(run)?;
        let schemes = artefacts::schemes(run, names(&run.config), &decoder)?;
        let prompts = Prompts { selection: selection(&run.config), max_tokens: run.config.suite.max_prompt_tokens };
        answer(self.name(), run, (&decoder, &tokenizer), &prompts, &schemes, Some(part), dir).map(drop)
    }

    fn gather(&self, _run: &Run, slices: &[PathBuf], dir: &Path) -> Result<()> {
        gather::predictions(slices, Path::new(scores::PREDICTIONS), dir)
    }
}

/// The records that are answered.
fn selection(config: &Config) -> Selection<'_> {
    let settings = &config.suite;
    let grid = Grid { lengths: &settings.lengths, depths: &settings.depths, repeats: settings.repeats };
    Selection { tasks: &settings.tasks, limit: settings.limit, grid }
}

/// The largest number of records of any task. Of `n` slices, each takes every `n`-th record of each task.
pub fn most_records(selection: &Selection<'_>) -> Result<usize> {
    let Grid { lengths, depths, repeats } = selection.grid;
    let limit = if selection.limit == 0 { usize::MAX } else { selection.limit };
    let of = |task: &Task| if is_grid(&task.name) { lengths.len() * depths.len() * repeats } else { limit };
    let tasks = Tasks::embedded().table().select(selection.tasks)?;
    Ok(tasks.into_iter().map(of).max().unwrap_or(0))
}

/// The records that are answered, and how long their prompts may be.
pub struct Prompts<'s> {
    /// Tasks, records of each, and the sizes of the grids.
    pub selection: Selection<'s>,
    /// Longer prompts lose their middle.
    pub max_tokens: usize,
}

/// Lets `schemes` answer the suite's `prompts`, or those of one slice, one exact prefill each. Answers stream to `dir`; those that it
/// holds are kept.
pub fn answer(
    stage: &'static str,
    run: &Run,
    (decoder, tokenizer): (&Decoder, &Tokenizer),
    prompts: &Prompts<'_>,
    schemes: &[Box<dyn Scheme>],
    part: Option<Part>,
    dir: &Path,
) -> Result<(Vec<Work<'static>>, Predictions)> {
    let suite = Tasks::embedded();
    let mut work = suite.work(&prompts.selection, &texts(run, prompts.selection.tasks)?, tokenizer)?;
    if let Some(part) = part {
        gather::keep(part, &mut work);
    }
    let options = RunOptions {
        max_prompt_tokens: prompts.max_tokens,
        chat: Chat::None,
        prefill_chunk: PREFILL_CHUNK,
        metric: MetricOptions::default(),
    };
    let runner = Runner::new(decoder, tokenizer, suite.config(), options);
    let predictions = scores::answer(stage, &runner, &work, schemes, dir)?;
    Ok((work, predictions))
}

fn is_grid(task: &str) -> bool {
    grid::TASKS.contains(&task)
}

/// The texts that `tasks` are built from.
fn texts(run: &Run, tasks: &[String]) -> Result<Texts> {
    let known = Sources::load(&run.paths.root)?;
    let mut texts = Texts::new();
    for id in Tasks::embedded().sources(tasks)? {
        let path = known.get(id, SourceKind::Tasks)?.fetched(&run.paths)?;
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        texts.insert(id.to_owned(), text);
    }
    Ok(texts)
}

/// What the finished stage of this profile shows in the report.
pub struct Section {
    /// The cells of the retrieval grids; none if they were not run.
    pub grid: Vec<RetrievalRow>,
    summary: Summary,
    settings: Map<String, Value>,
}

impl Section {
    /// Reads the finished stage.
    pub fn read(run: &Run) -> Result<Self> {
        let settings = run.finished("suite")?.recipe.parameters;
        let dir = run.stage_dir("suite");
        Ok(Self { grid: files::read_jsonl(&dir.join(GRID))?, summary: scores::read(&dir)?, settings })
    }

    /// The scores per task and scheme, and per scheme.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// How the numbers were made, in one paragraph.
    fn circumstances(&self) -> String {
        let of = |name: &str| self.settings.get(name).map_or_else(|| "?".to_owned(), Value::to_string);
        format!(
            "Our own tasks (`crates/eval/data/suite.toml`, version {}), **not LongBench**: texts from pinned packages, prompts of ours, LongBench's \
             metrics. The first {} records of each task; one exact prefill per prompt, compressed and answered by every scheme, greedily. Differences \
             are to `dense` over the same records, with 95 % intervals of the paired bootstrap ({} draws). {} Decoding times are those of schemes \
             that decode beside each other, one to a core.",
            of("task_table"),
            of("limit"),
            of("resamples"),
            scores::marks(),
        )
    }

    /// For the report: every task and scheme.
    pub fn page(&self) -> Result<String> {
        let mut page = format!("{}\n", self.circumstances());
        if !self.summary.tasks.is_empty() {
            let Summary { tasks, overall } = &self.summary;
            writeln!(page, "\n{}", schemes_markdown(overall))?;
            page.push_str(&scores::cut_sentence(&self.summary));
            writeln!(page, "{}", run_markdown(&scores::tasks(tasks), tasks, overall))?;
        }
        Ok(page)
    }

    /// For docs/RESULTS.md: one line per scheme.
    pub fn shown(&self) -> String {
        if self.summary.overall.is_empty() {
            return String::new();
        }
        format!("{}\n\n{}", self.circumstances(), schemes_markdown(&self.summary.overall))
    }
}
