//! The eight-key record of LongBench's data files.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::jsonl;
use crate::longbench::metrics::Metric;
use crate::longbench::tasks::{Language, Task};

/// One sample of a task, as LongBench publishes it. All keys are required, and other keys are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The question or instruction. Empty for tasks without one.
    pub input: String,
    /// The long text.
    pub context: String,
    /// The correct answers. The best match counts.
    pub answers: Vec<String>,
    /// Length of the sample in words (English, code) or characters (Chinese), not tokens.
    pub length: u64,
    /// The task, or the task with the suffix `_e` for LongBench-E.
    pub dataset: String,
    /// The language.
    pub language: Language,
    /// All class names of a classification task, else null.
    #[serde(deserialize_with = "present")]
    pub all_classes: Option<Vec<String>>,
    /// The sample's identifier.
    #[serde(rename = "_id")]
    pub id: String,
}

/// The records of one task that have to be answered.
#[derive(Debug, Clone)]
pub struct Work<'t> {
    /// The task.
    pub task: &'t Task,
    /// Its records.
    pub records: Vec<Record>,
}

/// Reads a key that may be null but must be present.
fn present<'de, D>(deserializer: D) -> Result<Option<Vec<String>>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    Option::deserialize(deserializer)
}

impl Record {
    /// Describes what is wrong with this record as a sample of `task`, if anything.
    fn fault(&self, task: &Task) -> Option<String> {
        let stem = self.dataset.strip_suffix("_e").unwrap_or(&self.dataset);
        if stem != task.name {
            return Some(format!("dataset is {:?}, expected {:?}", self.dataset, task.name));
        }
        if self.language != task.language {
            return Some(format!("language is {:?}, expected {:?}", self.language, task.language));
        }
        if self.answers.is_empty() {
            return Some("answers is empty, expected at least one".to_owned());
        }
        let classes = self.all_classes.as_deref().unwrap_or_default();
        if task.metric == Metric::Classification && classes.is_empty() {
            return Some(format!("all_classes is null or empty, but {} is scored by class names", task.name));
        }
        None
    }
}

/// Reads the records of `task` from a JSONL file, in the order of the file.
///
/// # Errors
/// - [`EvalError::Read`](crate::EvalError::Read) if the file cannot be read.
/// - [`EvalError::Line`](crate::EvalError::Line) for a line with a missing, unknown or mistyped key, the `dataset` or `language`
///   of another task, no answer, no classes if they are needed, or the `_id` of an earlier line.
pub fn read_records(task: &Task, path: &Path) -> Result<Vec<Record>> {
    read_each_record(task, path)?.into_iter().collect()
}

/// Does the same as [`read_records`], but a bad line only gives an error for that line. The other records are still read.
///
/// # Errors
/// [`EvalError::Read`](crate::EvalError::Read) if the file cannot be read, [`EvalError::Line`](crate::EvalError::Line) if its
/// first line shows that it is not UTF-8.
pub fn read_each_record(task: &Task, path: &Path) -> Result<Vec<Result<Record>>> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut check = |line: jsonl::Line<Record>| {
        let fault = line.value.fault(task).or_else(|| {
            let first = *seen.entry(line.value.id.clone()).or_insert(line.number);
            (first != line.number).then(|| format!("_id {:?} stands on line {first} already", line.value.id))
        });
        match fault {
            Some(fault) => Err(jsonl::line_error(path, line.number, fault)),
            None => Ok(line.value),
        }
    };
    Ok(jsonl::read_each::<Record>(path)?.into_iter().map(|line| line.and_then(&mut check)).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::longbench::tasks::TaskTable;

    fn good() -> Value {
        json!({
            "input": "What is it?", "context": "It is {x}.", "answers": ["a", "b"], "length": 12,
            "dataset": "trec", "language": "en", "all_classes": ["Food", "Date"], "_id": "0f"
        })
    }

    fn read(task: &str, second: &Value) -> Result<Vec<Record>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trec.jsonl");
        let mut first = good();
        first["_id"] = json!("0e");
        std::fs::write(&path, format!("{first}\n{second}\n")).unwrap();
        read_records(TaskTable::embedded().get(task).unwrap(), &path)
    }

    #[test]
    fn records_round_trip() {
        let records = read("trec", &good()).unwrap();
        assert_eq!(records.len(), 2);
        assert_eq!(records[1].id, "0f");
        assert_eq!(serde_json::to_value(&records[1]).unwrap(), good());
    }

    #[test]
    fn the_e_suffix_names_the_same_task() {
        let mut record = good();
        record["dataset"] = json!("trec_e");
        assert!(read("trec", &record).is_ok());
    }

    #[test]
    fn records_of_code_may_name_their_programming_language() {
        for (language, sound) in [("code", true), ("python", true), ("csharp", true), ("java", true), ("en", false)] {
            let mut record = good();
            record["language"] = json!(language);
            record["dataset"] = json!("lcc");
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("lcc.jsonl");
            std::fs::write(&path, format!("{record}\n")).unwrap();
            let read = read_records(TaskTable::embedded().get("lcc").unwrap(), &path);
            assert_eq!(read.is_ok(), sound, "{language}");
        }
    }

    #[test]
    fn malformed_records_name_file_and_line() {
        let mut faults: Vec<(Value, &str)> = Vec::new();
        for key in good().as_object().unwrap().keys() {
            let mut record = good();
            record.as_object_mut().unwrap().remove(key);
            faults.push((record, "missing field"));
        }
        for (key, value, message) in [
            ("answers", json!([]), "answers is empty"),
            ("answers", json!("a"), "invalid type"),
            ("answers", json!([1]), "invalid type"),
            ("length", json!(-1), "invalid value"),
            ("length", json!(1.5), "invalid type"),
            ("dataset", json!("lcc"), "dataset is"),
            ("language", json!("zh"), "language is"),
            ("language", json!("de"), "unknown variant"),
            ("all_classes", json!(null), "all_classes is null"),
            ("extra", json!(1), "unknown field"),
            ("_id", json!("0e"), "stands on line 1 already"),
        ] {
            let mut record = good();
            record[key] = value;
            faults.push((record, message));
        }
        faults.push((json!([1, 2]), "invalid"));
        for (record, message) in faults {
            let error = read("trec", &record).unwrap_err().to_string();
            assert!(error.contains("trec.jsonl:2: "), "{error}");
            assert!(error.contains(message), "{error} lacks {message:?}");
        }
    }
    #[test]
    fn a_bad_line_leaves_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trec.jsonl");
        let mut last = good();
        last["_id"] = json!("1f");
        std::fs::write(&path, format!("{}\n{{}}\n{last}\n", good())).unwrap();
        let records = read_each_record(TaskTable::embedded().get("trec").unwrap(), &path).unwrap();
        let ids: Vec<Option<&str>> = records.iter().map(|record| record.as_ref().ok().map(|r| r.id.as_str())).collect();
        assert_eq!(ids, [Some("0f"), None, Some("1f")]);
        assert!(records[1].as_ref().unwrap_err().to_string().contains("trec.jsonl:2: "));
    }
}
