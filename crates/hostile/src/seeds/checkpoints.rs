//! Models with one small layer, and SentencePiece vocabularies.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Cursor;

use anyhow::Result;
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use kvcsr_fixtures::{random_weights, tiny_arch};
use kvcsr_model::Arch;

use super::Made;
use crate::place::Place;

fn arch() -> Arch {
    Arch {
        hidden: 8,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        head_dim: 4,
        intermediate: 8,
        vocab: 8,
        max_positions: 16,
        tied_head: true,
        ..tiny_arch()
    }
}

fn strings(items: &[&str]) -> Value {
    Value::Array(items.iter().map(|item| Value::String((*item).to_owned())).collect())
}

const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}";

fn metadata(arch: &Arch, architecture: &str, vocabulary: Vec<(&'static str, Value)>) -> BTreeMap<String, Value> {
    let of = |key: &str| format!("{architecture}.{key}");
    let number = |n: usize| Value::U32(n as u32);
    let own = [
        (of("block_count"), number(arch.layers)),
        (of("context_length"), number(arch.max_positions)),
        (of("embedding_length"), number(arch.hidden)),
        (of("feed_forward_length"), number(arch.intermediate)),
        (of("attention.head_count"), number(arch.heads)),
        (of("attention.head_count_kv"), number(arch.kv_heads)),
        (of("attention.layer_norm_rms_epsilon"), Value::F32(1e-5)),
        (of("rope.freq_base"), Value::F32(1e4)),
        ("general.architecture".to_owned(), Value::String(architecture.to_owned())),
        ("general.alignment".to_owned(), Value::U32(32)),
        ("tokenizer.chat_template".to_owned(), Value::String(TEMPLATE.to_owned())),
    ];
    own.into_iter().chain(vocabulary.into_iter().map(|(key, value)| (key.to_owned(), value))).collect()
}

fn merged() -> Vec<(&'static str, Value)> {
    let types = (0..8).map(|id| Value::I32(if id == 7 { 3 } else { 1 })).collect();
    vec![
        ("tokenizer.ggml.model", Value::String("gpt2".to_owned())),
        ("tokenizer.ggml.pre", Value::String("smollm".to_owned())),
        ("tokenizer.ggml.tokens", strings(&["a", "n", "H", "i", "e", "an", "1", "<s>"])),
        ("tokenizer.ggml.token_type", Value::Array(types)),
        ("tokenizer.ggml.merges", strings(&["a n"])),
        ("tokenizer.ggml.eos_token_id", Value::U32(7)),
    ]
}

fn scored() -> Vec<(&'static str, Value)> {
    let numbers = |all: [i32; 8]| Value::Array(all.into_iter().map(Value::I32).collect());
    let scores = (0..8).map(|id| Value::F32(-(id as f32))).collect();
    vec![
        ("tokenizer.ggml.model", Value::String("llama".to_owned())),
        ("tokenizer.ggml.tokens", strings(&["<unk>", "<s>", "</s>", "\u{2581}", "H", "e", "He", "l"])),
        ("tokenizer.ggml.token_type", numbers([2, 3, 3, 1, 1, 1, 1, 1])),
        ("tokenizer.ggml.scores", Value::Array(scores)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(true)),
    ]
}

const NAMES: [(&str, &str); 12] = [
    ("model.layers.", "blk."),
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

fn gguf(metadata: &BTreeMap<String, Value>, dtype: GgmlDType) -> Result<Vec<u8>> {
    let name = |name: &str| NAMES.iter().fold(name.to_owned(), |name, (hf, gguf)| name.replace(hf, gguf));
    let weights: BTreeMap<String, Tensor> = random_weights(&arch(), 3).into_iter().collect();
    let quantised = weights.iter().map(|(key, tensor)| {
        let dtype = if tensor.rank() == 2 { dtype } else { GgmlDType::F32 };
        Ok((name(key), QTensor::quantize(tensor, dtype)?))
    });
    let quantised: Vec<(String, QTensor)> = quantised.collect::<Result<_>>()?;
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> = quantised.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut bytes = Cursor::new(Vec::new());
    gguf_file::write(&mut bytes, &metadata, &tensors)?;
    Ok(bytes.into_inner())
}

pub(super) fn ggufs() -> Result<Vec<Made>> {
    let arch = arch();
    Ok(vec![
        ("llama-bpe", gguf(&metadata(&arch, "llama", merged()), GgmlDType::F16)?),
        ("qwen2-pieces", gguf(&metadata(&arch, "qwen3", scored()), GgmlDType::F16)?),
    ])
}

pub(super) fn safetensors(place: &Place) -> Result<Vec<Made>> {
    let path = place.path("seed");
    let seed = |tensors: HashMap<&str, Tensor>| -> Result<Vec<u8>> {
        candle_core::safetensors::save(&tensors, &path)?;
        Ok(fs::read(&path)?)
    };
    let numbers = |shape: &[usize], dtype| -> Result<Tensor> {
        let n: usize = shape.iter().product();
        Ok(Tensor::arange(0f32, n as f32, &Device::Cpu)?.reshape(shape)?.to_dtype(dtype)?)
    };
    let mixed = HashMap::from([
        ("model.norm.weight", numbers(&[8], DType::F32)?),
        ("model.embed_tokens.weight", numbers(&[4, 8], DType::BF16)?),
        ("lm_head.weight", numbers(&[4, 8], DType::F16)?),
    ]);
    let wide = HashMap::from([("a", numbers(&[3], DType::F64)?), ("b", numbers(&[2, 2], DType::I64)?)]);
    Ok(vec![("mixed", seed(mixed)?), ("wide", seed(wide)?)])
}

/// SentencePiece's protobuf with the fields that are read: the pieces and the kind of model, without rules.
pub(super) fn pieces() -> Vec<Made> {
    let piece = |text: &str, score: f32, kind: u8| -> Vec<u8> {
        let body =
            [&[0x0a, text.len() as u8][..], text.as_bytes(), &[0x15], &score.to_le_bytes(), &[0x18, kind]].concat();
        [&[0x0a, body.len() as u8][..], &body].concat()
    };
    let model = |kind: u8, texts: &[&str]| -> Vec<u8> {
        let special =
            [("<unk>", 2), ("<s>", 3), ("</s>", 3)].into_iter().flat_map(|(text, kind)| piece(text, 0.0, kind));
        let normal = texts.iter().enumerate().flat_map(|(at, text)| piece(text, -(at as f32), 1));
        let trainer = [0x12, 2, 0x18, kind];
        let normalizer = [0x1a, 4, 0x18, 1, 0x20, 0];
        special.chain(normal).chain(trainer).chain(normalizer).collect()
    };
    let texts = ["He", "ll", "\u{2581}H", "\u{2581}", "H", "e", "l", "o", "w", "r", "d", "1"];
    vec![("bpe", model(2, &texts)), ("unigram", model(1, &texts))]
}
