//! LongBench's own files: where they are, and the records of a run.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kvcsr_eval::longbench::record::{Work, read_each_record};
use kvcsr_eval::longbench::tasks::{Task, TaskTable};

use crate::config::sections::longbench::Settings;
use crate::stage::Run;
use crate::{longbench_hub, ui};

/// What to do if LongBench is missing.
pub const WANTED: &str = "LongBench is not part of this project. Set KVCSR_LONGBENCH, or longbench.folder, to a folder with \
     config/ (dataset2prompt.json, dataset2maxlen.json, model2maxlen.json) and data/<task>.jsonl, as \
     https://github.com/THUDM/LongBench publishes them; `kvcsr fetch longbench` downloads both";

/// The folder that holds `config` and `data`.
pub fn folder(run: &Run) -> Result<PathBuf> {
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

/// The tasks of the configuration, each once, with groups expanded. LongBench-E has thirteen tasks.
pub fn tasks(settings: &Settings) -> Result<Vec<&'static Task>> {
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

/// The file of a task in that folder.
pub fn data_file(settings: &Settings, task: &Task) -> String {
    format!("data/{}{}.jsonl", task.name, if settings.e { "_e" } else { "" })
}

/// The records to run, read before anything is computed. A malformed record is an error; with `keep_going` it is named and left
/// out. A task without any sound record is an error.
pub fn records(folder: &Path, settings: &Settings) -> Result<Vec<Work<'static>>> {
    let limit = if settings.limit == 0 { usize::MAX } else { settings.limit };
    let of_task = |task: &'static Task| {
        let mut records = Vec::new();
        let mut left_out = 0usize;
        let path = folder.join(data_file(settings, task));
        for record in read_each_record(task, &path)? {
            if records.len() == limit {
                break;
            }
            match record {
                Ok(record) => records.push(record),
                Err(error) if settings.keep_going => {
                    left_out += 1;
                    ui::line("longbench", &format!("left out: {error}"));
                }
                Err(error) => {
                    return Err(error)
                        .context("a malformed record; --keep-going (longbench.keep_going=true) leaves it out");
                }
            }
        }
        match (records.is_empty(), left_out) {
            (false, _) => Ok(Work { task, records }),
            (true, 0) => bail!("{} has no record: {} is empty", task.name, path.display()),
            (true, n) => bail!("{} has no sound record ({n} of {n} left out): {}", task.name, path.display()),
        }
    };
    tasks(settings)?.into_iter().map(of_task).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::tests::smoke;

    #[test]
    fn longbench_e_has_files_and_tasks_of_its_own() {
        let e = |names: &[&str]| Settings {
            e: true,
            tasks: names.iter().map(|&name| name.into()).collect(),
            ..smoke().longbench
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
            let settings = Settings { tasks: vec!["lcc".into()], limit, keep_going, ..smoke().longbench };
            Ok(records(folder.path(), &settings)?.remove(0).records.into_iter().map(|record| record.id).collect())
        };
        assert_eq!(ids(1, false).unwrap(), ["a"]);
        assert_eq!(ids(2, true).unwrap(), ["a", "b"]);
        assert_eq!(ids(0, true).unwrap(), ["a", "b", "c"]);
        let error = format!("{:#}", ids(2, false).unwrap_err());
        assert!(error.contains("keep_going=true") && error.contains("lcc.jsonl:2: "), "{error}");
    }
}
