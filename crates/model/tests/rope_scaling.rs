//! Rotary positions in every spelling of `config.json`, compared with the logits that transformers computes from one
//! checkpoint. Also spellings that are refused.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use common::{dense, worst};
use kvcsr_model::{Arch, HfCheckpoint, Logits};
use serde_json::{Value, json};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn configs() -> serde_json::Map<String, Value> {
    let text = fs::read_to_string(data("rope/configs.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn every_spelling_gives_the_logits_of_transformers() {
    let expected = candle_core::safetensors::load(data("rope/expected.safetensors"), &Device::Cpu).unwrap();
    let ids = expected["ids"].to_dtype(DType::U32).unwrap().unsqueeze(0).unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::copy(data("rope/model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let configs = configs();
    assert_eq!(configs.len() + 1, expected.len());
    for (name, config) in configs {
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let decoder = HfCheckpoint::open(folder.path()).unwrap().decoder(&Device::Cpu).unwrap();
        let mut caches = dense(&decoder);
        let whole = decoder.forward(&ids, &mut caches, Logits::All).unwrap().squeeze(0).unwrap();
        let difference = worst(&whole, &expected[&name]);
        eprintln!("{name}: largest logit difference {difference:.2e}");
        assert!(difference < 1e-4, "{name}: {difference}");
    }
}

#[test]
fn the_context_grows_with_the_factor() {
    let configs = configs();
    let positions =
        |name: &str| Arch::from_hf_config(&configs[name].to_string(), Path::new("config.json")).unwrap().max_positions;
    for (name, expected) in [
        ("default", 64),
        ("linear", 256),
        ("linear beside parameters", 256),
        ("yarn", 64),
        ("yarn without the original length", 128),
        ("llama3", 64),
    ] {
        assert_eq!(positions(name), expected, "{name}");
    }
}

#[test]
fn every_other_key_is_refused_by_name() {
    let scaled = |scaling: Value| json!({"rope_scaling": scaling});
    let yarn = |key: &str, value: Value| {
        let mut yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16});
        yarn[key] = value;
        scaled(yarn)
    };
    let nested = json!({"full_attention": {"rope_type": "default", "rope_theta": 1e6}});
    for (more, named) in [
        (
            scaled(json!({"rope_type": "dynamic", "factor": 2.0})),
            "rope_type `dynamic` is not supported (supported: default, linear, llama3, yarn; without",
        ),
        (scaled(json!({"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]})), "rope_type `longrope`"),
        (scaled(json!({"type": "su"})), "rope_type `su`"),
        (scaled(json!({"type": "mrope", "mrope_section": [1]})), "rope_type `mrope`"),
        (scaled(json!({"rope_type": "proportional"})), "rope_type `proportional`"),
        (scaled(json!({"factor": 2.0})), "key `rope_scaling.factor`: expected no such key: rope_type `default`"),
        (scaled(json!({"rope_type": "default", "mrope_section": [8]})), "rope_scaling.mrope_section"),
        (scaled(json!({"rope_type": "linear", "type": "yarn", "factor": 2.0})), "key `rope_scaling.type`"),
        (scaled(json!({"rope_type": "linear"})), "rope_scaling.factor` is missing"),
        (scaled(json!({"rope_type": "linear", "factor": 0.5})), "factor >= 1"),
        (scaled(json!({"rope_type": "linear", "factor": 2.0, "alpha": 3.0})), "rope_scaling.alpha"),
        (scaled(json!({"rope_type": "linear", "factor": "2"})), "rope_scaling.factor`: expected a number"),
        (scaled(json!("linear")), "key `rope_scaling`: expected an object"),
        (yarn("extrapolation_factor", json!(1.0)), "rope_scaling.extrapolation_factor"),
        (yarn("beta_fast", json!(0.5)), "beta_slow <= beta_fast"),
        (yarn("beta_slow", json!("1")), "rope_scaling.beta_slow"),
        (yarn("attention_factor", json!(-1.0)), "attention_factor > 0"),
        (yarn("truncate", json!(1)), "rope_scaling.truncate"),
        (yarn("partial_rotary_factor", json!(0.5)), "rope_scaling.partial_rotary_factor"),
        (yarn("factor", json!(1e12)), "max_positions"),
        (json!({"partial_rotary_factor": 0.25}), "partial_rotary_factor"),
        (
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "factor": 8.0}}),
            "rope_parameters.factor",
        ),
        (json!({"rope_parameters": nested}), "rope_parameters.full_attention"),
        (
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
                "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
            "whose rope_theta 1000000 would be lost",
        ),
        (json!({"rope_ratio": 2.0}), "rope_ratio"),
        (json!({"rotary_pct": 0.25}), "rotary_pct"),
        (json!({"no_rope_layers": [1, 0]}), "no_rope_layers"),
        (json!({"alibi": true}), "alibi"),
        (json!({"position_embedding_type": "absolute"}), "position_embedding_type"),
        (json!({"use_dynamic_ntk": true}), "use_dynamic_ntk"),
        (json!({"rope_local_base_freq": 1e4}), "rope_local_base_freq"),
    ] {
        let mut config = configs()["linear"].clone();
        for key in ["rope_theta", "rope_scaling"] {
            config.as_object_mut().unwrap().remove(key);
        }
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let error = Arch::from_hf_config(&config.to_string(), Path::new("some/config.json")).unwrap_err().to_string();
        assert!(error.contains(named) && error.contains("some/config.json"), "{more}: {error}");
    }
}

/// Keys that only state the default.
#[test]
fn neutral_keys_change_nothing() {
    let plain = configs()["default"].clone();
    let read = |config: &Value| Arch::from_hf_config(&config.to_string(), Path::new("config.json")).unwrap();
    for (key, value) in [
        ("rope_scaling", json!(null)),
        ("rope_scaling", json!({})),
        ("rope_scaling", json!({"rope_type": "default"})),
        ("rope_scaling", json!({"rope_type": "default", "factor": null})),
        ("rope_scaling", json!({"type": "default", "rope_type": "default"})),
        ("rope_interleaved", json!(false)),
        ("partial_rotary_factor", json!(1.0)),
        ("alibi", json!(false)),
    ] {
        let mut config = plain.clone();
        config[key] = value.clone();
        assert_eq!(read(&config), read(&plain), "{key}: {value}");
    }
}

/// Layer types may each have their own rotation, also in Qwen 3, if its configuration says so.
#[test]
fn nested_parameters_are_read_by_layer_type() {
    let config = json!({"model_type": "qwen3", "head_dim": 8, "hidden_size": 32, "intermediate_size": 48,
        "max_position_embeddings": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6, "vocab_size": 64, "tie_word_embeddings": true, "use_sliding_window": true,
        "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"], "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}});
    let read = |config: &Value| Arch::from_hf_config(&config.to_string(), Path::new("config.json"));
    let arch = read(&config).unwrap();
    assert_ne!(arch.position_of(0), arch.position_of(1));
    assert_eq!(arch.max_positions, 128);
    let mut other = config.clone();
    other["rope_parameters"]["chunked_attention"] = json!({"rope_type": "default"});
    assert!(read(&other).unwrap_err().to_string().contains("rope_parameters.chunked_attention"));
    other = config.clone();
    other["rope_parameters"]["rope_theta"] = json!(1e4);
    assert!(read(&other).unwrap_err().to_string().contains("rope_parameters.rope_theta"));
}
