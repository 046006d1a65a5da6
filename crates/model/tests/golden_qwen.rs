//! The real Qwen2.5-Coder models, 0.5B and 1.5B, compared with numbers and texts that Hugging Face transformers
//! computed.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::Instant;

use common::golden;
use common::real::Golden;

/// Checks the model `id` of `data/sources.toml`. If its files do not exist, the test is skipped.
fn agrees(test: &str, id: &str, name: &str) {
    let Some(folder) = golden(test) else { return };
    let Some(file) = kvcsr_fixtures::fetched(test, &format!("{id}/{id}-q4_k_m.gguf")) else { return };
    let started = Instant::now();
    let model = Golden::load(&file, &folder.join(format!("{name}-shared.safetensors")));
    eprintln!("{id}: loaded in {:.1} s", started.elapsed().as_secs_f64());
    model.check_ids();
    assert_eq!(model.tokenizer.vocab_size(), model.decoder.arch().vocab);

    let found = model.differences();
    eprintln!("{id}: {found:?}");
    assert!(found.last_logits < 2e-3 && found.top5_logits < 2e-3 && found.nll < 2e-3, "{found:?}");

    let found = model.keys_and_values();
    eprintln!("{id}: {found:?}");
    assert_eq!(found.len(), 6, "three layers are given");
    assert!(found.iter().all(|(_, relative)| *relative < 1e-5), "{found:?}");

    model.check_greedy(&folder.join(format!("{name}-shared-greedy.json")));
}

#[test]
fn the_model_of_half_a_billion_agrees() {
    agrees("the_model_of_half_a_billion_agrees", "qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-0.5b");
}

#[test]
fn the_model_of_one_and_a_half_billion_agrees() {
    agrees("the_model_of_one_and_a_half_billion_agrees", "qwen2.5-coder-1.5b-instruct", "qwen2.5-coder-1.5b");
}
