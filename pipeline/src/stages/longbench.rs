//! longbench: LongBench v1 under every scheme, one exact prefill per record.
//!
//! Prompts, limits and records come from a folder of LongBench's own that the user names; nothing of it is in this project.
//! Answers stream to `predictions/<scheme>/<task>.jsonl`; an unfinished run of the same recipe goes on with the first record
//! and scheme it lacks.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kvcsr_cache::{CacheError, Geometry, Scheme, SchemeContext, registry};
use kvcsr_codec::DictionarySet;
use kvcsr_longbench::metrics::MetricOptions;
use kvcsr_longbench::predictions::{PredictionRow, Predictions, label};
use kvcsr_longbench::record::{Record, read_each_record};
use kvcsr_longbench::results::{OverallResult, TaskResult, by_task, overall};
use kvcsr_longbench::runner::{RunOptions, Runner};
use kvcsr_longbench::stats::{Bootstrap, Interval};
use kvcsr_longbench::tasks::{Task, TaskTable};
use kvcsr_report::files;
use kvcsr_report::longbench::{AverageCell, Difference, TaskCell, paper_markdown, published, run_markdown};
use serde_json::{Map, Value};

use crate::config;
use crate::manifest::{self, Manifest};
use crate::sources::{SourceKind, Sources};
use crate::stage::{Run, Stage, parameters_of, write_atomically};
use crate::stages::evaluate::SETS;
use crate::stages::{PREFILL_CHUNK, open_model, train_rope};
use crate::ui;

/// Folder of the answers.
pub const PREDICTIONS: &str = "predictions";
/// File of the scores per task and scheme.
pub const RESULTS: &str = "results.jsonl";
/// File of the averages per scheme.
pub const OVERALL: &str = "overall.jsonl";
/// The page with the tables.
pub const PAGE: &str = "longbench.md";
/// The name of all 21 tasks together.
const ALL: &str = "all";
/// The files of LongBench's config folder.
const CONFIG: [&str; 3] = ["dataset2prompt.json", "dataset2maxlen.json", "model2maxlen.json"];

/// See the module.
pub struct LongBench;

