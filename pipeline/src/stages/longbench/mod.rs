//! longbench: LongBench v1 under every scheme, one exact prefill per record.
//!
//! Prompts, limits and records are LongBench's own files, in a folder that the user names. This project contains none of them.
//! Answers stream to `predictions/<scheme>/<task>.jsonl`; a killed run continues with the first missing record and scheme.

mod page;
mod records;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kvcsr_eval::longbench::evaluate::{labels, summarise};
use kvcsr_eval::longbench::metrics::MetricOptions;
use kvcsr_eval::longbench::predictions::Predictions;
use kvcsr_eval::longbench::prompt::Chat;
use kvcsr_eval::longbench::record::Work;
use kvcsr_eval::longbench::results::by_length;
use kvcsr_eval::longbench::runner::{RunOptions, Runner};
use kvcsr_eval::longbench::tasks::TaskTable;
use kvcsr_report::longbench::lengths_markdown;
use kvcsr_report::{files, splice};
use serde_json::{Map, Value};

use self::page::PAGE;
use self::records::{WANTED, data_file, folder, records, tasks};
use crate::config::Config;
use crate::config::sections::longbench::Settings;
use crate::manifest;
use crate::models::Opened;
use crate::room::Room;
use crate::stage::{
    CommandOption, Declaration, Need, Output, Part, Run, SHARD, SchemeNames, Slice, Sliced, Stage, parameters_of,
};
use crate::stages::inputs::{PREFILL_CHUNK, open_model};
use crate::stages::report::sheet::RESULTS;
use crate::stages::{artefacts, gather, scores};
use crate::{atomic, ui};

/// The marker of the scores in docs/RESULTS.md.
const MARKER: &str = "longbench";
/// LongBench-E's scores by length.
const LENGTHS: &str = "lengths.jsonl";
/// The files of LongBench's config folder.
const CONFIG: [&str; 3] = ["dataset2prompt.json", "dataset2maxlen.json", "model2maxlen.json"];

/// See the module.
pub struct LongBench;

/// The schemes that answer.
fn names(config: &Config) -> SchemeNames<'_> {
    SchemeNames { names: &config.longbench.schemes, profile: &config.longbench.dictionaries }
}

static DECLARATION: Declaration = Declaration {
    name: "longbench",
    about: "Run LongBench under every scheme, one prefill per record (needs LongBench's own files: KVCSR_LONGBENCH)",
    version: 3,
    needs: &[Need::Model, Need::Schemes(names)],
    makes: &[Output::rows(scores::RESULTS), Output::rows(scores::OVERALL), Output::rows(PAGE), Output::rows(LENGTHS)],
    options: &[CommandOption {
        name: "keep-going",
        value: None,
        about: "Leave out malformed records and name each of them, instead of stopping",
        parameter: "longbench.keep_going",
        sets: "true",
    }],
    sliced: Some(&LongBench),
    ..Declaration::EMPTY
};

impl Stage for LongBench {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn check(&self, config: &Config) -> Result<()> {
        config.longbench.check()
    }

    fn slice(&self, run: &Run) -> Result<Slice> {
        match run.slice {
            Slice::Whole => run.config.longbench.slice(),
            slice => Ok(slice),
        }
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        let mut parameters = parameters_of(&run.config.longbench)?;
        // The places of the files do not change the results: the files are inputs, by their contents.
        parameters.remove("folder");
        parameters.remove("dictionaries");
        // The slices together make the whole, so the slice is no parameter of it.
        parameters.remove(SHARD);
        parameters.insert("seed".into(), run.config.seed.into());
        parameters.insert("resamples".into(), run.config.resamples.into());
        parameters.insert("task_table".into(), TaskTable::embedded().version().into());
        Ok(parameters)
    }

    fn inputs(&self, run: &Run) -> Result<Map<String, Value>> {
        let folder = folder(run)?;
        let settings = &run.config.longbench;
        let mut inputs = Map::new();
        let records = tasks(settings)?.into_iter().map(|task| data_file(settings, task));
        for name in CONFIG.into_iter().map(|name| format!("config/{name}")).chain(records) {
            let path = folder.join(&name);
            if !path.is_file() {
                bail!("{} does not exist: {}", path.display(), WANTED);
            }
            inputs.insert(name, manifest::hash(&path)?.into());
        }
        Ok(inputs)
    }

    fn needs_room(&self, run: &Run) -> Result<Room> {
        let tokens = run.config.longbench.max_prompt_tokens;
        scores::needs_room(run, names(&run.config), tokens, "longbench.max_prompt_tokens")
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        answer(run, None, dir)
    }

