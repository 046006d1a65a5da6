//! The suite: tasks of this project, for use without LongBench's data.
//!
//! **It is not LongBench.** The texts come from pinned packages (`data/sources.toml`), and this module makes the prompts and
//! records. The scores cannot be compared with those of LongBench. Everything else is shared: the metrics, the runner and the
//! statistics. Tasks are data, in `data/suite.toml`, with a version and a changelog. Each task names a builder. There is one
//! file per family of builders:
//!
//! - [`stories`]: questions about one of several plots;
//! - [`summary`]: summaries, with examples or without;
//! - [`dialogue`]: notes of conversations;
//! - [`contract`]: true or false, with examples;
//! - [`code`]: the next line of a Python file;
//! - [`lookup`]: one of many records;
//! - [`gsm8k`]: arithmetic in words, with worked examples;
//! - [`grid`]: a pass key, a fact, one of several codes or a variable at a given depth of a text of a given length.
//!
//! Records are the same on every machine. They depend only on the bytes of the texts, the parameters and, for the grids, the
//! tokenizer.

pub mod code;
pub mod contract;
pub mod dialogue;
pub mod grid;
pub mod gsm8k;
pub mod lookup;
pub mod stories;
pub mod summary;
mod table;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::{EvalError, Result};
use crate::longbench::config::Config;
use crate::longbench::metrics::Metric;
use crate::longbench::prompt::{Template, Tokens};
use crate::longbench::record::{Record, Work};
use crate::longbench::tasks::{Category, Change, Language, Task, TaskTable};

const FILE: &str = "suite.toml";
const SUITE: &str = include_str!("../../data/suite.toml");

/// The tasks, their prompts, and the recipes for their records.
#[derive(Debug)]
pub struct Suite {
    table: TaskTable,
    config: Config,
    recipes: BTreeMap<String, Recipe>,
}

/// The texts from which records are made, by their id in `data/sources.toml`.
pub type Texts = BTreeMap<String, String>;

/// The part of the suite to use.
#[derive(Debug, Clone)]
pub struct Selection<'s> {
    /// Tasks and groups.
    pub tasks: &'s [String],
    /// Maximum number of records per task, taken from the start. 0 means the task's full number of records. The grids have
    /// their own sizes.
    pub limit: usize,
    /// Lengths and depths of the grids.
    pub grid: grid::Grid<'s>,
}

#[derive(Debug, Clone)]
struct Recipe {
    sources: Vec<String>,
    build: Build,
}

/// A builder and its parameters.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum Build {
    Stories(stories::Stories),
    Summary(summary::Summary),
    Visit(dialogue::Visit),
    Consultation(dialogue::Consultation),
    Contract(contract::Contract),
    Code(code::Code),
    Records(lookup::Lookup),
    Gsm8k {},
    Passkey {},
    Needle {},
    Keys {},
    Variables {},
}

impl Build {
    /// Whether the grid alone determines the number of records.
    fn is_grid(&self) -> bool {
        matches!(self, Self::Passkey {} | Self::Needle {} | Self::Keys {} | Self::Variables {})
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SuiteFile {
    version: u32,
    changelog: Vec<Change>,
    groups: BTreeMap<String, Vec<String>>,
    task: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    category: Category,
    metric: Metric,
    language: Language,
    first_line: bool,
    newline_stops: bool,
    samples: usize,
    max_new_tokens: usize,
    sources: Vec<String>,
    build: Build,
    prompt: String,
}

/// One record that has no task yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Draft {
    id: String,
    context: String,
    input: String,
    answers: Vec<String>,
    classes: Option<Vec<String>>,
}

impl Suite {
    /// The suite that is included in this crate.
    #[must_use]
    pub fn embedded() -> &'static Self {
        static EMBEDDED: LazyLock<Suite> = LazyLock::new(|| Suite::parse(SUITE).expect("the embedded suite is valid"));
        &EMBEDDED
    }