impl Stage for LongBench {
    fn name(&self) -> &'static str {
        "longbench"
    }

    fn version(&self) -> u32 {
        1
    }

    fn parameters(&self, run: &Run) -> Result<Map<String, Value>> {
        let mut parameters = parameters_of(&run.config.longbench)?;
        // Where things lie does not change what is made of them: the files are inputs, by content.
        parameters.remove("folder");
        parameters.remove("dictionaries");
        parameters.insert("seed".into(), run.config.seed.into());
        parameters.insert("task_table".into(), TaskTable::embedded().version().into());
        Ok(parameters)
    }

    fn inputs(&self, run: &Run) -> Result<Map<String, Value>> {
        let folder = folder(run)?;
        let model = Sources::load(&run.paths.root)?.get(&run.config.model, SourceKind::Model)?.sha256.clone();
        let mut inputs = Map::from_iter([("model".to_owned(), model.into())]);
        let records = tasks(&run.config.longbench)?.into_iter().map(|task| format!("data/{}.jsonl", task.name));
        for name in CONFIG.into_iter().map(|name| format!("config/{name}")).chain(records) {
            let path = folder.join(&name);
            if !path.is_file() {
                bail!("{} does not exist: {}", path.display(), WANTED);
            }
            inputs.insert(name, manifest::hash(&path)?.into());
        }
        if needs_dictionaries(&run.config.longbench.schemes)? {
            inputs.insert("train".into(), dictionaries(run)?.1.digest.into());
        }
        Ok(inputs)
    }

    fn make(&self, run: &Run, dir: &Path) -> Result<()> {
        let settings = &run.config.longbench;
        let folder = folder(run)?;
        let config = kvcsr_longbench::config::Config::load(&folder.join("config"))?;
        let work = records(&folder, settings)?;
        let (decoder, tokenizer) = open_model(run)?;
        let schemes = schemes(run, decoder.geometry())?;
        let labels = labels(&schemes);
        let options = RunOptions {
            max_prompt_tokens: settings.max_prompt_tokens,
            chat: settings.chat,
            prefill_chunk: PREFILL_CHUNK,
            metric: MetricOptions { code_sim: settings.code_sim, ..MetricOptions::default() },
        };
        let runner = Runner::new(&decoder, &tokenizer, &config, options);
        let mut predictions = Predictions::open(&dir.join(PREDICTIONS))?;
        let total: usize = work.iter().map(|(_, records)| records.len() * schemes.len()).sum();
        let bar = ui::bar(self.name(), total as u64, "records x schemes");
        for (task, records) in &work {
            for record in records {
                let todo: Vec<&dyn Scheme> = schemes
                    .iter()
                    .zip(&labels)
                    .filter(|(_, label)| !predictions.contains(&task.name, &record.id, label))
                    .map(|(scheme, _)| scheme.as_ref())
                    .collect();
                bar.inc((schemes.len() - todo.len()) as u64);
                runner.run(task, record, &todo, &mut |row| {
                    bar.set_message(format!("{} {} {}", task.name, record.id, row.label()));
                    predictions.append(row)?;
                    bar.inc(1);
                    Ok(())
                })?;
            }
        }
        bar.finish();
        let tasks: Vec<&str> = work.iter().map(|(task, _)| task.name.as_str()).collect();
        write_results(run, dir, &tasks, &labels, predictions.rows())
    }

    fn summary(&self, run: &Run, dir: &Path) -> Result<Vec<String>> {
        let overall: Vec<OverallResult> = files::read_jsonl(&dir.join(OVERALL))?;
        let mut lines: Vec<String> = overall
            .iter()
            .map(|o| {
                let less = o.difference.map_or_else(String::new, |d| {
                    format!(", less dense {:+.2} [{:+.2}, {:+.2}]", d.difference, d.low, d.high)
                });
                format!("{:<16} {:.2} over {} tasks, n = {}{less}", o.scheme, o.task_mean, o.tasks, o.n)
            })
            .collect();
        lines.push(format!("page     {}", run.paths.show(&dir.join(PAGE))));
        Ok(lines)
    }
}

const WANTED: &str = "LongBench is not part of this project. Set KVCSR_LONGBENCH, or longbench.folder, to a folder with \
     config/ (dataset2prompt.json, dataset2maxlen.json, model2maxlen.json) and data/<task>.jsonl, as \
     https://github.com/THUDM/LongBench publishes them";

/// The folder that holds `config` and `data`.
fn folder(run: &Run) -> Result<PathBuf> {
    let named = match run.config.longbench.folder.as_str() {
        "" => run.paths.longbench.clone(),
        folder => Some(folder.into()),
    };
    match named.map(|folder| run.paths.root.join(folder)) {
        Some(folder) if folder.is_dir() => Ok(folder),
        Some(folder) => bail!("{} does not exist: {WANTED}", folder.display()),
        None => bail!("no folder is named: {WANTED}"),
    }
}

/// The tasks of the configuration, groups spelled out, each once.
fn tasks(settings: &config::LongBench) -> Result<Vec<&'static Task>> {
    let table = TaskTable::embedded();
    let mut tasks: Vec<&Task> = Vec::new();
    for name in &settings.tasks {
        let named = if name == ALL {
            table.tasks().iter().collect()
        } else if table.groups().any(|group| group == name) {
            table.group(name)?
        } else {
            vec![table.get(name).with_context(|| {
                format!("longbench.tasks: groups are {ALL}, {}", table.groups().collect::<Vec<_>>().join(", "))
            })?]
        };
        for task in named {
            if !tasks.contains(&task) {
                tasks.push(task);
            }
        }
    }
    Ok(tasks)
}

