//! Mistral, Qwen2, Qwen3, Gemma 3, OLMo 2 and Phi-3, compared with candle-transformers on small random models. No files
//! are needed.

#![allow(clippy::unwrap_used)]

mod common;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Activation as CandleActivation, VarBuilder};
use candle_transformers::models::{gemma3, mistral, olmo2, phi3, qwen2, qwen3};
use common::{dense, random_weights, rope, tiny_arch, worst};
use kvcsr_model::{
    Activation, Arch, Decoder, Logits, Norms, Position, QkNorm, Qkv, RopeScaling, SlidingLayers, TensorMap,
};

const IDS: [u32; 23] = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 62, 63, 0];

/// A window of `tokens` in every layer.
fn sliding(tokens: usize) -> Option<SlidingLayers> {
    Some(SlidingLayers::from_layer(0, tiny_arch().layers, tokens))
}

/// The window as candle counts it: the tokens before the token. Hugging Face also counts the token itself.
fn candles_window(arch: &Arch) -> Option<usize> {
    arch.sliding.as_ref().map(|sliding| sliding.tokens - 1)
}

/// Compares at every length. `peer` gets the first ids with an empty cache, and returns the last logits.
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
            hidden_act: CandleActivation::Silu,
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
            use_sliding_window: arch.sliding.is_some(),
            hidden_act: CandleActivation::Silu,
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
        let arch = Arch { head_dim: 12, qk_norm: QkNorm::PerHead, tied_head, ..tiny_arch() };
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
            hidden_act: CandleActivation::Silu,
        };
        let mut peer = qwen3::ModelForCausalLM::new(&config, weights(&arch, seed)).unwrap();
        compare("qwen3", &arch, seed, |ids| {
            peer.clear_kv_cache();
            peer.forward(ids, 0).unwrap()
        });
    }
}

#[test]
fn gemma3_with_sliding_and_full_layers_that_rotate_otherwise() {
    for (seed, window, period) in [(9, 5, 2), (10, 22, 3), (11, 7, 6)] {
        let layers = tiny_arch().layers;
        let sliding = SlidingLayers {
            tokens: window,
            layers: (1..=layers).map(|layer| layer % period != 0).collect(),
            position: Some(Position::Rope { theta: 1e4, scaling: RopeScaling::None }),
        };
        let arch = Arch {
            head_dim: 12,
            kv_heads: 1,
            position: Position::Rope { theta: 1e6, scaling: RopeScaling::None },
            sliding: Some(sliding),
            qk_norm: QkNorm::PerHead,
            norms: Norms::Around,
            norms_less_one: true,
            activation: Activation::GeluTanh,
            embedding_scale: (tiny_arch().hidden as f64).sqrt(),
            tied_head: true,
            ..tiny_arch()
        };
        let config = gemma3::Config {
            attention_bias: false,
            head_dim: arch.head_dim,
            hidden_activation: CandleActivation::GeluPytorchTanh,
            hidden_size: arch.hidden,
            intermediate_size: arch.intermediate,
            num_attention_heads: arch.heads,
            num_hidden_layers: arch.layers,
            num_key_value_heads: arch.kv_heads,
            rms_norm_eps: arch.rms_eps,
            rope_theta: 1e6,
            rope_local_base_freq: 1e4,
            vocab_size: arch.vocab,
            final_logit_softcapping: None,
            attn_logit_softcapping: None,
            query_pre_attn_scalar: arch.head_dim,
            sliding_window: window - 1,
            sliding_window_pattern: period,
            max_position_embeddings: arch.max_positions,
        };
        compare("gemma3", &arch, seed, |ids| {
            let mut peer = gemma3::Model::new(false, &config, weights(&arch, seed)).unwrap();
            peer.forward(ids, 0).unwrap()
        });
    }
}

#[test]
fn olmo2_with_norms_after_and_over_all_heads() {
    for (seed, tied_head, kv_heads) in [(12, false, 2), (13, true, 4)] {
        let arch = Arch { norms: Norms::After, qk_norm: QkNorm::Whole, tied_head, kv_heads, ..tiny_arch() };
        let config = olmo2::Config {
            vocab_size: arch.vocab,
            hidden_size: arch.hidden,
            intermediate_size: arch.intermediate,
            attention_bias: false,
            num_hidden_layers: arch.layers,
            num_attention_heads: arch.heads,
            num_key_value_heads: arch.kv_heads,
            rms_norm_eps: arch.rms_eps,
            hidden_act: CandleActivation::Silu,
            max_position_embeddings: arch.max_positions,
            rope_theta: rope(&arch).0,
            tie_word_embeddings: tied_head,
            clip_qkv: None,
        };
        let mut peer = olmo2::Model::new(&config, weights(&arch, seed)).unwrap();
        compare("olmo2", &arch, seed, |ids| {
            peer.clear_kv_cache();
            peer.forward(ids, 0).unwrap()
        });
    }
}

#[test]
fn phi3_with_joined_projections() {
    for (seed, kv_heads) in [(14, 2), (15, 4)] {
        let arch = Arch { qkv: Qkv::Joined, packed_mlp: true, kv_heads, ..tiny_arch() };
        let config = phi3::Config {
            vocab_size: arch.vocab,
            hidden_act: CandleActivation::Silu,
            hidden_size: arch.hidden,
            intermediate_size: arch.intermediate,
            num_hidden_layers: arch.layers,
            num_attention_heads: arch.heads,
            num_key_value_heads: arch.kv_heads,
            rms_norm_eps: arch.rms_eps,
            rope_theta: rope(&arch).0,
            bos_token_id: None,
            eos_token_id: None,
            rope_scaling: None,
            max_position_embeddings: arch.max_positions,
            original_max_position_embeddings: None,
            partial_rotary_factor: None,
            tie_word_embeddings: false,
        };
        let mut peer = phi3::Model::new(&config, weights(&arch, seed)).unwrap();
        compare("phi3", &arch, seed, |ids| {
            peer.clear_kv_cache();
            peer.forward(ids, 0).unwrap()
        });
    }
}