    /// Reads a suite in the format of `data/suite.toml`.
    ///
    /// # Errors
    /// [`EvalError::TaskTable`] and [`EvalError::Template`].
    pub fn parse(toml: &str) -> Result<Self> {
        let file: SuiteFile = toml::from_str(toml).map_err(|error| EvalError::TaskTable(error.to_string()))?;
        let (mut tasks, mut recipes) = (Vec::new(), BTreeMap::new());
        let (mut templates, mut limits) = (BTreeMap::new(), BTreeMap::new());
        for entry in file.task {
            let prompt = Template::parse(&entry.prompt)
                .map_err(|error| EvalError::Template(format!("{}: {error}", entry.name)))?;
            templates.insert(entry.name.clone(), prompt);
            limits.insert(entry.name.clone(), entry.max_new_tokens);
            recipes.insert(entry.name.clone(), Recipe { sources: entry.sources, build: entry.build });
            tasks.push(Task {
                name: entry.name,
                metric: entry.metric,
                language: entry.language,
                category: entry.category,
                samples: entry.samples,
                first_line: entry.first_line,
                chat: false,
                newline_stops: entry.newline_stops,
            });
        }
        Ok(Self {
            table: TaskTable::new("the suite", file.version, file.changelog, file.groups, tasks)?,
            config: Config::of_own(Path::new(FILE), templates, limits),
            recipes,
        })
    }

    /// The tasks.
    #[must_use]
    pub fn table(&self) -> &TaskTable {
        &self.table
    }

    /// Prompts and generation limits, for a [`Runner`](crate::longbench::runner::Runner).
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Ids of the texts from which `tasks` (tasks and groups) are made. Each id occurs once.
    ///
    /// # Errors
    /// [`EvalError::UnknownTask`].
    pub fn sources(&self, tasks: &[String]) -> Result<Vec<&str>> {
        let mut ids: Vec<&str> = Vec::new();
        for task in self.table.select(tasks)? {
            for id in &self.recipes[&task.name].sources {
                if !ids.contains(&id.as_str()) {
                    ids.push(id);
                }
            }
        }
        Ok(ids)
    }

    /// The records of the selected tasks. `tokens` measures the length of the grids' texts.
    ///
    /// # Errors
    /// [`EvalError::Suite`] for a text that is missing or malformed, [`EvalError::UnknownTask`],
    /// [`EvalError::Tokens`].
    pub fn work(&self, selection: &Selection<'_>, texts: &Texts, tokens: &dyn Tokens) -> Result<Vec<Work<'_>>> {
        let of_task = |task| Ok(Work { task, records: self.records(task, selection, texts, tokens)? });
        self.table.select(selection.tasks)?.into_iter().map(of_task).collect()
    }

    fn records(
        &self,
        task: &Task,
        selection: &Selection<'_>,
        texts: &Texts,
        tokens: &dyn Tokens,
    ) -> Result<Vec<Record>> {
        let recipe = &self.recipes[&task.name];
        let text = |at: usize| -> Result<Text<'_>> {
            let id = recipe.sources.get(at).map_or("", String::as_str);
            let missing = || EvalError::Suite { text: id.to_owned(), message: "was not given".to_owned() };
            Ok(Text { id, text: texts.get(id).ok_or_else(missing)? })
        };
        let drafts = match &recipe.build {
            Build::Stories(build) => build.drafts(text(0)?)?,
            Build::Summary(build) => build.drafts(text(0)?)?,
            Build::Visit(build) => build.drafts(text(0)?)?,
            Build::Consultation(build) => build.drafts(text(0)?)?,
            Build::Contract(build) => build.drafts(text(0)?)?,
            Build::Code(build) => build.drafts(text(0)?),
            Build::Records(build) => build.drafts(task.samples),
            Build::Gsm8k {} => gsm8k::drafts(text(0)?)?,
            Build::Passkey {} => selection.grid.passkeys(self.config.template(&task.name)?, tokens)?,
            Build::Needle {} => selection.grid.needles(text(0)?, self.config.template(&task.name)?, tokens)?,
            Build::Keys {} => selection.grid.keys(text(0)?, self.config.template(&task.name)?, tokens)?,
            Build::Variables {} => selection.grid.variables(self.config.template(&task.name)?, tokens)?,
        };
        let limit = match selection.limit {
            _ if recipe.build.is_grid() => usize::MAX,
            0 => task.samples,
            limit => limit.min(task.samples),
        };
        Ok(drafts.into_iter().take(limit).map(|draft| draft.record(task)).collect())
    }
}