/// The records to run, read before anything is computed. Malformed ones stop everything, or are named and left out.
fn records(folder: &Path, settings: &config::LongBench) -> Result<Vec<(&'static Task, Vec<Record>)>> {
    let limit = if settings.limit == 0 { usize::MAX } else { settings.limit };
    let of_task = |task: &'static Task| {
        let mut records = Vec::new();
        for record in read_each_record(task, &folder.join(format!("data/{}.jsonl", task.name)))? {
            if records.len() == limit {
                break;
            }
            match record {
                Ok(record) => records.push(record),
                Err(error) if settings.keep_going => ui::line("longbench", &format!("left out: {error}")),
                Err(error) => return Err(error).context("a malformed record; longbench.keep_going=true leaves it out"),
            }
        }
        Ok((task, records))
    };
    tasks(settings)?.into_iter().map(of_task).collect()
}

/// Whether any scheme is built from trained dictionaries.
fn needs_dictionaries(schemes: &[String]) -> Result<bool> {
    let bare = SchemeContext::new(Geometry { layers: 0, kv_heads: 0, head_dim: 0 });
    for name in schemes {
        match registry::build(name, &bare) {
            Err(CacheError::MissingDictionaries { .. }) => return Ok(true),
            Err(error @ CacheError::UnknownScheme { .. }) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(false)
}

/// The train stage that dictionaries are taken from, and its record.
fn dictionaries(run: &Run) -> Result<(PathBuf, Manifest)> {
    let profile = match run.config.longbench.dictionaries.as_str() {
        "" => &run.profile,
        profile => profile,
    };
    let folder = run.paths.run.with_file_name(profile).join("train");
    let record = Manifest::read(&folder).with_context(|| {
        format!("stage `train` has not been run for profile `{profile}`: run `just train profile={profile}`")
    })?;
    Ok((folder, record))
}

fn schemes(run: &Run, geometry: Geometry) -> Result<Vec<Box<dyn Scheme>>> {
    let names = &run.config.longbench.schemes;
    let mut context = SchemeContext::new(geometry);
    if needs_dictionaries(names)? {
        let (folder, _) = dictionaries(run)?;
        for (name, file) in SETS {
            context = context.with_dictionaries(name, DictionarySet::load(folder.join(file))?);
        }
        if let Some(run) = folder.parent() {
            context = train_rope::with_optional(context, run)?;
        }
    }
    names.iter().map(|name| Ok(registry::build(name, &context)?)).collect()
}

fn labels(schemes: &[Box<dyn Scheme>]) -> Vec<String> {
    schemes.iter().map(|scheme| label(scheme.name(), scheme.dictionaries())).collect()
}

/// Scores, averages and the page, from the answers alone.
fn write_results(run: &Run, dir: &Path, tasks: &[&str], schemes: &[String], rows: &[PredictionRow]) -> Result<()> {
    let table = TaskTable::embedded();
    let bootstrap = Bootstrap { resamples: run.config.longbench.resamples, level: 0.95, seed: run.config.seed };
    let results = by_task(table, rows, tasks, schemes, bootstrap);
    let averages = overall(table, rows, &results, schemes, bootstrap)?;
    files::write_jsonl(&dir.join(RESULTS), &results)?;
    files::write_jsonl(&dir.join(OVERALL), &averages)?;
    write_atomically(&dir.join(PAGE), page(run, tasks, &results, &averages)?.as_bytes())
}

fn page(run: &Run, tasks: &[&str], results: &[TaskResult], averages: &[OverallResult]) -> Result<String> {
    let settings = &run.config.longbench;
    let cells: Vec<TaskCell> = results.iter().map(task_cell).collect();
    let means: Vec<AverageCell> = averages.iter().map(average_cell).collect();
    let tasks: Vec<String> = tasks.iter().map(|&task| task.to_owned()).collect();
    let size = match settings.limit {
        0 => "all records at hand".to_owned(),
        limit => format!("the first {limit} records of each task at hand"),
    };
    let mut page = String::new();
    writeln!(page, "# LongBench v1 with `{}`, profile `{}`\n", run.config.model, run.profile)?;
    writeln!(
        page,
        "Made by `just longbench profile={}` on {size}: at most {} prompt tokens (the middle is cut out), chat wrap `{}`, greedy decoding, f32, code similarity by `{}`. \
         Each prompt is prefilled once, exactly; every scheme then compresses that prefill and answers. Scores are LongBench's own (task table \
         version {}). Differences are to `dense` over the same records, with 95 % intervals of the paired bootstrap ({} draws). Measured bits \
         count every byte allocated per channel of the prefilled tokens, dictionaries apart. A task with fewer records than LongBench's says so, \
         and its score is not comparable with published ones.\n",
        run.profile,
        settings.max_prompt_tokens,
        serde_json::to_value(settings.chat)?.as_str().unwrap_or_default(),
        serde_json::to_value(settings.code_sim)?.as_str().unwrap_or_default(),
        TaskTable::embedded().version(),
        settings.resamples,
    )?;
    writeln!(page, "{}", run_markdown(&tasks, &cells, &means))?;
    let published = published();
    writeln!(page, "## In the paper's layout\n\n{}. {}\n", published.source, published.note)?;
    for table in &published.tables {
        let same = table.model == settings.paper_model;
        let ours: &[TaskCell] = if same { &cells } else { &[] };
        writeln!(page, "### Table {}, {}\n", table.table, table.model)?;
        writeln!(page, "{}", paper_markdown(&published.tasks, table, ours))?;
    }
    Ok(page)
}

fn task_cell(result: &TaskResult) -> TaskCell {
    TaskCell {
        task: result.task.clone(),
        scheme: result.scheme.clone(),
        n: result.n,
        samples: result.samples,
        score: result.score,
        difference: result.difference.map(difference),
        measured_bits: result.measured_bits,
    }
}

fn average_cell(result: &OverallResult) -> AverageCell {
    AverageCell {
        scheme: result.scheme.clone(),
        task_mean: result.task_mean,
        category_mean: result.category_mean,
        difference: result.difference.map(difference),
    }
}

fn difference(interval: Interval) -> Difference {
    Difference { points: interval.difference, low: interval.low, high: interval.high }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn settings() -> config::LongBench {
        let profiles = Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles");
        config::Config::load(&profiles, "smoke", &[]).unwrap().longbench
    }

    fn names(tasks: &[&str]) -> Result<Vec<&'static str>> {
        let tasks = tasks.iter().map(|&task| task.to_owned()).collect();
        let settings = config::LongBench { tasks, ..settings() };
        Ok(super::tasks(&settings)?.into_iter().map(|task| task.name.as_str()).collect())
    }

    #[test]
    fn groups_are_spelled_out_and_tasks_come_once() {
        assert_eq!(names(&["csr11"]).unwrap().len(), 11);
        assert_eq!(names(&["all"]).unwrap().len(), 21);
        assert_eq!(names(&["trec", "csr11"]).unwrap().len(), 11);
        assert_eq!(names(&["lcc", "trec"]).unwrap(), ["lcc", "trec"]);
        let error = format!("{:#}", names(&["csr12"]).unwrap_err());
        assert!(error.contains("groups are all, csr11, kivi8") && error.contains("unknown task"), "{error}");
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
            Ok(records(folder.path(), &settings)?.remove(0).1.into_iter().map(|record| record.id).collect())
        };
        assert_eq!(ids(1, false).unwrap(), ["a"]);
        assert_eq!(ids(2, true).unwrap(), ["a", "b"]);
        assert_eq!(ids(0, true).unwrap(), ["a", "b", "c"]);
        let error = format!("{:#}", ids(2, false).unwrap_err());
        assert!(error.contains("keep_going=true") && error.contains("lcc.jsonl:2: "), "{error}");
    }

    #[test]
    fn dictionaries_are_asked_for_only_where_a_scheme_has_them() {
        let needs = |names: &[&str]| needs_dictionaries(&names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>());
        assert!(!needs(&["dense", "dense-f16"]).unwrap());
        assert!(needs(&["dense", "csr-8@kmeans"]).unwrap());
        assert!(needs(&["densest"]).is_err());
    }
}
