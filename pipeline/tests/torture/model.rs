//! A model of three layers with random weights and a vocabulary of bytes.

use std::fs;
use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::Value;

const HIDDEN: usize = 64;
const LAYERS: usize = 3;
/// Number of heads, of queries and also of keys and values. They have 32 channels, which every scheme can divide.
const HEADS: usize = 2;

/// Writes the model as a checkpoint folder.
pub fn write(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/inputs/model");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(from.join(name), folder.join(name)).unwrap();
    }
    let config = fs::read_to_string(from.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    for (key, size) in [
        ("hidden_size", HIDDEN),
        ("intermediate_size", HIDDEN),
        ("num_hidden_layers", LAYERS),
        ("num_attention_heads", HEADS),
        ("num_key_value_heads", HEADS),
    ] {
        config[key] = size.into();
    }
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let vocab = config["vocab_size"].as_u64().unwrap() as usize;
    let mut rng = ChaCha8Rng::seed_from_u64(20);
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes(vocab)
        .into_iter()
        .map(|(name, shape)| {
            let count: usize = shape.iter().product();
            let norm = shape.len() == 1;
            let number = |_| if norm { 1f32 } else { rng.random_range(-0.4..0.4) };
            let bytes = (0..count).map(number).flat_map(f32::to_le_bytes).collect();
            (name, shape, bytes)
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

fn shapes(vocab: usize) -> Vec<(String, Vec<usize>)> {
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocab, HIDDEN]),
        ("lm_head.weight".to_owned(), vec![vocab, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        let matrices = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];
        let feed_forward = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];
        for part in matrices.into_iter().chain(feed_forward) {
            all.push((format!("model.layers.{layer}.{part}.weight"), vec![HIDDEN, HIDDEN]));
        }
        for part in ["input_layernorm", "post_attention_layernorm"] {
            all.push((format!("model.layers.{layer}.{part}.weight"), vec![HIDDEN]));
        }
    }
    all
}
