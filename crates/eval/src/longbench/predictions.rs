//! The answers of the schemes on disk: one line per record, appended when it is made.
//!
//! The layout is that of LongBench's `pred.py`, `<scheme>/<task>.jsonl`. A line has its four keys in addition to ours, so
//! LongBench's own `eval.py` and `kvcsr score` can read these files too. An interrupted run continues where it stopped: lines
//! are identified by task, record and scheme, and an incomplete last line is removed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};

use kvcsr_records::Journal;
pub use kvcsr_records::heldout::label;
use serde::{Deserialize, Serialize};

use crate::error::{EvalError, Result};

/// One record under one scheme.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PredictionRow {
    /// The generated text.
    pub pred: String,
    /// The correct answers.
    pub answers: Vec<String>,
    /// All class names of a classification task.
    pub all_classes: Option<Vec<String>>,
    /// Length of the sample in words or characters.
    pub length: u64,
    /// The task.
    pub task: String,
    /// The record.
    #[serde(rename = "_id")]
    pub id: String,
    /// The scheme, for example `csr-8`.
    pub scheme: String,
    /// The scheme's dictionary set, or the empty string.
    pub dictionaries: String,
    /// Score of this sample in `[0, 1]`.
    pub score: f64,
    /// Tokens of the filled template before truncation and chat wrap.
    pub tokens_before: usize,
    /// Number of tokens prefilled.
    pub tokens: usize,
    /// Bits per channel as the scheme's paper counts them.
    pub nominal_bits: f64,
    /// Bits per channel really allocated for the prefilled tokens, without dictionaries.
    pub measured_bits: f64,
    /// Time to take over and compress the prefill.
    pub encode_ms: f64,
    /// Time to generate, including the compression of the generated tokens. Other schemes of the same prompt generate on other
    /// cores at the same time.
    pub decode_ms: f64,
    /// Number of tokens generated, including a stop token.
    pub generated: usize,
    /// Whether the answer ended because the model had no more positions. It is written only if true.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
}

impl PredictionRow {
    /// The scheme's [`label`].
    #[must_use]
    pub fn label(&self) -> String {
        label(&self.scheme, &self.dictionaries)
    }
}

/// The predictions in a folder.
#[derive(Debug)]
pub struct Predictions {
    folder: PathBuf,
    rows: Vec<PredictionRow>,
    /// For each scheme (by its label) and task with answers, the file with these answers.
    files: HashMap<(String, String), Journal<PredictionRow, String>>,
}

impl Predictions {
    /// Reads what an earlier run left in `folder`, which need not exist. Incomplete last lines are removed from their files.
    ///
    /// # Errors
    /// [`EvalError::Read`]. [`EvalError::Records`] for a line that is not a prediction, is in the file of another scheme or
    /// task, or repeats a record.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut found = Self { folder: folder.to_owned(), rows: Vec::new(), files: HashMap::new() };
        for scheme in entries(folder)?.into_iter().filter(|path| path.is_dir()) {
            for path in entries(&scheme)?.into_iter().filter(|path| path.extension().is_some_and(|e| e == "jsonl")) {
                let (journal, rows) = Journal::open_checked(&path, id, |row: &PredictionRow, repeats| {
                    if found.file(&row.label(), &row.task) != path {
                        return Err(format!("a prediction of {} for task {} in the wrong file", row.label(), row.task));
                    }
                    if repeats {
                        return Err(format!("record {:?} stands on an earlier line already", row.id));
                    }
                    Ok(())
                })?;
                // The rows have the exact names, which a folder or file name may not be able to show.
                if let Some(row) = rows.first() {
                    found.files.insert((row.label(), row.task.clone()), journal);
                }
                found.rows.extend(rows);
            }
        }
        Ok(found)
    }

    /// Whether `scheme` (a [`label`]) has answered the record `id` of `task`.
    #[must_use]
    pub fn contains(&self, task: &str, id: &str, scheme: &str) -> bool {
        let file = self.files.get(&(scheme.to_owned(), task.to_owned()));
        file.is_some_and(|file| file.contains(&id.to_owned()))
    }

    /// The files with answers, in no particular order.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.values().map(Journal::path)
    }

    /// Appends `row` to its file, makes sure that it is on disk, and returns it as it will be read. A number may differ in its last
    /// digit after it was written and read. The results must not depend on whether a run was interrupted.
    ///
    /// # Errors
    /// [`EvalError::Records`].
    pub fn append(&mut self, row: PredictionRow) -> Result<&PredictionRow> {
        let key = (row.label(), row.task.clone());
        let path = self.file(&key.0, &key.1);
        let file = match self.files.entry(key) {
            Entry::Occupied(file) => file.into_mut(),
            Entry::Vacant(place) => place.insert(Journal::open(&path, id)?.0),
        };
        let row = file.append(&row)?;
        self.rows.push(row);
        Ok(&self.rows[self.rows.len() - 1])
    }

    /// All rows. The rows of one scheme and task are in the order in which they were made.
    #[must_use]
    pub fn rows(&self) -> &[PredictionRow] {
        &self.rows
    }

    fn file(&self, scheme: &str, task: &str) -> PathBuf {
        // Arguments of a scheme may contain slashes: `svdq-1.5(schedule=4/3/2)`.
        self.folder.join(scheme.replace('/', "_")).join(format!("{task}.jsonl"))
    }
}

