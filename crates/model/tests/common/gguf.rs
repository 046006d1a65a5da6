//! GGUF files that a test writes itself, and the models read from them.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use kvcsr_model::{Arch, Decoder, Gguf, Logits, Norms, TensorMap};

use super::{dense, random_weights, rope, worst};

pub fn strings<'a>(items: impl IntoIterator<Item = &'a str>) -> Value {
    Value::Array(items.into_iter().map(|item| Value::String(item.to_owned())).collect())
}

/// Sixty-two one-letter tokens, one merge of two of them, and one control token.
pub fn metadata(arch: &Arch) -> BTreeMap<&'static str, Value> {
    let letters: Vec<String> = ('0'..='9').chain('A'..='Z').chain('a'..='z').map(String::from).collect();
    let tokens = letters.iter().map(String::as_str).chain(["an", "<|end|>"]);
    let types = (0..64).map(|id| Value::I32(if id == 63 { 3 } else { 1 })).collect();
    BTreeMap::from([
        ("general.architecture", Value::String("llama".to_owned())),
        ("llama.block_count", Value::U32(arch.layers as u32)),
        ("llama.context_length", Value::U32(arch.max_positions as u32)),
        ("llama.embedding_length", Value::U32(arch.hidden as u32)),
        ("llama.feed_forward_length", Value::U32(arch.intermediate as u32)),
        ("llama.attention.head_count", Value::U32(arch.heads as u32)),
        ("llama.attention.head_count_kv", Value::U32(arch.kv_heads as u32)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(arch.rms_eps as f32)),
        ("llama.rope.freq_base", Value::F32(rope(arch).0 as f32)),
        ("tokenizer.ggml.model", Value::String("gpt2".to_owned())),
        ("tokenizer.ggml.pre", Value::String("smollm".to_owned())),
        ("tokenizer.ggml.tokens", strings(tokens)),
        ("tokenizer.ggml.token_type", Value::Array(types)),
        ("tokenizer.ggml.merges", strings(["a n"])),
        ("tokenizer.ggml.eos_token_id", Value::U32(63)),
    ])
}

/// The order that llama.cpp's converter gives to q and k: from rows `(head, member, pair)` to `(head, pair, member)`.
pub fn interleaved(rows: &Tensor, heads: usize) -> Tensor {
    let (out, width) = rows.dims2().unwrap();
    let pairs = rows.reshape((heads, 2, out / heads / 2, width)).unwrap();
    pairs.transpose(1, 2).unwrap().contiguous().unwrap().reshape((out, width)).unwrap()
}

pub fn gguf_name(arch: &Arch, name: &str) -> String {
    let mut name = name.replace("model.layers.", "blk.");
    let norms: &[(&str, &str)] = match arch.norms {
        Norms::Before => &[("post_attention_layernorm", "ffn_norm")],
        Norms::After | Norms::Around => &[
            ("post_attention_layernorm", "post_attention_norm"),
            ("pre_feedforward_layernorm", "ffn_norm"),
            ("post_feedforward_layernorm", "post_ffw_norm"),
        ],
    };
    let fused = [("self_attn.qkv_proj", "attn_qkv"), ("mlp.gate_up_proj", "ffn_up")];
    for (hf, gguf) in norms.iter().copied().chain(fused).chain([
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("input_layernorm", "attn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ]) {
        name = name.replace(hf, gguf);
    }
    name
}

pub fn write(
    arch: &Arch,
    metadata: &BTreeMap<&'static str, Value>,
    change: impl Fn(&mut BTreeMap<String, Tensor>),
) -> Vec<u8> {
    let interleave = metadata.contains_key("llama.block_count");
    let mut tensors: BTreeMap<String, Tensor> = random_weights(arch, 5)
        .into_iter()
        .map(|(name, tensor)| {
            let tensor = match name.as_str() {
                _ if !interleave => tensor,
                q if q.contains("q_proj") => interleaved(&tensor, arch.heads),
                k if k.contains("k_proj") => interleaved(&tensor, arch.kv_heads),
                _ => tensor,
            };
            (gguf_name(arch, &name), tensor)
        })
        .collect();
    change(&mut tensors);
    let quantised: Vec<(String, QTensor)> =
        tensors.into_iter().map(|(name, tensor)| (name, QTensor::quantize(&tensor, GgmlDType::F32).unwrap())).collect();
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<(&str, &QTensor)> = quantised.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut bytes = std::io::Cursor::new(Vec::new());
    gguf_file::write(&mut bytes, &metadata, &tensors).unwrap();
    bytes.into_inner()
}

/// A temporary folder with one file.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn file(&self, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join("tiny.gguf");
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Reads everything that a caller reads from a file: metadata, tokenizer, tensors.
    pub fn load(&self, bytes: &[u8]) -> Result<Decoder, String> {
        let file = Gguf::open(self.file(bytes)).map_err(|e| e.to_string())?;
        file.tokenizer().map_err(|e| e.to_string())?;
        file.decoder(&Device::Cpu).map_err(|e| e.to_string())
    }
}

/// The same metadata with another architecture's prefix.
pub fn renamed(metadata: BTreeMap<&'static str, Value>, architecture: &'static str) -> BTreeMap<&'static str, Value> {
    let rename = |key: &'static str| match key.strip_prefix("llama.") {
        Some(rest) => Box::leak(format!("{architecture}.{rest}").into_boxed_str()),
        None => key,
    };
    let mut metadata: BTreeMap<_, _> = metadata.into_iter().map(|(key, value)| (rename(key), value)).collect();
    metadata.insert("general.architecture", Value::String(architecture.to_owned()));
    metadata
}

/// Checks that a file's decoder equals the one built from the weights that were written.
pub fn same_logits(read: &Decoder, arch: &Arch) {
    let built = Decoder::new(arch.clone(), &TensorMap(random_weights(arch, 5)), &Device::Cpu).unwrap();
    let run = |decoder: &Decoder| {
        let ids = decoder.row(&[11, 62, 62, 36, 4, 2, 63]).unwrap();
        decoder.forward(&ids, &mut dense(decoder), Logits::All).unwrap()
    };
    assert_eq!(worst(&run(read), &run(&built)), 0.0);
}
