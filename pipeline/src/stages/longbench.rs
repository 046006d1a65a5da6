//! longbench: LongBench v1 under every scheme, one exact prefill per record.
//!
//! Prompts, limits and records come from a folder of LongBench's own that the user names; nothing of it is in this project.
//! Answers stream to `predictions/<scheme>/<task>.jsonl`; an unfinished run of the same recipe goes on with the first record
//! and scheme it lacks.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kvcsr_eval::longbench::evaluate::{Summary, Work, labels, summarise};
use kvcsr_eval::longbench::metrics::MetricOptions;
use kvcsr_eval::longbench::predictions::Predictions;
use kvcsr_eval::longbench::record::read_each_record;
use kvcsr_eval::longbench::results::by_length;
use kvcsr_eval::longbench::runner::{RunOptions, Runner};
use kvcsr_eval::longbench::shard::{self, Shard};
use kvcsr_eval::longbench::tasks::{Task, TaskTable};
use kvcsr_eval::stats::Bootstrap;
use kvcsr_report::longbench::{lengths_markdown, paper_markdown, published, run_markdown, schemes_markdown};
use kvcsr_report::records::TaskRow;
use kvcsr_report::{files, splice};
use serde_json::{Map, Value};

use super::scores;
use crate::config;
use crate::longbench_hub;
use crate::manifest::{self, Manifest, Recipe};
use crate::models;
use crate::stage::{Run, Stage, parameters_of, write_atomically};
use crate::stages::{PREFILL_CHUNK, open_model};
use crate::ui;

/// The page with the tables.
const PAGE: &str = "longbench.md";
/// What is spliced into the README.
const README_PART: &str = "readme-longbench.md";
/// LongBench-E's scores by length.
const LENGTHS: &str = "lengths.jsonl";
/// The files of LongBench's config folder.
const CONFIG: [&str; 3] = ["dataset2prompt.json", "dataset2maxlen.json", "model2maxlen.json"];

/// See the module.
pub struct LongBench;

impl Stage for LongBench {
    fn name(&self) -> &'static str {
        "longbench"
    }

    fn folder(&self, run: &Run) -> String {
        match part(&run.config.longbench) {
            Ok(Part::Shard(shard)) => shard_folder(shard.place().0, shard.place().1),
            _ => self.name().to_owned(),
        }
    }

    fn version(&self) -> u32 {
        2
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        let mut parameters = parameters_of(&run.config.longbench)?;
        // Where things lie does not change what is made of them: the files are inputs, by content.
        parameters.remove("folder");
        parameters.remove("dictionaries");
        // The parts together are the whole: a merged run is made by the recipe of one that was never in parts.
        if !matches!(part(&run.config.longbench)?, Part::Shard(_)) {
            parameters.remove(SHARD);
        }
        parameters.insert("seed".into(), run.config.seed.into());
        parameters.insert("task_table".into(), TaskTable::embedded().version().into());
        Ok(parameters)
    }

    fn inputs(&self, run: &Run) -> Result<Map<String, Value>> {
        let folder = folder(run)?;
        let settings = &run.config.longbench;
        let mut inputs = Map::from_iter([("model".to_owned(), models::digest(run)?.into())]);
        let records = tasks(settings)?.into_iter().map(|task| data_file(settings, task));
        for name in CONFIG.into_iter().map(|name| format!("config/{name}")).chain(records) {
            let path = folder.join(&name);
            if !path.is_file() {
                bail!("{} does not exist: {}", path.display(), WANTED);
            }
            inputs.insert(name, manifest::hash(&path)?.into());
        }
        scores::add_inputs(run, &settings.schemes, &settings.dictionaries, &mut inputs)?;
        Ok(inputs)
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        let settings = &run.config.longbench;
        let folder = folder(run)?;
        let config = kvcsr_eval::longbench::config::Config::load(&folder.join("config"))?;
        let mut work = records(&folder, settings)?;
        let part = part(settings)?;
        if let Part::Shard(shard) = part {
            shard.keep(&mut work);
        }
        let parts = match part {
            Part::Merge(count) => self.parts(run, count)?,
            _ => Vec::new(),
        };
        let (decoder, tokenizer) = open_model(run)?;
        let schemes = scores::schemes(run, &settings.schemes, &settings.dictionaries, decoder.geometry())?;
        if !parts.is_empty() {
            let mut whole = Predictions::open(&dir.join(scores::PREDICTIONS))?;
            shard::merge(&parts, &work, &labels(&schemes), &mut whole)?;
        }
        let options = RunOptions {
            max_prompt_tokens: settings.max_prompt_tokens,
            chat: settings.chat,
            prefill_chunk: PREFILL_CHUNK,
            metric: MetricOptions { code_sim: settings.code_sim, ..MetricOptions::default() },
        };
        let runner = Runner::new(&decoder, &tokenizer, &config, options);
        let predictions = scores::answer(self.name(), &runner, &work, &schemes, dir)?;
        write_results(run, dir, &work, &labels(&schemes), &predictions)
    }

    fn finish(&self, run: &Run, dir: &Path) -> Result<()> {
        if !run.config.report.publish || matches!(part(&run.config.longbench)?, Part::Shard(_)) {
            return Ok(());
        }
        let target = &run.paths.results;
        std::fs::create_dir_all(target).with_context(|| target.display().to_string())?;
        let copies = [
            (PAGE, PAGE),
            (README_PART, README_PART),
            (scores::TABLE, "longbench.csv"),
            (manifest::FILE, "longbench.manifest.json"),
        ];
        for (from, to) in copies {
            let (from, to) = (dir.join(from), target.join(to));
            let bytes = std::fs::read(&from).with_context(|| from.display().to_string())?;
            if std::fs::read(&to).ok().as_ref() != Some(&bytes) {
                write_atomically(&to, &bytes)?;
            }
        }
        let text = std::fs::read_to_string(dir.join(README_PART))?;
        splice::splice_file(&run.paths.root.join("README.md"), "longbench", &text)?;
        ui::line(self.name(), &format!("published in {} and README.md", run.paths.show(target)));
        Ok(())
    }

    fn summary(&self, run: &Run, dir: &Path) -> Result<Vec<String>> {
        let mut lines = scores::lines(dir)?;
        lines.push(format!("page     {}", run.paths.show(&dir.join(PAGE))));
        Ok(lines)
    }
}

