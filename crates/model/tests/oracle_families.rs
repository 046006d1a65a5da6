//! Mistral, Qwen2 and Qwen3 against candle-transformers on small random models: no files needed.

#![allow(clippy::unwrap_used)]

mod common;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Activation, VarBuilder};
use candle_transformers::models::{mistral, qwen2, qwen3};
use common::{dense, random_weights, rope, tiny_arch, worst};
use kvcsr_model::{Arch, Decoder, Logits, Qkv, SlidingLayers, TensorMap};

const IDS: [u32; 23] = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 62, 63, 0];

/// A window of `tokens` in every layer.
fn sliding(tokens: usize) -> Option<SlidingLayers> {
    Some(SlidingLayers { tokens, from_layer: 0 })
}

/// candle's name for a window: it counts the tokens before, where Hugging Face counts the token itself too.
fn candles_window(arch: &Arch) -> Option<usize> {
    arch.sliding.map(|sliding| sliding.tokens - 1)
}

/// Compares at every length: `peer` gets the first ids with an empty cache and returns the last logits.
fn compare(name: &str, arch: &Arch, seed: u64, mut peer: impl FnMut(&Tensor) -> Tensor) {
    let decoder = Decoder::new(arch.clone(), &TensorMap(random_weights(arch, seed)), &Device::Cpu).unwrap();
    let row = |ids: &[u32]| decoder.row(ids).unwrap();
    let whole = decoder.forward(&row(&IDS), &mut dense(&decoder), Logits::All).unwrap();
    let mut caches = dense(&decoder);
    for end in 1..=IDS.len() {
        let theirs = peer(&row(&IDS[..end])).flatten_all().unwrap();
        let step = decoder.forward(&row(&IDS[end - 1..end]), &mut caches, Logits::Last).unwrap();
        let prefill = whole.narrow(1, end - 1, 1).unwrap();
        for (way, ours) in [("prefill", prefill), ("step", step)] {
            let difference = worst(&ours.flatten_all().unwrap(), &theirs);
            assert!(difference < 2e-5, "{name}, {way}, position {end}: {difference}");
        }
    }
}

fn weights(arch: &Arch, seed: u64) -> VarBuilder<'static> {
    VarBuilder::from_tensors(random_weights(arch, seed), DType::F32, &Device::Cpu)
}

#[test]
fn mistral_with_wide_heads_and_a_sliding_window() {
    for (seed, window) in [(1, None), (2, sliding(5)), (3, sliding(22))] {
        let arch = Arch { head_dim: 12, sliding: window, ..tiny_arch() };
        let config = mistral::Config {
            vocab_size: arch.vocab,
            hidden_size: arch.hidden,
            intermediate_size: arch.intermediate,
            num_hidden_layers: arch.layers,
            num_attention_heads: arch.heads,
            head_dim: Some(arch.head_dim),
            num_key_value_heads: arch.kv_heads,
            hidden_act: Activation::Silu,
            max_position_embeddings: arch.max_positions,
            rms_norm_eps: arch.rms_eps,
            rope_theta: rope(&arch).0,
            sliding_window: candles_window(&arch),
            use_flash_attn: false,
        };
        let mut peer = mistral::Model::new(&config, weights(&arch, seed)).unwrap();
        compare("mistral", &arch, seed, |ids| {
            peer.clear_kv_cache();
            peer.forward(ids, 0).unwrap()
        });
    }
}

#[test]
fn qwen2_with_biases_and_a_tied_head() {
    for (seed, window, tied_head) in [(4, None, true), (5, None, false), (6, sliding(4), true)] {
        let arch = Arch { qkv: Qkv::Biased, sliding: window, tied_head, ..tiny_arch() };
        let config = qwen2::Config {
            vocab_size: arch.vocab,
            hidden_size: arch.hidden,
            intermediate_size: arch.intermediate,
            num_hidden_layers: arch.layers,
            num_attention_heads: arch.heads,
            num_key_value_heads: arch.kv_heads,
            max_position_embeddings: arch.max_positions,
            sliding_window: candles_window(&arch).unwrap_or(arch.max_positions),
            max_window_layers: 0,
            tie_word_embeddings: tied_head,
            rope_theta: rope(&arch).0,
            rms_norm_eps: arch.rms_eps,
            use_sliding_window: window.is_some(),
            hidden_act: Activation::Silu,
        };
        let mut peer = qwen2::ModelForCausalLM::new(&config, weights(&arch, seed)).unwrap();
        compare("qwen2", &arch, seed, |ids| {
            peer.clear_kv_cache();
            peer.forward(ids, 0).unwrap()
        });
    }
}

#[test]
fn qwen3_with_normed_wide_heads() {
    for (seed, tied_head) in [(7, true), (8, false)] {
        let arch = Arch { head_dim: 12, qk_norm: true, tied_head, ..tiny_arch() };
        let config = qwen3::Config {
            vocab_size: arch.vocab,
            hidden_size: arch.hidden,
            intermediate_size: arch.intermediate,
            num_hidden_layers: arch.layers,
            num_attention_heads: arch.heads,
            head_dim: arch.head_dim,
            attention_bias: false,
            num_key_value_heads: arch.kv_heads,
            max_position_embeddings: arch.max_positions,
            sliding_window: None,
            max_window_layers: arch.layers,
            tie_word_embeddings: tied_head,
            rope_theta: rope(&arch).0,
            rms_norm_eps: arch.rms_eps,
            use_sliding_window: false,
            hidden_act: Activation::Silu,
        };
        let mut peer = qwen3::ModelForCausalLM::new(&config, weights(&arch, seed)).unwrap();
        compare("qwen3", &arch, seed, |ids| {
            peer.clear_kv_cache();
            peer.forward(ids, 0).unwrap()
        });
    }
}
