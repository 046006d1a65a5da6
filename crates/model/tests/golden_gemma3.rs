//! The real Gemma 3 270M, compared with sentencepiece's ids and transformers' logits and greedy text
//! (`data/gemma3.py`).

#![allow(clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::path::Path;

use candle_core::Device;
use kvcsr_cache::{SchemeContext, registry};
use kvcsr_model::{Choice, Decoder, Gguf, Limits, StopTokens};
use serde_json::Value;

/// Every `STEP`th logit is given.
const STEP: usize = 1024;

/// The file that `just fetch` downloads. `None` if it does not exist; then the test is skipped.
fn gemma3(test: &str) -> Option<Gguf> {
    kvcsr_fixtures::fetched(test, "gemma-3-270m/gemma-3-270m-q4_k_m.gguf").map(|path| Gguf::open(path).unwrap())
}

fn expected() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/gemma3-270m.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn ids_are_those_of_sentencepiece() {
    let Some(file) = gemma3("ids_are_those_of_sentencepiece") else { return };
    let tokenizer = file.tokenizer().unwrap();
    for row in expected()["texts"].as_array().unwrap() {
        let text = row["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&row["ids"]), "{text:?}");
        assert_eq!(tokenizer.decode(&ids(&row["ids"]), true).unwrap(), text);
    }
}

#[test]
fn logits_and_greedy_text_are_those_of_transformers() {
    let Some(file) = gemma3("logits_and_greedy_text_are_those_of_transformers") else { return };
    let (tokenizer, decoder) = (file.tokenizer().unwrap(), file.decoder(&Device::Cpu).unwrap());
    for row in expected()["prompts"].as_array().unwrap() {
        let prompt = tokenizer.encode(row["text"].as_str().unwrap(), true).unwrap();
        assert_eq!(prompt.len() as u64, row["tokens"].as_u64().unwrap());
        let snapshot = decoder.prefill(&prompt, 256).unwrap();
        let logits = snapshot.last_logits.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let given = row["every_1024th_logit"].as_array().unwrap();
        let differences = given.iter().zip(logits.iter().step_by(STEP));
        let worst = differences.map(|(a, b)| (a.as_f64().unwrap() - f64::from(*b)).abs()).fold(0.0, f64::max);
        eprintln!("{} tokens: largest logit difference {worst:.2e}", prompt.len());
        assert!(worst < 2e-3, "{} tokens: {worst}", prompt.len());
        let greedy = ids(&row["greedy"]);
        assert_eq!(generated(&decoder, &snapshot, "dense", greedy.len()), greedy);
        assert_eq!(generated(&decoder, &snapshot, "kivi-4", 4).len(), 4);
    }
}

fn generated(decoder: &Decoder, snapshot: &kvcsr_cache::PrefillSnapshot, scheme: &str, tokens: usize) -> Vec<u32> {
    let scheme = registry::build(scheme, &SchemeContext::new(decoder.geometry())).unwrap();
    let mut caches = snapshot.fork(scheme.as_ref(), decoder.rotary()).unwrap();
    let limits = Limits { max_new_tokens: tokens, min_new_tokens: tokens, stop: &StopTokens::default() };
    let step = |_| ControlFlow::Continue(());
    decoder.generate(&snapshot.last_logits, &mut caches, Choice::Greedy, limits, step).unwrap().ids
}