fn id(row: &PredictionRow) -> String {
    row.id.clone()
}

/// The entries of `folder`, sorted by name. Empty if the folder does not exist.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read_error = |source| EvalError::Read { path: folder.to_owned(), source };
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(folder).map_err(read_error)?;
    let mut paths = entries.map(|e| Ok(e.map_err(read_error)?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;
    use crate::longbench::metrics::CodeSim;
    use crate::longbench::score::score_file;
    use crate::longbench::tasks::TaskTable;

    pub(crate) fn row(task: &str, id: &str, scheme: &str, score: f64) -> PredictionRow {
        PredictionRow {
            pred: "Rome".to_owned(),
            answers: vec!["Rome".to_owned()],
            all_classes: None,
            length: 5,
            task: task.to_owned(),
            id: id.to_owned(),
            scheme: scheme.to_owned(),
            dictionaries: String::new(),
            score,
            tokens_before: 40,
            tokens: 30,
            nominal_bits: 2.0,
            measured_bits: 2.5,
            encode_ms: 10.0,
            decode_ms: 20.0,
            generated: 4,
            cut: false,
        }
    }

    #[test]
    fn a_stopped_run_goes_on_without_losing_or_repeating() {
        let folder = tempfile::tempdir().unwrap();
        let mut predictions = Predictions::open(folder.path()).unwrap();
        for id in ["a", "b"] {
            predictions.append(row("qasper", id, "dense", 1.0)).unwrap();
        }
        let kmeans = PredictionRow { dictionaries: "kmeans".to_owned(), ..row("qasper", "a", "csr-8", 0.5) };
        predictions.append(kmeans).unwrap();
        let path = folder.path().join("dense/qasper.jsonl");
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();

        let mut again = Predictions::open(folder.path()).unwrap();
        assert!(again.contains("qasper", "a", "dense") && !again.contains("qasper", "b", "dense"));
        assert!(again.contains("qasper", "a", "csr-8@kmeans") && !again.contains("qasper", "a", "csr-8"));
        again.append(row("qasper", "b", "dense", 1.0)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        assert_eq!(Predictions::open(folder.path()).unwrap().rows().len(), 3);
    }

    #[test]
    fn files_are_what_the_scorer_reads() {
        let folder = tempfile::tempdir().unwrap();
        let mut predictions = Predictions::open(folder.path()).unwrap();
        predictions.append(row("qasper", "a", "dense", 1.0)).unwrap();
        let task = TaskTable::embedded().get("qasper").unwrap();
        let score = score_file(task, &folder.path().join("dense/qasper.jsonl"), CodeSim::Difflib).unwrap();
        assert_eq!((score.n, score.score), (1, 100.0));
    }

    #[test]
    fn lines_that_do_not_belong_are_named() {
        let line = |row: PredictionRow| format!("{}\n", serde_json::to_string(&row).unwrap());
        let first = line(row("qasper", "a", "dense", 1.0));
        for (second, message) in [
            (first.clone(), "record \"a\" stands on an earlier line"),
            (line(row("trec", "b", "dense", 1.0)), "in the wrong file"),
            (line(row("qasper", "b", "csr-8", 1.0)), "in the wrong file"),
            ("{}\n".to_owned(), "missing field"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            std::fs::create_dir(folder.path().join("dense")).unwrap();
            std::fs::write(folder.path().join("dense/qasper.jsonl"), first.clone() + &second).unwrap();
            let error = Predictions::open(folder.path()).unwrap_err().to_string();
            assert!(error.contains("qasper.jsonl:2: ") && error.contains(message), "{error}");
        }
    }
}