/// The parameter that names a part.
const SHARD: &str = "shard";

/// Which part of the records a run answers.
#[derive(Clone, Copy)]
enum Part {
    /// All of them.
    Whole,
    /// Those of one shard, in a folder of its own.
    Shard(Shard),
    /// All of them, from this many finished shards.
    Merge(usize),
}

fn part(settings: &config::LongBench) -> Result<Part> {
    let shard = settings.shard.as_str();
    if shard.is_empty() {
        return Ok(Part::Whole);
    }
    match shard.strip_prefix("merge/").map(str::parse) {
        Some(Ok(count)) if count > 0 => Ok(Part::Merge(count)),
        Some(_) => bail!("longbench.shard = `{shard}`: expected merge/N with N at least 1"),
        None => Ok(Part::Shard(shard.parse().context("longbench.shard")?)),
    }
}

fn shard_folder(index: usize, count: usize) -> String {
    format!("longbench-{index}-of-{count}")
}

impl LongBench {
    /// The answers of every finished part, once all of them are known to be of this run's recipe.
    fn parts(&self, run: &Run, count: usize) -> Result<Vec<PathBuf>> {
        let own = Recipe {
            stage: self.name().into(),
            version: self.version(),
            parameters: self.parameters(run)?,
            inputs: self.inputs(run)?,
        };
        let of = |index| {
            let dir = run.paths.run.join(shard_folder(index, count));
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

const WANTED: &str = "LongBench is not part of this project. Set KVCSR_LONGBENCH, or longbench.folder, to a folder with \
     config/ (dataset2prompt.json, dataset2maxlen.json, model2maxlen.json) and data/<task>.jsonl, as \
     https://github.com/THUDM/LongBench publishes them; `kvcsr fetch longbench` downloads both";

/// The folder that holds `config` and `data`.
fn folder(run: &Run) -> Result<PathBuf> {
    let named = match run.config.longbench.folder.as_str() {
        "" => run.paths.longbench.clone().or_else(|| {
            let fetched = run.paths.cache.join(longbench_hub::FOLDER);
            fetched.is_dir().then_some(fetched)
        }),
        folder => Some(folder.into()),
    };
    match named.map(|folder| run.paths.root.join(folder)) {
        Some(folder) if folder.is_dir() => Ok(folder),
        Some(folder) => bail!("{} does not exist: {WANTED}", folder.display()),
        None => bail!("no folder is named: {WANTED}"),
    }
}

/// The tasks of the configuration, groups spelled out, each once. LongBench-E has thirteen.
fn tasks(settings: &config::LongBench) -> Result<Vec<&'static Task>> {
    let table = TaskTable::embedded();
    let tasks = table.select(&settings.tasks).context("longbench.tasks")?;
    if settings.e {
        let extended = table.group("longbench_e")?;
        if let Some(task) = tasks.iter().find(|task| !extended.contains(task)) {
            bail!(
                "longbench.e: LongBench-E has no task {}; longbench.tasks=[\"longbench_e\"] names all it has",
                task.name
            );
        }
    }
    Ok(tasks)
}

fn data_file(settings: &config::LongBench, task: &Task) -> String {
    format!("data/{}{}.jsonl", task.name, if settings.e { "_e" } else { "" })
}

/// The records to run, read before anything is computed. Malformed ones stop everything, or are named and left out.
fn records(folder: &Path, settings: &config::LongBench) -> Result<Vec<Work<'static>>> {
    let limit = if settings.limit == 0 { usize::MAX } else { settings.limit };
    let of_task = |task: &'static Task| {
        let mut records = Vec::new();
        for record in read_each_record(task, &folder.join(data_file(settings, task)))? {
            if records.len() == limit {
                break;
            }
            match record {
                Ok(record) => records.push(record),
                Err(error) if settings.keep_going => ui::line("longbench", &format!("left out: {error}")),
                Err(error) => {
                    return Err(error)
                        .context("a malformed record; --keep-going (longbench.keep_going=true) leaves it out");
                }
            }
        }
        Ok(Work { task, records })
    };
    tasks(settings)?.into_iter().map(of_task).collect()
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
    let bootstrap = Bootstrap { resamples: settings.resamples, level: 0.95, seed: run.config.seed };
    let rows = predictions.rows();
    let summary = summarise(TaskTable::embedded(), work, schemes, rows, bootstrap)?;
    scores::write(dir, &summary)?;
    let mut page = page(run, &summary)?;
    if settings.e {
        let tasks: Vec<&str> = work.iter().map(|work| work.task.name.as_str()).collect();
        let lengths = by_length(rows, &tasks, schemes);
        files::write_jsonl(&dir.join(LENGTHS), &lengths)?;
        write!(page, "## LongBench-E, by length\n\n{}", lengths_markdown(&scores::length_rows(&lengths)))?;
    }
    write_atomically(&dir.join(PAGE), page.as_bytes())?;
    write_atomically(&dir.join(README_PART), readme(run, &summary)?.as_bytes())
}