    fn finish(&self, run: &Run, dir: &Path) -> Result<()> {
        if !run.config.report.publish {
            return Ok(());
        }
        let target = &run.paths.results;
        std::fs::create_dir_all(target).with_context(|| target.display().to_string())?;
        let copies = [
            (PAGE, PAGE),
            (scores::TABLE, "longbench.csv"),
            (scores::OVERALL_TABLE, "longbench-schemes.csv"),
            (manifest::FILE, "longbench.manifest.json"),
        ];
        for (from, to) in copies {
            atomic::copy_if_changed(&dir.join(from), &target.join(to))?;
        }
        let text = std::fs::read_to_string(dir.join(RESULTS.file(MARKER)))?;
        splice::splice_file(&run.paths.root.join(RESULTS.path), MARKER, &text)?;
        ui::line(self.name(), &format!("published in {} and {}", run.paths.show(target), RESULTS.path));
        Ok(())
    }

    fn copies(&self, run: &Run) -> Option<PathBuf> {
        run.config.report.publish.then(|| run.paths.results.clone())
    }

    fn summary(&self, run: &Run, dir: &Path) -> Result<Vec<String>> {
        let mut lines = scores::lines(dir)?;
        lines.push(format!("page     {}", run.paths.show(&dir.join(PAGE))));
        Ok(lines)
    }
}

impl Sliced for LongBench {
    fn units(&self, run: &Run) -> Result<usize> {
        let Settings { limit, .. } = run.config.longbench;
        let samples =
            |limit: usize| tasks(&run.config.longbench).map(|all| all.iter().map(|task| limit.min(task.samples)).max());
        Ok(samples(if limit == 0 { usize::MAX } else { limit })?.unwrap_or(0))
    }

    fn make_part(&self, run: &Run, part: Part, dir: &Path) -> Result<()> {
        answer(run, Some(part), dir)
    }

    fn gather(&self, _run: &Run, slices: &[PathBuf], dir: &Path) -> Result<()> {
        gather::predictions(slices, Path::new(scores::PREDICTIONS), dir)
    }

    fn part_summary(&self, run: &Run, dir: &Path) -> Result<Vec<String>> {
        self.summary(run, dir)
    }
}

/// Lets every scheme answer all records, or those of one slice, and scores the answers.
fn answer(run: &Run, part: Option<Part>, dir: &Path) -> Result<()> {
    let settings = &run.config.longbench;
    let folder = folder(run)?;
    let config = kvcsr_eval::longbench::config::Config::load(&folder.join("config"))?;
    let mut work = records(&folder, settings)?;
    if let Some(part) = part {
        gather::keep(part, &mut work);
    }
    if let Some(told) = Opened::of(&run.config.model, &run.paths)?.unapplied() {
        ui::line(DECLARATION.name, &format!("warning: {told}"));
    }
    let (decoder, tokenizer) = open_model(run)?;
    let schemes = artefacts::schemes(run, names(&run.config), &decoder)?;
    let options = RunOptions {
        max_prompt_tokens: settings.max_prompt_tokens,
        chat: settings.chat,
        prefill_chunk: PREFILL_CHUNK,
        metric: MetricOptions { code_sim: settings.code_sim, ..MetricOptions::default() },
    };
    let template = match settings.chat {
        Chat::Checkpoint => Opened::of(&run.config.model, &run.paths)?.chat_template()?,
        _ => None,
    };
    let runner = Runner::new(&decoder, &tokenizer, &config, options).with_template(template);
    let predictions = scores::answer(DECLARATION.name, &runner, &work, &schemes, dir)?;
    write_results(run, dir, &work, &labels(&schemes), &predictions)
}

/// Writes scores, averages and the page, from the answers alone.
fn write_results(
    run: &Run,
    dir: &Path,
    work: &[Work<'_>],
    schemes: &[String],
    predictions: &Predictions,
) -> Result<()> {
    let settings = &run.config.longbench;
    let bootstrap = run.config.bootstrap();
    let rows = predictions.rows();
    let summary = summarise(TaskTable::embedded(), work, schemes, rows, bootstrap)?;
    scores::write(dir, &summary)?;
    let mut page = page::page(run, &summary)?;
    if settings.e {
        let tasks: Vec<&str> = work.iter().map(|work| work.task.name.as_str()).collect();
        let lengths = by_length(rows, &tasks, schemes);
        files::write_jsonl(&dir.join(LENGTHS), &lengths)?;
        write!(page, "## LongBench-E, by length\n\n{}", lengths_markdown(&lengths))?;
    }
    atomic::write(&dir.join(PAGE), page.as_bytes())?;
    atomic::write(&dir.join(RESULTS.file(MARKER)), page::shown(run, &summary)?.as_bytes())
}
