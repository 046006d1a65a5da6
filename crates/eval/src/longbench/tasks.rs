//! The 21 tasks of LongBench v1, and the groups of tasks that papers report.
//!
//! The table is `data/tasks.toml`. It has a version and a changelog, so a stored result can say which table scored it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::error::{EvalError, Result};
use crate::longbench::metrics::Metric;

const TABLE: &str = include_str!("../../data/tasks.toml");

/// The language of a task's records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// English. `length` counts words.
    En,
    /// Chinese. `length` counts characters.
    Zh,
    /// Source code. `length` counts words. Records may give the programming language instead.
    #[serde(alias = "python", alias = "java", alias = "csharp")]
    Code,
}

/// The kind of task: the six categories of LongBench's official average, and two that only [`crate::suite`] has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// Questions about one document.
    SingleDocQa,
    /// Questions about several documents.
    MultiDocQa,
    /// Summaries.
    Summarization,
    /// Few-shot learning.
    FewShot,
    /// Synthetic retrieval and counting.
    Synthetic,
    /// Code completion.
    Code,
    /// Notes of conversations. Not in LongBench.
    Dialogue,
    /// Arithmetic in words. Not in LongBench.
    Reasoning,
}

/// One task: how its prompts are wrapped and how its predictions are scored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// LongBench's name, which is also the file stem of its data.
    pub name: String,
    /// The scorer.
    pub metric: Metric,
    /// The language of its records.
    pub language: Language,
    /// The category of the official average.
    pub category: Category,
    /// Number of records of the full task.
    pub samples: usize,
    /// Whether only the first line of a prediction is scored.
    pub first_line: bool,
    /// Whether the prompt is wrapped in the model's chat template.
    pub chat: bool,
    /// Whether the newline token also ends generation. In this case the first generated token may be neither the newline token nor
    /// the end-of-text token.
    pub newline_stops: bool,
}

/// A change of the task table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// The first version with this change.
    pub version: u32,
    /// What changed.
    pub change: String,
}

/// The name for all tasks of a table together. It is used like the name of a group.
pub const ALL: &str = "all";

fn longbench() -> String {
    "LongBench v1".to_owned()
}

/// All tasks and groups.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskTable {
    #[serde(default = "longbench")]
    title: String,
    version: u32,
    changelog: Vec<Change>,
    groups: BTreeMap<String, Vec<String>>,
    #[serde(rename = "task")]
    tasks: Vec<Task>,
}

impl TaskTable {
    /// The table that is included in this crate.
    #[must_use]
    pub fn embedded() -> &'static Self {
        static EMBEDDED: LazyLock<TaskTable> =
            LazyLock::new(|| TaskTable::parse(TABLE).expect("the embedded task table is valid"));
        &EMBEDDED
    }

    /// Reads a table in the format of `data/tasks.toml`.
    ///
    /// # Errors
    /// [`EvalError::TaskTable`] for invalid TOML, a task listed twice, a group with an unknown or repeated task, or a version
    /// that is not the last one in the changelog.
    pub fn parse(toml: &str) -> Result<Self> {
        toml::from_str::<Self>(toml).map_err(|error| EvalError::TaskTable(error.to_string()))?.checked()
    }

    /// A table of tasks that are not LongBench's. Errors call it `title`.
    ///
    /// # Errors
    /// The same as [`TaskTable::parse`].
    pub fn new(
        title: &str,
        version: u32,
        changelog: Vec<Change>,
        groups: BTreeMap<String, Vec<String>>,
        tasks: Vec<Task>,
    ) -> Result<Self> {
        Self { title: title.to_owned(), version, changelog, groups, tasks }.checked()
    }

    fn checked(self) -> Result<Self> {
        let table = self;
        let mut names = BTreeSet::new();
        for task in &table.tasks {
            if !names.insert(task.name.as_str()) {
                return Err(EvalError::TaskTable(format!("task {:?} is listed twice", task.name)));
            }
        }
        for (group, members) in &table.groups {
            let mut seen = BTreeSet::new();
            for member in members {
                if !names.contains(member.as_str()) || !seen.insert(member) {
                    return Err(EvalError::TaskTable(format!(
                        "group {group:?} has an unknown or repeated task {member:?}"
                    )));
                }
            }
        }
        if table.changelog.last().map(|change| change.version) != Some(table.version) {
            return Err(EvalError::TaskTable(format!("the changelog does not end with version {}", table.version)));
        }
        Ok(table)
    }

    /// Version of the table. It increases with every change that can change a score.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The changes, oldest first.
    #[must_use]
    pub fn changelog(&self) -> &[Change] {
        &self.changelog
    }

    /// All tasks, in the order of LongBench.
    #[must_use]
    pub fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    /// The task called `name`.
    ///
    /// # Errors
    /// [`EvalError::UnknownTask`], which lists the names.
    pub fn get(&self, name: &str) -> Result<&Task> {
        self.tasks.iter().find(|task| task.name == name).ok_or_else(|| EvalError::UnknownTask {
            name: name.to_owned(),
            table: self.title.clone(),
            known: join(self.tasks.iter().map(|task| &task.name)),
        })
    }

    /// The tasks given by `names`: tasks, groups, or [`ALL`]. Each task occurs once, in the order of first mention.
    ///
    /// # Errors
    /// [`EvalError::UnknownTask`], which lists tasks and groups.
    pub fn select(&self, names: &[String]) -> Result<Vec<&Task>> {
        let mut picked: Vec<&Task> = Vec::new();
        for name in names {
            let named = match name.as_str() {
                ALL => self.tasks.iter().collect(),
                group if self.groups.contains_key(group) => self.group(group)?,
                task => vec![self.get(task).map_err(|_| EvalError::UnknownTask {
                    name: name.clone(),
                    table: format!("groups are {ALL}, {}; {}", join(self.groups.keys()), self.title),
                    known: join(self.tasks.iter().map(|task| &task.name)),
                })?],
            };
            for task in named {
                if !picked.contains(&task) {
                    picked.push(task);
                }
            }
        }
        Ok(picked)
    }

    /// Names of the groups.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        self.groups.keys().map(String::as_str)
    }

    /// The tasks of a group, in the order of the group: for example `csr11`, `kivi8` or `longbench_e`.
    ///
    /// # Errors
    /// [`EvalError::UnknownGroup`], which lists the names.
    pub fn group(&self, name: &str) -> Result<Vec<&Task>> {
        self.groups
            .get(name)
            .ok_or_else(|| EvalError::UnknownGroup { name: name.to_owned(), known: join(self.groups.keys()) })?
            .iter()
            .map(|task| self.get(task))
            .collect()
    }
}