/// How many records, in words.
fn size(settings: &config::LongBench) -> String {
    let e = if settings.e { " of LongBench-E" } else { "" };
    match settings.limit {
        0 => format!("all records{e} at hand"),
        limit => format!("the first {limit} records{e} of each task at hand"),
    }
}

/// The section of the README: one line per scheme.
fn readme(run: &Run, summary: &Summary) -> Result<String> {
    let settings = &run.config.longbench;
    let link = format!("data/results/{}/{PAGE}", run.profile);
    Ok(format!(
        "`{}` on {} tasks of LongBench v1, {}: n = {} of {} records, at most {} prompt tokens. With so few records a score says little and \
         is not comparable with published ones: read the intervals of the difference. Made by `just longbench profile={}`.\n\n{}\n\
         Every task, and the paper's Tables 1 and 2: [`{link}`]({link}).\n",
        run.config.model,
        scores::tasks(&summary.tasks).len(),
        size(settings),
        summary.overall.first().map_or(0, |o| o.n),
        tasks(settings)?.iter().map(|task| task.samples).sum::<usize>(),
        settings.max_prompt_tokens,
        run.profile,
        schemes_markdown(&scores::overall_rows(&summary.overall)),
    ))
}

fn page(run: &Run, summary: &Summary) -> Result<String> {
    let settings = &run.config.longbench;
    let cells = scores::task_rows(&summary.tasks);
    let means = scores::overall_rows(&summary.overall);
    let tasks = scores::tasks(&summary.tasks);
    let size = size(settings);
    let mut page = String::new();
    writeln!(page, "# LongBench v1 with `{}`, profile `{}`\n", run.config.model, run.profile)?;
    writeln!(
        page,
        "Made by `just longbench profile={}` on {size}: at most {} prompt tokens (the middle is cut out), chat wrap `{}`, greedy decoding, f32, code similarity by `{}`. \
         Each prompt is prefilled once, exactly; every scheme then compresses that prefill and answers. Scores are LongBench's own (task table \
         version {}). Differences are to `dense` over the same records, with 95 % intervals of the paired bootstrap ({} draws). Measured bits \
         count every byte allocated per channel of the prefilled tokens, dictionaries apart. A task with fewer records than LongBench's says so, \
         and its score is not comparable with published ones. A scheme's rank is one more than the number \
         of schemes that are better by an interval above zero. Decoding \
         times are those of schemes that decode beside each other, one to a core.\n",
        run.profile,
        settings.max_prompt_tokens,
        serde_json::to_value(settings.chat)?.as_str().unwrap_or_default(),
        serde_json::to_value(settings.code_sim)?.as_str().unwrap_or_default(),
        TaskTable::embedded().version(),
        settings.resamples,
    )?;
    writeln!(page, "{}", schemes_markdown(&means))?;
    writeln!(page, "{}", run_markdown(&tasks, &cells, &means))?;
    let published = published();
    writeln!(page, "## In the paper's layout\n\n{}. {}\n", published.source, published.note)?;
    for table in &published.tables {
        let same = table.model == settings.paper_model;
        let ours: &[TaskRow] = if same { &cells } else { &[] };
        writeln!(page, "### Table {}, {}\n", table.table, table.model)?;
        writeln!(page, "{}", paper_markdown(&published.tasks, table, ours))?;
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn settings() -> config::LongBench {
        let profiles = Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles");
        config::Config::load(&profiles, "smoke", &[]).unwrap().longbench
    }

    #[test]
    fn parts_are_named_and_wrong_names_refused() {
        let of = |shard: &str| part(&config::LongBench { shard: shard.into(), ..settings() });
        assert!(matches!(of("").unwrap(), Part::Whole));
        assert!(matches!(of("merge/3").unwrap(), Part::Merge(3)));
        assert!(matches!(of("2/3").unwrap(), Part::Shard(_)));
        for wrong in ["merge/0", "merge/x", "4/3", "half"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn longbench_e_has_files_and_tasks_of_its_own() {
        let e = |names: &[&str]| config::LongBench {
            e: true,
            tasks: names.iter().map(|&name| name.into()).collect(),
            ..settings()
        };
        let extended = e(&["longbench_e"]);
        let tasks = tasks(&extended).unwrap();
        assert_eq!(tasks.len(), 13);
        assert_eq!(data_file(&extended, tasks[0]), "data/qasper_e.jsonl");
        assert!(super::tasks(&e(&["narrativeqa"])).unwrap_err().to_string().contains("no task narrativeqa"));
    }

    #[test]
    fn malformed_records_stop_the_run_unless_told_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("data")).unwrap();
        let record = |id: &str| {
            serde_json::json!({"input": "", "context": "c", "answers": ["a"], "length": 1, "dataset": "lcc", "language": "code",
                               "all_classes": null, "_id": id})
        };
        let text = format!("{}\n{{}}\n{}\n{}\n", record("a"), record("b"), record("c"));
        std::fs::write(folder.path().join("data/lcc.jsonl"), text).unwrap();
        let ids = |limit, keep_going| -> Result<Vec<String>> {
            let settings = config::LongBench { tasks: vec!["lcc".into()], limit, keep_going, ..settings() };
            Ok(records(folder.path(), &settings)?.remove(0).records.into_iter().map(|record| record.id).collect())
        };
        assert_eq!(ids(1, false).unwrap(), ["a"]);
        assert_eq!(ids(2, true).unwrap(), ["a", "b"]);
        assert_eq!(ids(0, true).unwrap(), ["a", "b", "c"]);
        let error = format!("{:#}", ids(2, false).unwrap_err());
        assert!(error.contains("keep_going=true") && error.contains("lcc.jsonl:2: "), "{error}");
    }
}
