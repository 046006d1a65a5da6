//! Published `config.json` files of every family, reduced to the keys that are read.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use kvcsr_cache::Reach;
use kvcsr_model::{Activation, Arch, ModelError, Norms, Position, QkNorm, Qkv, SlidingLayers};

fn read(json: &str) -> Result<Arch, ModelError> {
    Arch::from_hf_config(json, Path::new("config.json"))
}

const MISTRAL_01: &str = r#"{"model_type": "mistral", "hidden_act": "silu", "hidden_size": 4096,
    "intermediate_size": 14336, "max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
    "tie_word_embeddings": false, "vocab_size": 32000}"#;
const MISTRAL_NEMO: &str = r#"{"model_type": "mistral", "hidden_act": "silu", "hidden_size": 5120, "head_dim": 128,
    "intermediate_size": 14336, "max_position_embeddings": 131072, "num_attention_heads": 32, "num_hidden_layers": 40,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": null,
    "tie_word_embeddings": false, "vocab_size": 131072}"#;
const QWEN25: &str = r#"{"model_type": "qwen2", "hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864,
    "max_position_embeddings": 32768, "max_window_layers": 21, "num_attention_heads": 14, "num_hidden_layers": 24,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
    "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151936}"#;
const QWEN3: &str = r#"{"model_type": "qwen3", "attention_bias": false, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
    "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
    "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": true,
    "use_sliding_window": false, "vocab_size": 151936}"#;
const BAICHUAN2_7B: &str = r#"{"model_type": "baichuan", "hidden_act": "silu", "hidden_size": 4096,
    "intermediate_size": 11008, "max_position_embeddings": 4096, "model_max_length": 4096, "num_attention_heads": 32,
    "num_hidden_layers": 32, "rms_norm_eps": 1e-06, "tie_word_embeddings": false, "z_loss_weight": 0,
    "vocab_size": 125696}"#;
const BAICHUAN2_13B: &str = r#"{"model_type": "baichuan", "hidden_act": "silu", "hidden_size": 5120,
    "intermediate_size": 13696, "model_max_length": 4096, "num_attention_heads": 40, "num_hidden_layers": 40,
    "rms_norm_eps": 1e-06, "tie_word_embeddings": false, "z_loss_weight": 0, "vocab_size": 125696}"#;

#[test]
fn mistral_has_a_window_or_wide_heads() {
    let first = read(MISTRAL_01).unwrap();
    assert_eq!((first.head_dim, first.reach(31)), (128, Reach::Sliding(4096)));
    let nemo = read(MISTRAL_NEMO).unwrap();
    assert_eq!((nemo.head_dim, nemo.heads, nemo.hidden, nemo.reach(0)), (128, 32, 5120, Reach::Full));
}

#[test]
fn qwen2_has_biases_and_a_window_only_if_it_says_so() {
    let plain = read(QWEN25).unwrap();
    assert!(plain.qkv == Qkv::Biased && plain.tied_head && plain.sliding.is_none());
    let used = QWEN25.replace("\"use_sliding_window\": false", "\"use_sliding_window\": true");
    let sliding = read(&used).unwrap();
    assert_eq!(sliding.sliding, Some(SlidingLayers::from_layer(21, 24, 32768)));
    assert_eq!((sliding.reach(20), sliding.reach(21)), (Reach::Full, Reach::Sliding(32768)));

    let typed = |types: &str| read(&used.replacen('{', &format!("{{\"layer_types\": [{types}], "), 1));
    let upper = ["\"full_attention\""; 23].join(", ") + ", \"sliding_attention\"";
    assert_eq!(typed(&upper).unwrap().sliding, Some(SlidingLayers::from_layer(23, 24, 32768)));
    let lower = "\"sliding_attention\", ".to_owned() + &["\"full_attention\""; 23].join(", ");
    assert_eq!(typed(&lower).unwrap().reach(0), Reach::Sliding(32768));
    assert_eq!(typed(&lower).unwrap().reach(1), Reach::Full);
    let error = typed("\"sliding_attention\", \"full_attention\"").unwrap_err().to_string();
    assert!(error.contains("layer_types") && error.contains("24 entries, one per layer"), "{error}");
    assert!(typed("\"linear_attention\"").is_err());
}

#[test]
fn qwen3_has_normed_heads_and_no_biases() {
    let arch = read(QWEN3).unwrap();
    assert!(arch.qk_norm == QkNorm::PerHead && arch.qkv == Qkv::Separate && arch.tied_head);
    assert_eq!((arch.head_dim, arch.heads * arch.head_dim, arch.hidden), (128, 2048, 1024));
}

#[test]
fn baichuan_is_packed_rotary_in_7b_and_alibi_in_13b() {
    let small = read(BAICHUAN2_7B).unwrap();
    assert!(small.qkv == Qkv::Packed && small.normalised_head);
    assert!(matches!(small.position, Position::Rope { theta: 1e4, .. }));
    let large = read(BAICHUAN2_13B).unwrap();
    assert!(large.qkv == Qkv::Packed && large.normalised_head && large.max_positions == 4096);
    assert_eq!(large.position, Position::Alibi);
    let first = BAICHUAN2_7B.replace("\"z_loss_weight\": 0,", "").replace("125696", "64000");
    assert!(!read(&first).unwrap().normalised_head);
}

