//! LongBench's own config files: prompt templates, generation limits and context limits.
//!
//! The files belong to LongBench. They are read from a folder given by the caller and used exactly as they are, including
//! typos and trailing spaces: `dataset2prompt.json`, `dataset2maxlen.json` and `model2maxlen.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::error::{EvalError, Result};
use crate::longbench::prompt::Template;

const PROMPTS: &str = "dataset2prompt.json";
const GENERATION_LIMITS: &str = "dataset2maxlen.json";
const CONTEXT_LIMITS: &str = "model2maxlen.json";

/// The contents of LongBench's config folder.
#[derive(Debug, Clone)]
pub struct Config {
    folder: PathBuf,
    templates: BTreeMap<String, Template>,
    generation_limits: BTreeMap<String, usize>,
    context_limits: BTreeMap<String, usize>,
}

impl Config {
    /// Reads the three files in `folder`.
    ///
    /// # Errors
    /// [`EvalError::Read`] for a missing file. [`EvalError::Config`] for a malformed file, or a prompt with a placeholder other
    /// than `{context}` and `{input}`.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(PROMPTS);
        let templates = read_json::<BTreeMap<String, String>>(&path)?
            .into_iter()
            .map(|(task, text)| match Template::parse(&text) {
                Ok(template) => Ok((task, template)),
                Err(error) => Err(EvalError::Config { path: path.clone(), message: format!("{task}: {error}") }),
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            folder: folder.to_owned(),
            templates,
            generation_limits: read_json(&folder.join(GENERATION_LIMITS))?,
            context_limits: read_json(&folder.join(CONTEXT_LIMITS))?,
        })
    }

    /// Templates and generation limits of tasks that are not LongBench's. Errors name `origin`.
    #[must_use]
    pub fn of_own(
        origin: &Path,
        templates: BTreeMap<String, Template>,
        generation_limits: BTreeMap<String, usize>,
    ) -> Self {
        Self { folder: origin.to_owned(), templates, generation_limits, context_limits: BTreeMap::new() }
    }

    /// The prompt template of `task`.
    ///
    /// # Errors
    /// [`EvalError::Config`] if the file has none.
    pub fn template(&self, task: &str) -> Result<&Template> {
        self.entry(&self.templates, PROMPTS, task)
    }

    /// The maximum number of tokens that `task` may generate.
    ///
    /// # Errors
    /// [`EvalError::Config`] if the file has no limit for the task.
    pub fn max_new_tokens(&self, task: &str) -> Result<usize> {
        self.entry(&self.generation_limits, GENERATION_LIMITS, task).copied()
    }

    /// The maximum number of prompt tokens for `model`, including the beginning-of-text token. Longer prompts lose their middle.
    ///
    /// # Errors
    /// [`EvalError::Config`] if the file does not have the model.
    pub fn max_prompt_tokens(&self, model: &str) -> Result<usize> {
        self.entry(&self.context_limits, CONTEXT_LIMITS, model).copied()
    }

    fn entry<'a, T>(&self, entries: &'a BTreeMap<String, T>, file: &str, name: &str) -> Result<&'a T> {
        entries.get(name).ok_or_else(|| EvalError::Config {
            path: self.folder.join(file),
            message: format!("no entry {name:?}; it has: {}", entries.keys().cloned().collect::<Vec<_>>().join(", ")),
        })
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(|source| EvalError::Read { path: path.to_owned(), source })?;
    serde_json::from_str(&text).map_err(|error| EvalError::Config { path: path.to_owned(), message: error.to_string() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn folder(prompts: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text);
        write(PROMPTS, prompts).unwrap();
        write(GENERATION_LIMITS, r#"{"lcc": 64}"#).unwrap();
        write(CONTEXT_LIMITS, r#"{"llama2-7b-chat-4k": 3500}"#).unwrap();
        folder
    }

    #[test]
    fn entries_are_found_or_named() {
        let folder = folder(r#"{"lcc": "{context}Next line of code:\n"}"#);
        let config = Config::load(folder.path()).unwrap();
        assert_eq!(config.max_new_tokens("lcc").unwrap(), 64);
        assert_eq!(config.max_prompt_tokens("llama2-7b-chat-4k").unwrap(), 3500);
        assert_eq!(config.template("lcc").unwrap().source(), "{context}Next line of code:\n");
        let error = config.template("trec").unwrap_err().to_string();
        assert!(error.contains(PROMPTS) && error.contains("trec"), "{error}");
    }

    #[test]
    fn a_bad_template_names_file_and_task() {
        let folder = folder(r#"{"lcc": "{contxt}"}"#);
        let error = Config::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains(PROMPTS) && error.contains("lcc"), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let folder = folder("{}");
        std::fs::remove_file(folder.path().join(CONTEXT_LIMITS)).unwrap();
        let error = Config::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains(CONTEXT_LIMITS), "{error}");
    }
}
