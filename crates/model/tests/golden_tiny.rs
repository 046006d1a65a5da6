//! Small Hugging Face checkpoints of every family against the logits transformers computes from them: in one prefill,
//! token by token, and in uneven pieces.

#![allow(clippy::unwrap_used)]

mod common;

use candle_core::{DType, Device, Tensor};
use common::{dense, golden, rope, worst};
use kvcsr_model::{Arch, HfCheckpoint, Logits, Position, Qkv, RopeScaling};

/// Tokens per forward call; the last piece is what is left of the 48.
const SPLITS: [&[usize]; 4] = [&[48], &[1; 48], &[7, 1, 1, 32, 7], &[47, 1]];

fn check(name: &str) -> Option<Arch> {
    let folder = golden(name)?.join(name);
    let checkpoint = HfCheckpoint::open(&folder).unwrap();
    let decoder = checkpoint.decoder(&Device::Cpu).unwrap();
    let expected = candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu).unwrap();
    let ids = expected["ids"].to_dtype(DType::U32).unwrap().unsqueeze(0).unwrap();
    for split in SPLITS {
        let mut caches = dense(&decoder);
        let mut at = 0;
        let pieces: Vec<Tensor> = split
            .iter()
            .map(|&tokens| {
                let piece = ids.narrow(1, at, tokens).unwrap();
                at += tokens;
                decoder.forward(&piece, &mut caches, Logits::All).unwrap().squeeze(0).unwrap()
            })
            .collect();
        let difference = worst(&Tensor::cat(&pieces, 0).unwrap(), &expected["logits"]);
        eprintln!("{name}, {} calls: largest logit difference {difference:.2e}", split.len());
        assert!(difference < 1e-4, "{name}, {split:?}: {difference}");
    }
    Some(checkpoint.arch().clone())
}

#[test]
fn llama2_with_a_key_head_per_query_head() {
    if let Some(arch) = check("tiny-llama2-mha") {
        assert_eq!(arch.kv_heads, arch.heads);
    }
}

#[test]
fn llama3_with_grouped_queries_and_scaled_frequencies() {
    if let Some(arch) = check("tiny-llama3-gqa") {
        assert_eq!(arch.kv_heads, 2);
        assert!(matches!(rope(&arch).1, RopeScaling::Llama3 { .. }));
    }
}

#[test]
fn qwen2_with_biases_and_a_tied_head() {
    if let Some(arch) = check("tiny-qwen2") {
        assert!(arch.qkv == Qkv::Biased && arch.tied_head && arch.sliding.is_none());
    }
}

#[test]
fn baichuan2_with_packed_projections_and_a_normalised_head() {
    if let Some(arch) = check("tiny-baichuan2-7b") {
        assert!(arch.qkv == Qkv::Packed && arch.normalised_head);
        assert!(matches!(arch.position, Position::Rope { .. }));
    }
}