const GEMMA3_1B: &str = r#"{"model_type": "gemma3_text", "attention_bias": false, "attn_logit_softcapping": null,
    "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
    "intermediate_size": 6912, "max_position_embeddings": 32768, "num_attention_heads": 4, "num_hidden_layers": 26,
    "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
    "rope_scaling": null, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
    "vocab_size": 262144}"#;
const OLMO2_1B: &str = r#"{"model_type": "olmo2", "attention_bias": false, "hidden_act": "silu", "hidden_size": 2048,
    "intermediate_size": 8192, "max_position_embeddings": 4096, "num_attention_heads": 16, "num_hidden_layers": 16,
    "num_key_value_heads": 16, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 500000,
    "tie_word_embeddings": false, "vocab_size": 100352}"#;
const PHI4: &str = r#"{"model_type": "phi3", "attention_bias": false, "hidden_act": "silu", "hidden_size": 5120,
    "intermediate_size": 17920, "max_position_embeddings": 16384, "num_attention_heads": 40, "num_hidden_layers": 40,
    "num_key_value_heads": 10, "original_max_position_embeddings": 16384, "rms_norm_eps": 1e-05, "rope_scaling": null,
    "rope_theta": 250000, "sliding_window": null, "tie_word_embeddings": false, "vocab_size": 100352}"#;

#[test]
fn gemma3_has_five_sliding_layers_of_six() {
    let arch = read(GEMMA3_1B).unwrap();
    assert_eq!((arch.reach(4), arch.reach(5), arch.reach(25)), (Reach::Sliding(512), Reach::Full, Reach::Sliding(512)));
    assert!(matches!(arch.position_of(5), Position::Rope { theta: 1e6, .. }));
    assert!(matches!(arch.position_of(4), Position::Rope { theta: 1e4, .. }));
    assert!(arch.tied_head && arch.norms_less_one && arch.norms == Norms::Around);
    assert_eq!((arch.activation, arch.scale(0), arch.kv_heads), (Activation::GeluTanh, 1.0 / 16.0, 1));
    // The large models rescale their full layers. Their configuration has the length after rescaling.
    let scaled = r#""rope_scaling": {"factor": 8.0, "rope_type": "linear"}"#;
    let large = read(&GEMMA3_1B.replace("\"rope_scaling\": null", scaled)).unwrap();
    assert_eq!((large.max_positions, large.position_of(4)), (32768, arch.position_of(4)));
    assert_ne!(large.position_of(5), arch.position_of(5));
    for (from, to, named) in [
        ("\"attn_logit_softcapping\": null", "\"attn_logit_softcapping\": 50.0", "attn_logit_softcapping 50"),
        ("gelu_pytorch_tanh", "gelu", "hidden_activation `gelu`"),
        ("\"sliding_window_pattern\": 6", "\"sliding_window_pattern\": 0", "sliding_window_pattern"),
        ("\"head_dim\": 256", "\"use_bidirectional_attention\": true", "use_bidirectional_attention"),
    ] {
        let error = read(&GEMMA3_1B.replace(from, to)).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn olmo2_and_phi4_are_read_and_long_phi_models_refused() {
    let olmo = read(OLMO2_1B).unwrap();
    assert!(olmo.norms == Norms::After && olmo.qk_norm == QkNorm::Whole && olmo.sliding.is_none());
    let phi = read(PHI4).unwrap();
    assert!(phi.qkv == Qkv::Joined && phi.packed_mlp && phi.kv_heads == 10);
    let long = r#""rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}"#;
    let error = read(&PHI4.replace("\"rope_scaling\": null", long)).unwrap_err().to_string();
    assert!(error.contains("rope_type `longrope`") && error.contains("without rope_scaling"), "{error}");
    let part = read(&PHI4.replacen('{', "{\"partial_rotary_factor\": 0.75,", 1)).unwrap_err().to_string();
    assert!(part.contains("partial_rotary_factor"), "{part}");
}

#[test]
fn what_is_not_supported_is_named_with_what_is() {
    for (json, named) in [
        (QWEN3.replace("qwen3", "gemma3"), "model_type `gemma3` is not supported (supported: llama, mistral"),
        (QWEN3.replace("\"attention_bias\": false", "\"attention_bias\": true"), "attention_bias"),
        (MISTRAL_01.replace("\"sliding_window\": 4096", "\"sliding_window\": 0"), "sliding.tokens"),
        (MISTRAL_01.replace("silu", "gelu"), "hidden_act `gelu`"),
        (BAICHUAN2_13B.replace("\"model_max_length\": 4096,", ""), "max_position_embeddings"),
    ] {
        let error = read(&json).unwrap_err().to_string();
        assert!(error.contains(named) && error.contains("config.json"), "{error}");
    }
}
