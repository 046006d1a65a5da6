//! Compares every score with that of LongBench's own `eval.py` for the predictions of two models, to the last printed digit.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use kvcsr_eval::longbench::metrics::{CodeSim, MetricOptions, Recursion};
use kvcsr_eval::longbench::score::{sample_scores, score_file, score_file_by_length};
use kvcsr_eval::longbench::tasks::TaskTable;

/// Parses `"task": [` and one number per line. This does not use serde_json, which may be off by one unit in the last of 17 digits.
fn samples_by_task(text: &str) -> BTreeMap<String, Vec<f64>> {
    let mut tasks = BTreeMap::new();
    let mut samples: Option<&mut Vec<f64>> = None;
    for line in text.lines().map(|line| line.trim().trim_end_matches(',')) {
        if let Some(name) = line.strip_suffix("\": [") {
            let name = name.trim_start_matches('"').to_owned();
            samples = Some(tasks.entry(name).or_default());
        } else if !matches!(line, "{" | "}" | "]") {
            samples.as_mut().unwrap().push(line.parse().unwrap());
        }
    }
    tasks
}

fn check_results(folder: &Path, code_sim: CodeSim, tasks: usize) {
    let text = std::fs::read_to_string(folder.join("result.json")).unwrap();
    let expected: BTreeMap<String, f64> = serde_json::from_str(&text).unwrap();
    assert_eq!(expected.len(), tasks);
    let mut wrong = Vec::new();
    for (name, expected) in &expected {
        let task = TaskTable::embedded().get(name).unwrap();
        let path = folder.join(format!("{name}.jsonl"));
        let found = score_file(task, &path, code_sim).unwrap();
        assert_eq!((&found.task, found.n), (name, task.samples));
        if found.score != *expected {
            wrong.push(format!("{name}: {} instead of {expected}", found.score));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn llama2_scores_with_difflib() {
    let Some(folder) = common::longbench_folder("llama2_scores_with_difflib") else {
        return;
    };
    let folder = folder.join("golden/llama2-7b-chat-4k");
    check_results(&folder, CodeSim::Difflib, 21);
}

/// `eval.py` on the same files in an environment with python-Levenshtein.
#[test]
fn llama2_code_scores_with_levenshtein() {
    let Some(folder) = common::longbench_folder("llama2_code_scores_with_levenshtein") else {
        return;
    };
    for (name, expected) in [("lcc", 60.87), ("repobench-p", 54.45)] {
        let task = TaskTable::embedded().get(name).unwrap();
        let path = folder.join(format!("golden/llama2-7b-chat-4k/{name}.jsonl"));
        let found = score_file(task, &path, CodeSim::Levenshtein).unwrap();
        assert_eq!(found.score, expected, "{name}");
    }
}

#[test]
fn mistral_scores_with_levenshtein() {
    let Some(folder) = common::longbench_folder("mistral_scores_with_levenshtein") else {
        return;
    };
    let folder = folder.join("golden/mistral-7b-instruct-v0.2");
    check_results(&folder, CodeSim::Levenshtein, 16);
}

#[test]
fn mistral_samples_are_equal_as_floats() {
    let Some(folder) = common::longbench_folder("mistral_samples_are_equal_as_floats") else {
        return;
    };
    let folder = folder.join("golden/mistral-7b-instruct-v0.2");
    let text = std::fs::read_to_string(folder.join("list_result.json")).unwrap();
    let expected = samples_by_task(&text);
    assert_eq!(expected.len(), 16);
    let options = MetricOptions { code_sim: CodeSim::Levenshtein, recursion: Recursion::AsPython };
    for (name, expected) in &expected {
        let task = TaskTable::embedded().get(name).unwrap();
        let path = folder.join(format!("{name}.jsonl"));
        let found = sample_scores(task, &path, options).unwrap();
        assert_eq!(found.len(), expected.len(), "{name}");
        for (sample, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert_eq!(found, expected, "{name}, sample {sample}");
        }
    }
}

/// `scorer_e` of `eval.py` on the same files, with numpy 2.4 and python-Levenshtein.
#[test]
fn mistral_scores_by_length() {
    let Some(folder) = common::longbench_folder("mistral_scores_by_length") else {
        return;
    };
    for (name, expected) in [
        ("qasper", [34.24, 31.57, 16.34]),
        ("multifieldqa_en", [57.08, 42.11, 48.37]),
        ("hotpotqa", [66.41, 38.24, 41.43]),
        ("2wikimqa", [34.12, 24.41, 15.16]),
        ("gov_report", [35.61, 32.68, 31.88]),
        ("multi_news", [27.16, 27.24, 22.77]),
        ("trec", [71.21, 72.07, 65.22]),
        ("triviaqa", [85.11, 86.8, 86.35]),
        ("samsum", [43.36, 42.28, 43.29]),
        ("passage_count", [5.56, 3.83, 2.42]),
        ("passage_retrieval_en", [f64::NAN, 83.33, 87.21]),
        ("lcc", [55.74, 43.71, 36.5]),
        ("repobench-p", [50.02, 56.31, 57.02]),
    ] {
        let task = TaskTable::embedded().get(name).unwrap();
        let path = folder.join(format!("golden/mistral-7b-instruct-v0.2/{name}.jsonl"));
        let found = score_file_by_length(task, &path, CodeSim::Levenshtein).unwrap();
        assert_eq!(
            found.map(|bucket| bucket.score),
            expected.map(|score| (!score.is_nan()).then_some(score)),
            "{name}"
        );
    }
}
