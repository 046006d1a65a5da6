//! Small Hugging Face checkpoints against the logits transformers computes from them.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use candle_core::{DType, Device};
use common::{dense, golden, worst};
use kvcsr_model::{Arch, Decoder, HfCheckpoint, Logits, RopeScaling, TensorMap};

fn check(name: &str) -> Option<HfCheckpoint> {
    let folder = golden(name)?.join(name);
    let checkpoint = HfCheckpoint::open(&folder).unwrap();
    compare(name, &folder, &checkpoint.decoder(&Device::Cpu).unwrap());
    Some(checkpoint)
}

fn compare(name: &str, folder: &Path, decoder: &Decoder) {
    let expected = candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu).unwrap();
    let ids = expected["ids"].to_dtype(DType::U32).unwrap().unsqueeze(0).unwrap();
    let logits = decoder.forward(&ids, &mut dense(decoder), Logits::All).unwrap();
    let difference = worst(&logits.squeeze(0).unwrap(), &expected["logits"]);
    eprintln!("{name}: largest logit difference {difference:.2e}");
    assert!(difference < 1e-4, "{difference}");
}

#[test]
fn llama2_with_a_key_head_per_query_head() {
    if let Some(checkpoint) = check("tiny-llama2-mha") {
        assert_eq!(checkpoint.arch().kv_heads, checkpoint.arch().heads);
    }
}

#[test]
fn llama3_with_grouped_queries_and_scaled_frequencies() {
    if let Some(checkpoint) = check("tiny-llama3-gqa") {
        assert_eq!(checkpoint.arch().kv_heads, 2);
        assert!(matches!(checkpoint.arch().rope_scaling, RopeScaling::Llama3 { .. }));
    }
}

#[test]
fn qkv_bias_and_a_tied_head_are_only_data() {
    let Some(golden) = golden("tiny-qwen2") else { return };
    let folder = golden.join("tiny-qwen2");
    let arch = Arch {
        hidden: 64,
        layers: 3,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        intermediate: 160,
        vocab: 320,
        rms_eps: 1e-6,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::None,
        max_positions: 512,
        tied_head: true,
        qkv_bias: true,
    };
    let tensors = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    let decoder = Decoder::new(arch, &TensorMap(tensors), &Device::Cpu).unwrap();
    compare("tiny-qwen2", &folder, &decoder);
}

#[test]
fn other_families_are_refused_by_name() {
    if let Some(golden) = golden("other families") {
        let error = HfCheckpoint::open(golden.join("tiny-baichuan2-7b")).err().unwrap().to_string();
        assert!(error.contains("baichuan") && error.contains("supported: llama"), "{error}");
    }
}
