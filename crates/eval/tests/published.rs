//! Reads LongBench's own config files and records, and builds prompts from them.

#![allow(clippy::unwrap_used)]

mod common;

use kvcsr_eval::TokensError;
use kvcsr_eval::longbench::config::Config;
use kvcsr_eval::longbench::prompt::{Tokens, Wrap, llama2_chat, prepare};
use kvcsr_eval::longbench::record::read_records;
use kvcsr_eval::longbench::tasks::TaskTable;

/// One token per character.
struct Characters;

impl Tokens for Characters {
    fn encode(&self, text: &str) -> Result<Vec<u32>, TokensError> {
        Ok(text.chars().map(u32::from).collect())
    }

    fn decode(&self, ids: &[u32]) -> Result<String, TokensError> {
        Ok(ids.iter().filter_map(|&id| char::from_u32(id)).collect())
    }
}

#[test]
fn config_covers_every_task() {
    let Some(folder) = common::longbench_folder("config_covers_every_task") else {
        return;
    };
    let config = Config::load(&folder.join("config")).unwrap();
    let mut limits = 0;
    for task in TaskTable::embedded().tasks() {
        assert!(config.template(&task.name).unwrap().source().contains("{context}"));
        limits += config.max_new_tokens(&task.name).unwrap();
    }
    assert_eq!(limits, 3168);
    assert_eq!(config.max_prompt_tokens("llama2-7b-chat-4k").unwrap(), 3500);
    // The typos and trailing spaces are those of LongBench.
    assert!(config.template("narrativeqa").unwrap().source().contains("asconcisely"));
    assert!(config.template("multi_news").unwrap().source().contains("all news. \n"));
}

#[test]
fn every_record_makes_a_prompt() {
    let Some(folder) = common::longbench_folder("every_record_makes_a_prompt") else {
        return;
    };
    let config = Config::load(&folder.join("config")).unwrap();
    let limit = config.max_prompt_tokens("llama2-7b-chat-4k").unwrap();
    let mut truncated = 0;
    for task in TaskTable::embedded().tasks() {
        let path = folder.join(format!("data/{}.jsonl", task.name));
        let template = config.template(&task.name).unwrap();
        let records = read_records(task, &path).unwrap();
        assert!(!records.is_empty(), "{}", task.name);
        for record in &records {
            let prompt = prepare(task, template, record, &Characters, limit, Some(Wrap::Around(llama2_chat))).unwrap();
            let wrap = if task.chat { "[INST][/INST]".len() } else { 0 };
            let kept = prompt.full_tokens.min(limit);
            assert_eq!(prompt.ids.len(), kept + wrap, "{} {}", task.name, record.id);
            assert!(!prompt.text.contains("{context}"), "{}", task.name);
            truncated += usize::from(prompt.truncated);
        }
    }
    assert!(truncated > 0);
}
