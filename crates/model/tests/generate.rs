//! Generation: greedy and sampled, stop rules, callbacks and the end of the context, on a small random model.

#![allow(clippy::unwrap_used)]

mod common;

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use common::{dense, random_weights, tiny_arch};
use kvcsr_model::{Choice, Decoder, Finish, Generated, Limits, Logits, StopTokens, TensorMap};

const PROMPT: [u32; 5] = [5, 40, 7, 22, 61];

fn decoder() -> Decoder {
    let arch = tiny_arch();
    Decoder::new(arch.clone(), &TensorMap(random_weights(&arch, 11)), &Device::Cpu).unwrap()
}

fn run(decoder: &Decoder, max: usize, min: usize, stop: &[u32], caller_stops_after: usize) -> Generated {
    let mut caches = dense(decoder);
    let logits = decoder.forward(&decoder.row(&PROMPT).unwrap(), &mut caches, Logits::Last).unwrap();
    let limits = Limits { max_new_tokens: max, min_new_tokens: min, stop: &StopTokens::new(stop.iter().copied()) };
    let mut seen = Vec::new();
    let generated = decoder
        .generate(&logits, &mut caches, Choice::Greedy, limits, |id| {
            seen.push(id);
            if seen.len() == caller_stops_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!(generated.ids, seen);
    let unfed = usize::from(!seen.is_empty() && !matches!(generated.finish, Finish::Stop(_)));
    assert_eq!(caches[0].len(), PROMPT.len() + seen.len() - unfed);
    generated
}

#[test]
fn each_token_is_the_most_likely_after_the_whole_text_before_it() {
    let decoder = decoder();
    let generated = run(&decoder, 12, 0, &[], 0);
    assert_eq!((generated.ids.len(), generated.finish), (12, Finish::Length));
    let mut text = PROMPT.to_vec();
    for &id in &generated.ids {
        let logits = decoder.forward(&decoder.row(&text).unwrap(), &mut dense(&decoder), Logits::Last).unwrap();
        let logits = logits.squeeze(0).unwrap().to_vec1::<f32>().unwrap();
        assert!(logits.iter().all(|&other| other <= logits[id as usize]));
        text.push(id);
    }
}

#[test]
fn stop_tokens_end_the_text_but_not_before_the_minimum() {
    let decoder = decoder();
    let free = run(&decoder, 12, 0, &[], 0).ids;
    let stop = free[4];
    let first = free.iter().position(|&id| id == stop).unwrap();
    let stopped = run(&decoder, 12, 0, &[stop], 0);
    assert_eq!(stopped.ids, free[..first]);
    assert_eq!(stopped.finish, Finish::Stop(stop));
    let delayed = run(&decoder, 12, first + 1, &[stop], 0);
    assert!(delayed.ids.len() > first && delayed.ids[first] != stop);
    assert_eq!(delayed.ids[..first], free[..first]);
}

#[test]
fn callers_and_the_context_end_it_too() {
    let decoder = decoder();
    assert_eq!(run(&decoder, 12, 0, &[], 3).finish, Finish::Caller);
    assert!(run(&decoder, 0, 0, &[], 0).ids.is_empty());
    let long = run(&decoder, 1000, 0, &[], 0);
    assert_eq!(long.finish, Finish::Context);
    assert_eq!(long.ids.len(), decoder.arch().max_positions - PROMPT.len() + 1);
}

#[test]
fn logits_that_are_no_distribution_are_refused() {
    let decoder = decoder();
    let limits = Limits { max_new_tokens: 1, min_new_tokens: 0, stop: &StopTokens::default() };
    let generate = |logits: Tensor| {
        decoder.generate(&logits, &mut dense(&decoder), Choice::Greedy, limits, |_| ControlFlow::Continue(()))
    };
    let nan = Tensor::full(f32::NAN, (1, 64), &Device::Cpu).unwrap();
    assert!(generate(nan).unwrap_err().to_string().contains("NaN"));
    let two = Tensor::full(0f32, (2, 64), &Device::Cpu).unwrap();
    assert!(generate(two).unwrap_err().to_string().contains("[1, 64]"));
}

#[test]
fn a_seed_fixes_what_is_sampled_and_low_temperature_is_greedy() {
    use candle_transformers::generation::LogitsProcessor;
    let decoder = decoder();
    let sample = |seed: u64, temperature: f64| {
        let mut caches = dense(&decoder);
        let logits = decoder.forward(&decoder.row(&PROMPT).unwrap(), &mut caches, Logits::Last).unwrap();
        let limits = Limits { max_new_tokens: 12, min_new_tokens: 0, stop: &StopTokens::default() };
        let mut sampler = LogitsProcessor::new(seed, Some(temperature), None);
        let choice = Choice::Sampled(&mut sampler);
        decoder.generate(&logits, &mut caches, choice, limits, |_| ControlFlow::Continue(())).unwrap().ids
    };
    assert_eq!(sample(1, 2.0), sample(1, 2.0));
    assert_ne!(sample(1, 2.0), sample(2, 2.0));
    assert_eq!(sample(1, 1e-4), run(&decoder, 12, 0, &[], 0).ids);
}