fn join<'a>(names: impl Iterator<Item = &'a String>) -> String {
    names.map(String::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names(pick: impl Fn(&Task) -> bool) -> Vec<&'static str> {
        TaskTable::embedded().tasks().iter().filter(|task| pick(task)).map(|task| task.name.as_str()).collect()
    }

    #[test]
    fn the_embedded_table_is_longbench_v1() {
        let table = TaskTable::embedded();
        assert_eq!(table.tasks().len(), 21);
        assert_eq!(table.tasks().iter().map(|task| task.samples).sum::<usize>(), 4750);
        assert_eq!(names(|task| task.first_line), ["trec", "triviaqa", "samsum", "lsht"]);
        assert_eq!(names(|task| !task.chat), ["trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"]);
        assert_eq!(names(|task| task.newline_stops), ["samsum"]);
        assert_eq!(
            names(|task| task.language == Language::Zh),
            ["multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh"]
        );
    }

    #[test]
    fn groups_have_their_papers_sizes() {
        let table = TaskTable::embedded();
        for (group, size) in [("csr11", 11), ("kivi8", 8), ("longbench_e", 13)] {
            assert_eq!(table.group(group).unwrap().len(), size, "{group}");
        }
        assert_eq!(table.groups().count(), 3);
    }

    #[test]
    fn groups_are_spelled_out_and_tasks_come_once() {
        let select = |names: &[&str]| -> Result<Vec<&'static str>> {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            Ok(TaskTable::embedded().select(&names)?.into_iter().map(|task| task.name.as_str()).collect())
        };
        assert_eq!(select(&["csr11"]).unwrap().len(), 11);
        assert_eq!(select(&["all"]).unwrap().len(), 21);
        assert_eq!(select(&["trec", "csr11"]).unwrap().len(), 11);
        assert_eq!(select(&["lcc", "trec"]).unwrap(), ["lcc", "trec"]);
        let error = select(&["csr12"]).unwrap_err().to_string();
        assert!(error.contains("groups are all, csr11, kivi8") && error.contains("unknown task"), "{error}");
    }

    #[test]
    fn unknown_names_list_the_known_ones() {
        let table = TaskTable::embedded();
        assert!(table.get("lccc").unwrap_err().to_string().contains("lcc,"));
        let error = table.group("csr12").unwrap_err().to_string();
        assert!(error.contains("csr11"), "{error}");
    }

    #[test]
    fn inconsistent_tables_are_refused() {
        for (from, to) in [
            ("version = 1\n\n[[", "version = 2\n\n[["),
            ("name = \"lcc\"", "name = \"trec\""),
            ("csr11 = [\"2wikimqa\"", "csr11 = [\"hotpotqa\""),
            ("metric = \"code_sim\"", "metric = \"bleu\""),
        ] {
            assert!(TABLE.contains(from), "{from}");
            let broken = TABLE.replacen(from, to, 1);
            assert!(TaskTable::parse(&broken).is_err(), "{to}");
        }
    }
}
