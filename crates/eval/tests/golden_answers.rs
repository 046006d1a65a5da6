//! Compares the uncompressed SmolLM2 on real LongBench records with transformers' greedy generation in LongBench's own loop.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::LazyLock;

use candle_core::Device;
use kvcsr_cache::{Scheme, SchemeContext, registry};
use kvcsr_eval::longbench::config::Config;
use kvcsr_eval::longbench::metrics::{CodeSim, MetricOptions};
use kvcsr_eval::longbench::predictions::PredictionRow;
use kvcsr_eval::longbench::prompt::Chat;
use kvcsr_eval::longbench::record::{Record, read_records};
use kvcsr_eval::longbench::runner::{RunOptions, Runner};
use kvcsr_eval::longbench::tasks::{Task, TaskTable};
use kvcsr_model::{Decoder, Gguf, Logits, Tokenizer};
use serde::Deserialize;

#[derive(Deserialize)]
struct Answer {
    task: String,
    index: usize,
    #[serde(rename = "_id")]
    id: String,
    tokens_before: usize,
    tokens: usize,
    pred_ids: Vec<u32>,
    pred: String,
    score: f64,
}

struct Golden {
    answers: Vec<(Answer, &'static Task, Record)>,
    decoder: Decoder,
    tokenizer: Tokenizer,
    config: Config,
}

static GOLDEN: LazyLock<Option<Golden>> = LazyLock::new(|| {
    let folder = common::longbench_folder("golden_answers")?;
    let text = std::fs::read_to_string(common::golden_answers("golden_answers")?).unwrap();
    let file = Gguf::open(kvcsr_fixtures::smollm2("golden_answers")?).unwrap();
    let answers: Vec<Answer> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), 30);
    let with_record = |answer: Answer| {
        let task = TaskTable::embedded().get(&answer.task).unwrap();
        let mut records = read_records(task, &folder.join(format!("data/{}.jsonl", task.name))).unwrap();
        let record = records.swap_remove(answer.index);
        assert_eq!(record.id, answer.id);
        (answer, task, record)
    };
    Some(Golden {
        answers: answers.into_iter().map(with_record).collect(),
        decoder: file.decoder(&Device::Cpu).unwrap(),
        tokenizer: file.tokenizer().unwrap(),
        config: Config::load(&folder.join("config")).unwrap(),
    })
});

impl Golden {
    fn runner(&self) -> Runner<'_> {
        let options = RunOptions {
            max_prompt_tokens: 3500,
            chat: Chat::None,
            prefill_chunk: 512,
            metric: MetricOptions { code_sim: CodeSim::Levenshtein, ..MetricOptions::default() },
        };
        Runner::new(&self.decoder, &self.tokenizer, &self.config, options)
    }

    fn answer(&self, task: &Task, record: &Record) -> PredictionRow {
        let dense: Box<dyn Scheme> = registry::build("dense", &SchemeContext::new(self.decoder.geometry())).unwrap();
        let mut rows = Vec::new();
        let mut keep = |row| {
            rows.push(row);
            Ok(())
        };
        self.runner().run(task, record, &[dense.as_ref()], &mut keep).unwrap();
        rows.remove(0)
    }

    /// The first token of `expected` that is not the most likely token here, and by how much another token is more likely.
    fn first_difference(&self, task: &Task, record: &Record, expected: &[u32]) -> Option<(usize, f32)> {
        let mut ids = self.runner().prompt(task, record).unwrap().ids;
        let prompt = ids.len();
        ids.extend(expected);
        let dense = registry::build("dense", &SchemeContext::new(self.decoder.geometry())).unwrap();
        let snapshot = self.decoder.prefill(&ids[..prompt - 1], 512).unwrap();
        let mut caches = snapshot.fork(dense.as_ref(), self.decoder.rotary()).unwrap();
        let tail = self.decoder.row(&ids[prompt - 1..ids.len() - 1]).unwrap();
        let logits = self.decoder.forward(&tail, &mut caches, Logits::All).unwrap();
        let logits = logits.squeeze(0).unwrap().to_vec2::<f32>().unwrap();
        expected.iter().zip(logits).enumerate().find_map(|(at, (&id, row))| {
            let top = row.iter().copied().fold(f32::MIN, f32::max);
            (row[id as usize] < top).then(|| (at, top - row[id as usize]))
        })
    }
}

#[test]
fn prompts_have_the_same_number_of_tokens() {
    let Some(golden) = &*GOLDEN else { return };
    let runner = golden.runner();
    for (answer, task, record) in &golden.answers {
        let prompt = runner.prompt(task, record).unwrap();
        let found = (prompt.full_tokens, prompt.ids.len());
        assert_eq!(found, (answer.tokens_before, answer.tokens), "{} {}", answer.task, answer.index);
    }
}

#[test]
fn short_answers_are_the_same() {
    let Some(golden) = &*GOLDEN else { return };
    let picked = [("2wikimqa", 0), ("lcc", 0), ("samsum", 3), ("multifieldqa_en", 1)];
    for (answer, task, record) in &golden.answers {
        if picked.contains(&(answer.task.as_str(), answer.index)) {
            let row = golden.answer(task, record);
            assert_eq!(row.pred, answer.pred, "{} {}", answer.task, answer.index);
            assert_eq!(row.generated, answer.pred_ids.len(), "{} {}", answer.task, answer.index);
            assert!((row.score - answer.score).abs() < 1e-12, "{} instead of {}", row.score, answer.score);
        }
    }
}

/// Takes minutes on two cores: `cargo test --release --test golden_answers -- --ignored --nocapture`.
#[test]
#[ignore = "generates all thirty answers, which takes minutes"]
fn all_answers_are_the_same_but_for_near_ties() {
    let Some(golden) = &*GOLDEN else { return };
    let mut same = 0;
    for (answer, task, record) in &golden.answers {
        let row = golden.answer(task, record);
        let name = format!("{} {}", answer.task, answer.index);
        if row.pred == answer.pred {
            assert!((row.score - answer.score).abs() < 1e-12, "{name}: {} instead of {}", row.score, answer.score);
            same += 1;
            eprintln!("{name}: same, {:.1} s to decode", row.decode_ms / 1e3);
            continue;
        }
        let (at, gap) = golden.first_difference(task, record, &answer.pred_ids).unwrap();
        eprintln!(
            "{name}: differs from generated token {at} on, by {gap} in the logit\n{:?}\n{:?}",
            row.pred, answer.pred
        );
        assert!(gap < 0.01, "{name}: token {at} is no near-tie, the logits differ by {gap}");
    }
    eprintln!("{same} of {} answers are the same", golden.answers.len());
    assert!(same >= 28, "{same} answers are the same, expected at least 28");
}
