//! Small Hugging Face checkpoints of every family, compared with the logits that transformers computes from them: in
//! one prefill, token by token, and in uneven pieces; with matrices in f32, f16 and bf16.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use common::{dense, golden, rope, worst};
use kvcsr_model::{
    Arch, Checkpoint, Decoder, HfCheckpoint, Logits, Norms, Position, QkNorm, Qkv, RopeScaling, SlidingLayers,
};

/// The number of tokens of each forward call. The pieces of each split have 48 tokens in total.
const SPLITS: [&[usize]; 4] = [&[48], &[1; 48], &[7, 1, 1, 32, 7], &[47, 1]];

/// The largest allowed difference to the expected logits, relative to the largest logit, when matrices are stored in
/// f16 and bf16. It is about twenty times the rounding of one weight, which is at most `2^-12` and `2^-9`.
const ROUNDED: [(DType, f32); 2] = [(DType::F16, 0.01), (DType::BF16, 0.08)];

/// The logits of all tokens. `split` gives the number of tokens of each call.
fn logits(decoder: &Decoder, ids: &Tensor, split: &[usize]) -> Tensor {
    let mut caches = dense(decoder);
    let mut at = 0;
    let pieces: Vec<Tensor> = split
        .iter()
        .map(|&tokens| {
            let piece = ids.narrow(1, at, tokens).unwrap();
            at += tokens;
            decoder.forward(&piece, &mut caches, Logits::All).unwrap().squeeze(0).unwrap()
        })
        .collect();
    Tensor::cat(&pieces, 0).unwrap()
}

fn check(name: &str) -> Option<Arch> {
    Some(check_in(&golden(name)?.join(name)))
}

/// Checks the checkpoints beside this test. The script that made them is there too.
fn check_own(name: &str) -> Arch {
    check_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name))
}

fn check_in(folder: &Path) -> Arch {
    let name = folder.file_name().unwrap().to_str().unwrap();
    let checkpoint = HfCheckpoint::open(folder).unwrap();
    let decoder = checkpoint.decoder(&Device::Cpu).unwrap();
    let expected = candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu).unwrap();
    let ids = expected["ids"].to_dtype(DType::U32).unwrap().unsqueeze(0).unwrap();
    for split in SPLITS {
        let difference = worst(&logits(&decoder, &ids, split), &expected["logits"]);
        eprintln!("{name}, {} calls: largest logit difference {difference:.2e}", split.len());
        assert!(difference < 1e-4, "{name}, {split:?}: {difference}");
    }
    let largest = expected["logits"].abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    for (dtype, tolerance) in ROUNDED {
        let decoder = checkpoint.decoder_in(&Device::Cpu, dtype).unwrap();
        // If weights are stored in a dtype and stay in it, nothing is lost.
        let tolerance = if checkpoint.dtype() == dtype { 1e-4 / largest } else { tolerance };
        for split in SPLITS {
            let difference = worst(&logits(&decoder, &ids, split), &expected["logits"]) / largest;
            eprintln!("{name} in {dtype:?}, {} calls: relative difference {difference:.1e}", split.len());
            assert!(difference < tolerance, "{name} in {dtype:?}, {split:?}: {difference} of {largest}");
        }
    }
    checkpoint.arch().clone()
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

#[test]
fn mistral_with_a_window_shorter_than_the_text() {
    let arch = check_own("tiny-mistral");
    assert_eq!((arch.sliding, arch.head_dim), (Some(SlidingLayers::from_layer(0, 2, 7)), 16));
    assert_ne!(arch.head_dim * arch.heads, arch.hidden);
}

#[test]
fn qwen3_with_normed_heads() {
    let arch = check_own("tiny-qwen3");
    assert!(arch.qk_norm == QkNorm::PerHead && arch.tied_head && arch.head_dim * arch.heads != arch.hidden);
}

#[test]
fn baichuan2_13b_with_linear_biases_over_forty_heads() {
    let arch = check_own("tiny-baichuan2-13b");
    assert!(arch.position == Position::Alibi && arch.heads == 40 && arch.normalised_head);
}

#[test]
fn gemma3_with_a_window_in_two_of_three_layers() {
    let arch = check_own("tiny-gemma3");
    let sliding = arch.sliding.as_ref().unwrap();
    assert_eq!((sliding.tokens, &sliding.layers[..]), (7, &[true, false, true][..]));
    assert!(arch.position_of(0) != arch.position_of(1) && arch.max_positions == 128);
    assert!(arch.norms == Norms::Around && arch.norms_less_one && arch.tied_head);
    assert_eq!(arch.score_scale, Some(24f64.powf(-0.5)));
}

#[test]
fn olmo2_with_norms_after_attention_and_mlp() {
    let arch = check_own("tiny-olmo2");
    assert!(arch.norms == Norms::After && arch.qk_norm == QkNorm::Whole && arch.sliding.is_none());
}

#[test]
fn olmo3_with_yarn_in_the_layers_that_see_everything() {
    let arch = check_own("tiny-olmo3");
    let scaled = |layer| matches!(arch.position_of(layer), Position::Rope { scaling: RopeScaling::Yarn { .. }, .. });
    assert!(!scaled(0) && scaled(1) && arch.scale(1) > arch.scale(0));
}

#[test]
fn phi3_with_joined_projections_and_a_window() {
    let arch = check_own("tiny-phi3");
    assert!(arch.qkv == Qkv::Joined && arch.packed_mlp);
    assert_eq!(arch.sliding, Some(SlidingLayers::from_layer(0, 2, 9)));
}
