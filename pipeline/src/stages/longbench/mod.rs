//! longbench: LongBench v1 under every scheme, one exact prefill per record.
//!
//! Prompts, limits and records come from a folder of LongBench's own that the user names; nothing of it is in this project.
//! Answers stream to `predictions/<scheme>/<task>.jsonl`; an unfinished run of the same recipe goes on with the first record
//! and scheme it lacks.

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
use kvcsr_eval::longbench::shard;
use kvcsr_eval::longbench::tasks::TaskTable;
use kvcsr_report::longbench::lengths_markdown;
use kvcsr_report::{files, splice};
use serde_json::{Map, Value};

use self::page::PAGE;
use self::records::{WANTED, data_file, folder, records, tasks};
use crate::config::Config;
use crate::config::sections::longbench::{SHARD, Slice};
use crate::manifest::{self, Manifest};
use crate::models::Opened;
use crate::room::Room;
use crate::stage::{self, CommandOption, Declaration, Need, Output, Run, SchemeNames, Stage, parameters_of};
use crate::stages::inputs::{PREFILL_CHUNK, open_model};
use crate::stages::report::sheet::RESULTS;
use crate::stages::{artefacts, scores};
use crate::{atomic, ui};

/// Where docs/RESULTS.md shows the scores.
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
    options: &[
        CommandOption {
            name: "shard",
            value: Some("I/N"),
            about: "Answer only slice I of N, in a folder of its own",
            parameter: "longbench.shard",
            sets: "{}",
        },
        CommandOption {
            name: "merge",
            value: Some("N"),
            about: "Put N finished slices together, if one configuration made them all",
            parameter: "longbench.shard",
            sets: "merge/{}",
        },
        CommandOption {
            name: "keep-going",
            value: None,
            about: "Leave malformed records out, each named, instead of stopping",
            parameter: "longbench.keep_going",
            sets: "true",
        },
    ],
    ..Declaration::EMPTY
};

impl Stage for LongBench {
    fn declaration(&self) -> &'static Declaration {
        &DECLARATION
    }

    fn check(&self, config: &Config) -> Result<()> {
        config.longbench.check()
    }

    fn folder(&self, run: &Run) -> String {
        match run.config.longbench.slice() {
            Ok(Slice::One(slice)) => slice_folder(slice.place().0, slice.place().1),
            _ => self.name().to_owned(),
        }
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        let mut parameters = parameters_of(&run.config.longbench)?;
        // Where things lie does not change what is made of them: the files are inputs, by content.
        parameters.remove("folder");
        parameters.remove("dictionaries");
        // The slices together are the whole: a merged run is made by the recipe of one that was never in slices.
        if !matches!(run.config.longbench.slice()?, Slice::One(_)) {
            parameters.remove(SHARD);
        }
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
        let settings = &run.config.longbench;
        let folder = folder(run)?;
        let config = kvcsr_eval::longbench::config::Config::load(&folder.join("config"))?;
        let mut work = records(&folder, settings)?;
        let slice = settings.slice()?;
        if let Slice::One(slice) = slice {
            slice.keep(&mut work);
        }
        let slices = match slice {
            Slice::Merge(count) => self.slices(run, count)?,
            _ => Vec::new(),
        };
        let (decoder, tokenizer) = open_model(run)?;
        let schemes = artefacts::schemes(run, names(&run.config), &decoder)?;
        if !slices.is_empty() {
            let mut whole = Predictions::open(&dir.join(scores::PREDICTIONS))?;
            shard::merge(&slices, &work, &labels(&schemes), &mut whole)?;
        }
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
        let predictions = scores::answer(self.name(), &runner, &work, &schemes, dir)?;
        write_results(run, dir, &work, &labels(&schemes), &predictions)
    }

    fn finish(&self, run: &Run, dir: &Path) -> Result<()> {
        if !run.config.report.publish || matches!(run.config.longbench.slice()?, Slice::One(_)) {
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
            let (from, to) = (dir.join(from), target.join(to));
            let bytes = std::fs::read(&from).with_context(|| from.display().to_string())?;
            atomic::write_if_changed(&to, &bytes)?;
        }
        let text = std::fs::read_to_string(dir.join(RESULTS.file(MARKER)))?;
        splice::splice_file(&run.paths.root.join(RESULTS.path), MARKER, &text)?;
        ui::line(self.name(), &format!("published in {} and {}", run.paths.show(target), RESULTS.path));
        Ok(())
    }

    fn summary(&self, run: &Run, dir: &Path) -> Result<Vec<String>> {
        let mut lines = scores::lines(dir)?;
        lines.push(format!("page     {}", run.paths.show(&dir.join(PAGE))));
        Ok(lines)
    }
}

fn slice_folder(index: usize, count: usize) -> String {
    format!("longbench-{index}-of-{count}")
}

impl LongBench {
    /// The answers of every finished slice, once all of them are known to be of this run's recipe.
    fn slices(&self, run: &Run, count: usize) -> Result<Vec<PathBuf>> {
        let own = stage::recipe(self, run)?;
        let of = |index| {
            let dir = run.paths.run.join(slice_folder(index, count));
            let record = Manifest::read(&dir).with_context(|| {
                format!(
                    "part {index}/{count} is not finished: run `just longbench profile={} --shard {index}/{count}`",
                    run.profile
                )
            })?;
            let mut recipe = record.recipe.clone();
            recipe.parameters.remove(SHARD);
            let changes = own.changes_since(&recipe);
            if !changes.is_empty() {
                bail!("part {index}/{count} was made by another configuration than this run's: {}", changes.join(", "));
            }
            if let Some(damage) = record.damage(&dir) {
                bail!("part {index}/{count}, {}: {damage}", dir.display());
            }
            Ok(dir.join(scores::PREDICTIONS))
        };
        (1..=count).map(of).collect()
    }
}

/// Scores, averages and the page, from the answers alone.
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