impl Draft {
    fn record(self, task: &Task) -> Record {
        let length = (self.context.split_whitespace().count() + self.input.split_whitespace().count()) as u64;
        Record {
            id: format!("{}-{}", task.name, self.id),
            context: self.context,
            input: self.input,
            answers: self.answers,
            length,
            dataset: task.name.clone(),
            language: task.language,
            all_classes: self.classes,
        }
    }
}

/// A text and its id.
#[derive(Debug, Clone, Copy)]
struct Text<'t> {
    id: &'t str,
    text: &'t str,
}

impl Text<'_> {
    fn error(&self, message: String) -> EvalError {
        EvalError::Suite { text: self.id.to_owned(), message }
    }

    /// One JSON object per line.
    fn json_lines<T: DeserializeOwned>(&self) -> Result<Vec<T>> {
        let lines = self.text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        lines
            .map(|(at, line)| {
                serde_json::from_str(line).map_err(|error| self.error(format!("line {}: {error}", at + 1)))
            })
            .collect()
    }
}

/// Replaces each run of white space by one space, because each example takes one line.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_suite_spans_its_kinds() {
        let suite = Suite::embedded();
        let group = suite.table().group("suite").unwrap();
        assert_eq!(group.len(), 8);
        assert!(group.iter().all(|task| task.name != "contract_terms"), "its one token comes from the exact prefill");
        let kinds: std::collections::BTreeSet<Category> = group.iter().map(|task| task.category).collect();
        assert!(kinds.len() >= 6, "{kinds:?}");
        for task in suite.table().tasks() {
            assert!(suite.config().template(&task.name).unwrap().source().contains("{input}"), "{}", task.name);
            assert!(suite.config().max_new_tokens(&task.name).unwrap() >= 4);
            assert!(TaskTable::embedded().get(&task.name).is_err(), "{} is LongBench's name", task.name);
        }
    }

    #[test]
    fn every_text_is_named_once() {
        let ids = Suite::embedded().sources(&["all".to_owned(), "needle".to_owned()]).unwrap();
        assert_eq!(ids.iter().collect::<std::collections::BTreeSet<_>>().len(), ids.len());
        assert!(ids.contains(&"narrativeqa") && ids.len() == 8, "{ids:?}");
        assert!(Suite::embedded().sources(&["passkey".to_owned()]).unwrap().is_empty());
    }

    #[test]
    fn inconsistent_suites_are_refused() {
        for (from, to) in [
            ("version = 3\n\n[[", "version = 4\n\n[["),
            ("kind = \"code\"", "kind = \"cobol\""),
            ("step = 1700", "stride = 1700"),
            ("name = \"gsm8k\"", "name = \"needle\""),
            ("Question: {input}", "Question: {question}"),
        ] {
            assert!(SUITE.contains(from), "{from}");
            assert!(Suite::parse(&SUITE.replacen(from, to, 1)).is_err(), "{to}");
        }
    }

    #[test]
    fn a_missing_text_is_named() {
        let grid = grid::Grid { lengths: &[], depths: &[], repeats: 1 };
        let tasks = ["gsm8k".to_owned()];
        let selection = Selection { tasks: &tasks, limit: 0, grid };
        struct None;
        impl Tokens for None {
            fn encode(&self, _: &str) -> Result<Vec<u32>, crate::TokensError> {
                Ok(Vec::new())
            }
            fn decode(&self, _: &[u32]) -> Result<String, crate::TokensError> {
                Ok(String::new())
            }
        }
        let work = |texts| Suite::embedded().work(&selection, &texts, &None);
        assert!(work(Texts::new()).unwrap_err().to_string().contains("gsm8k"));
        let bad = Texts::from([("gsm8k".to_owned(), "{}\n".to_owned())]);
        assert!(work(bad).unwrap_err().to_string().contains("line 1"));
        let good = r#"{"prompt": "1 + 1?", "expected": "2"}"#;
        let good = Texts::from([("gsm8k".to_owned(), good.to_owned())]);
        let record = work(good).unwrap().remove(0).records.remove(0);
        assert_eq!((record.input.as_str(), record.answers[0].as_str()), ("1 + 1?", "2"));
    }
}
