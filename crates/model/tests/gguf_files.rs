//! GGUF files that the test writes itself: what is read equals what was written, and damaged files give errors.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;

use candle_core::quantized::gguf_file::Value;
use candle_core::{DType, Device, Tensor};
use common::gguf::{Folder, metadata, renamed, same_logits, strings, write};
use common::{dense, random_weights, tiny_arch, worst};
use kvcsr_model::{Arch, Decoder, Gguf, Logits, Message, Position, QkNorm, Qkv, RopeScaling, SlidingLayers, TensorMap};

fn ones(length: usize) -> Tensor {
    Tensor::ones(length, DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn a_written_model_reads_back_the_same() {
    let arch = tiny_arch();
    let folder = Folder::new();
    let file = Gguf::open(folder.file(&write(&arch, &metadata(&arch), |_| {}))).unwrap();
    assert_eq!(file.arch().unwrap(), arch);
    let read = file.decoder(&Device::Cpu).unwrap();
    let built = Decoder::new(arch.clone(), &TensorMap(random_weights(&arch, 5)), &Device::Cpu).unwrap();

    let tokenizer = file.tokenizer().unwrap();
    let ids = tokenizer.encode("Banana42<|end|>", true).unwrap();
    assert_eq!(ids, [11, 62, 62, 36, 4, 2, 63]);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "Banana42");
    assert_eq!((tokenizer.stop_tokens().ids(), tokenizer.vocab_size()), (&[63][..], 64));

    let run =
        |decoder: &Decoder| decoder.forward(&decoder.row(&ids).unwrap(), &mut dense(decoder), Logits::All).unwrap();
    assert_eq!(worst(&run(&read), &run(&built)), 0.0);
}

#[test]
fn qwen_files_are_not_interleaved_and_bring_biases_or_norms() {
    let qwen2 = Arch { qkv: Qkv::Biased, tied_head: true, ..tiny_arch() };
    let qwen3 = Arch { qk_norm: QkNorm::PerHead, head_dim: 12, ..tiny_arch() };
    for (architecture, arch) in [("qwen2", qwen2), ("qwen3", qwen3)] {
        let mut metadata = renamed(metadata(&arch), architecture);
        if architecture == "qwen3" {
            metadata.insert("qwen3.attention.key_length", Value::U32(12));
            metadata.insert("qwen3.attention.value_length", Value::U32(12));
        }
        let folder = Folder::new();
        let file = Gguf::open(folder.file(&write(&arch, &metadata, |_| {}))).unwrap();
        assert_eq!(file.arch().unwrap(), arch);
        same_logits(&file.decoder(&Device::Cpu).unwrap(), &arch);
    }
}

#[test]
fn rotary_factors_and_a_sliding_window_are_read() {
    let factors: Vec<f32> = vec![1.0, 2.0, 4.0, 8.0];
    let scaling = RopeScaling::Divided(factors.clone());
    let sliding = Some(SlidingLayers::from_layer(0, tiny_arch().layers, 3));
    let arch = Arch { position: Position::Rope { theta: 1e4, scaling }, sliding, ..tiny_arch() };
    let mut metadata = metadata(&arch);
    metadata.insert("llama.attention.sliding_window", Value::U32(3));
    let folder = Folder::new();
    let factors = Tensor::new(factors, &Device::Cpu).unwrap();
    let written = write(&arch, &metadata, |t| drop(t.insert("rope_freqs.weight".to_owned(), factors.clone())));
    let file = Gguf::open(folder.file(&written)).unwrap();
    assert_eq!(file.arch().unwrap(), arch);
    same_logits(&file.decoder(&Device::Cpu).unwrap(), &arch);
}

#[test]
fn a_bos_is_added_where_the_file_asks_for_it() {
    let arch = tiny_arch();
    let mut metadata = metadata(&arch);
    metadata.insert("tokenizer.ggml.bos_token_id", Value::U32(63));
    metadata.insert("tokenizer.ggml.add_bos_token", Value::Bool(true));
    let folder = Folder::new();
    let tokenizer = Gguf::open(folder.file(&write(&arch, &metadata, |_| {}))).unwrap().tokenizer().unwrap();
    assert_eq!(tokenizer.encode("an", true).unwrap(), [63, 62]);
    assert_eq!(tokenizer.encode("an", false).unwrap(), [62]);
}

#[test]
fn a_sentencepiece_vocabulary_is_read_from_scores() {
    let arch = tiny_arch();
    let mut metadata = metadata(&arch);
    let letters = ('a'..='z').map(String::from);
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let head = ["<unk>", "<s>", "</s>", "\u{2581}", "\u{2581}a", "ab", "\u{2581}ab"].map(str::to_owned);
    let tokens: Vec<String> = head.into_iter().chain(letters).chain(bytes).collect();
    let score = |token: &String| {
        Value::F32(match token.chars().count() {
            2 if token == "ab" => -1.0,
            2 => -2.0,
            3 => -3.0,
            _ => -9.0,
        })
    };
    let kind = |token: &String| {
        Value::I32(match token.as_str() {
            "<unk>" => 2,
            "<s>" | "</s>" => 3,
            byte if byte.starts_with("<0x") => 6,
            _ => 1,
        })
    };
    metadata.insert("tokenizer.ggml.model", Value::String("llama".to_owned()));
    metadata.insert("tokenizer.ggml.scores", Value::Array(tokens.iter().map(score).collect()));
    metadata.insert("tokenizer.ggml.token_type", Value::Array(tokens.iter().map(kind).collect()));
    metadata.insert("tokenizer.ggml.bos_token_id", Value::U32(1));
    metadata.insert("tokenizer.ggml.eos_token_id", Value::U32(2));
    metadata.insert("tokenizer.ggml.tokens", strings(tokens.iter().map(String::as_str)));
    let folder = Folder::new();
    let tokenizer = Gguf::open(folder.file(&write(&arch, &metadata, |_| {}))).unwrap().tokenizer().unwrap();
    let byte = |byte: u32| 7 + 26 + byte;
    // The union with the highest score comes first: `ab`, then the space before it. Text without a piece is coded as
    // bytes.
    assert_eq!(tokenizer.encode("ab ac", true).unwrap(), [1, 6, 4, 9]);
    assert_eq!(tokenizer.encode("é", false).unwrap(), [3, byte(0xc3), byte(0xa9)]);
    assert_eq!(tokenizer.decode(&[1, 6, 4, 9, byte(0xc3), byte(0xa9), 2], true).unwrap(), "ab acé");
    assert_eq!(tokenizer.stop_tokens().ids(), [2]);
}

#[test]
fn every_truncation_is_an_error() {
    let arch = tiny_arch();
    let whole = write(&arch, &metadata(&arch), |_| {});
    let folder = Folder::new();
    folder.load(&whole).unwrap();
    let tensors: usize = arch.tensors().iter().map(|(_, shape)| 4 * shape.iter().product::<usize>()).sum();
    let header = (0..whole.len() - tensors).step_by(7).chain([1, 2, 3, 4, 8, 12, 16, 23, 24]);
    let data = (whole.len() - tensors..whole.len()).step_by(4999).chain([whole.len() - 1]);
    for length in header.chain(data) {
        let error = folder.load(&whole[..length]).err();
        let error = error.unwrap_or_else(|| panic!("{length} of {} bytes were accepted", whole.len()));
        assert!(error.contains("tiny.gguf"), "{length}: {error}");
    }
}

#[test]
fn damaged_headers_never_panic_or_allocate_what_they_claim() {
    let arch = tiny_arch();
    let whole = write(&arch, &metadata(&arch), |_| {});
    let folder = Folder::new();
    // The numbers of tensors and entries, then the length of the first key.
    for at in [8, 16, 24] {
        for claim in [u64::MAX, 1 << 63, 1 << 40, 1 << 30] {
            let mut bytes = whole.clone();
            bytes[at..at + 8].copy_from_slice(&claim.to_le_bytes());
            assert!(folder.load(&bytes).err().unwrap().contains("malformed GGUF"));
        }
    }
    let mut wrong = whole.clone();
    wrong[..4].copy_from_slice(b"GGML");
    assert!(folder.load(&wrong).err().unwrap().contains("magic"));
    wrong[..4].copy_from_slice(b"GGUF");
    wrong[4] = 9;
    assert!(folder.load(&wrong).err().unwrap().contains("version 9"));
    // Any byte of the header may have any value. The result may be an error or a model, but the call must return.
    let tensors: usize = arch.tensors().iter().map(|(_, shape)| 4 * shape.iter().product::<usize>()).sum();
    for at in (4..whole.len() - tensors).step_by(13) {
        for byte in [0, 0x7f, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            let _ = folder.load(&bytes);
        }
    }
}

#[test]
fn contradictions_in_the_metadata_are_named() {
    let arch = tiny_arch();
    let folder = Folder::new();
    let text = |s: &str| Value::String(s.to_owned());
    let long = Value::Array(vec![Value::U32(1); 10]);
    let cases: Vec<(&'static str, Option<Value>, &str)> = vec![
        (
            "general.architecture",
            Some(text("mamba")),
            "architecture `mamba` is not supported (supported: llama, qwen2, qwen3, gemma3, olmo2, phi3)",
        ),
        ("general.architecture", None, "key `general.architecture` is missing"),
        ("general.alignment", Some(Value::U32(0)), "general.alignment is 0"),
        ("general.alignment", Some(Value::U32(48)), "general.alignment is 48"),
        ("llama.block_count", None, "key `llama.block_count` is missing"),
        ("llama.block_count", Some(text("three")), "key `llama.block_count`: expected a whole number"),
        ("llama.block_count", Some(Value::U32(4)), "missing tensors: blk.3.attn_norm.weight"),
        ("llama.block_count", Some(Value::U32(2)), "without a place in this architecture: blk.2"),
        ("llama.block_count", Some(Value::U64(u64::MAX)), "key `llama.block_count`: expected between 1 and 1024"),
        ("llama.embedding_length", Some(Value::I32(-32)), "expected a whole number, found I32(-32)"),
        ("llama.embedding_length", Some(Value::U32(64)), "key `llama.attention.key_length`"),
        ("llama.embedding_length", Some(Value::U32(33)), "a divisor of the hidden width 33"),
        ("llama.attention.head_count", Some(Value::U32(0)), "llama.attention.head_count"),
        ("llama.attention.head_count", Some(long), "an array of 10 elements"),
        (
            "llama.attention.head_count_kv",
            Some(Value::U32(3)),
            "key `kv_heads`: expected a divisor of heads = 4, found 3",
        ),
        ("llama.attention.layer_norm_rms_epsilon", Some(Value::F32(f32::NAN)), "key `rms_eps`"),
        ("llama.context_length", Some(Value::U64(1 << 50)), "key `max_positions`"),
        ("llama.logit_scale", Some(Value::F32(0.25)), "key `llama.logit_scale`: expected no such key, or 1"),
        ("llama.embedding_scale", Some(Value::F32(12.0)), "key `llama.embedding_scale`"),
        ("llama.residual_scale", Some(Value::F32(0.22)), "key `llama.residual_scale`"),
        (
            "llama.attention.causal",
            Some(Value::Bool(false)),
            "key `llama.attention.causal`: expected no such key, or true",
        ),
        ("llama.use_parallel_residual", Some(Value::Bool(true)), "key `llama.use_parallel_residual`"),
        ("llama.rope.dimension_count", Some(Value::U32(4)), "expected 8, the head width, found 4"),
        ("llama.rope.scaling.type", Some(text("longrope")), "rotary scaling `longrope`"),
        ("llama.vocab_size", Some(Value::U32(65)), "expected 64, the number of tokenizer tokens, found 65"),
        ("llama.feed_forward_length", Some(Value::U32(65)), "expected shape [65, 32], found [64, 32]"),
        ("tokenizer.ggml.model", Some(text("bert")), "tokenizer model `bert`"),
        ("tokenizer.ggml.model", Some(text("llama")), "key `tokenizer.ggml.scores` is missing"),
        ("tokenizer.ggml.pre", Some(text("gpt-9")), "pre-tokenizer `gpt-9` is not supported"),
        ("tokenizer.ggml.pre", Some(text("gemma4")), "`gemma4` merges characters, not bytes"),
        (
            "tokenizer.ggml.pre",
            Some(text("roberta-bpe")),
            "`roberta-bpe` is of embedding models, which generate no text",
        ),
        ("tokenizer.ggml.merges", Some(strings(["an"])), "pairs separated by one space"),
        ("tokenizer.ggml.merges", Some(strings(["a €"])), "found Token `€` out of vocabulary"),
        ("tokenizer.ggml.token_type", Some(Value::Array(vec![])), "64 elements, one per token"),
        ("tokenizer.ggml.tokens", Some(Value::Array(vec![Value::U8(1)])), "an array of strings"),
        ("tokenizer.ggml.eos_token_id", Some(Value::U32(64)), "expected an id below 64, found 64"),
    ];
    for (key, value, named) in cases {
        let mut metadata = metadata(&arch);
        // If the change would first contradict the key length, that key is given too.
        if key == "llama.embedding_length" && named.contains("key_length") {
            metadata.insert("llama.attention.key_length", text("8"));
        }
        match value {
            Some(value) => metadata.insert(key, value),
            None => metadata.remove(key),
        };
        let error = folder.load(&write(&arch, &metadata, |_| {})).err();
        let error = error.unwrap_or_else(|| panic!("{key} ({named}) was accepted"));
        assert!(error.contains(named) && error.contains("tiny.gguf"), "{key}: {error}");
    }
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let arch = tiny_arch();
    let folder = Folder::new();
    let load =
        |change: fn(&mut BTreeMap<String, Tensor>)| folder.load(&write(&arch, &metadata(&arch), change)).err().unwrap();
    assert!(load(|t| drop(t.remove("blk.1.ffn_up.weight"))).contains("missing tensors"));
    let error = load(|t| drop(t.insert("blk.0.attn_sinks.weight".to_owned(), ones(4))));
    assert!(error.contains("without a place in this architecture: blk.0.attn_sinks.weight"), "{error}");
    let error = load(|t| drop(t.insert("rope_freqs.weight".to_owned(), ones(5))));
    assert!(error.contains("`rope_freqs.weight`: expected shape [4], found [5]"), "{error}");
}

#[test]
fn the_embedded_chat_template_renders() {
    let Some(path) = kvcsr_fixtures::smollm2("the_embedded_chat_template_renders") else {
        return;
    };
    let file = Gguf::open(path).unwrap();
    let template = file.chat_template().unwrap().unwrap();
    let text = template.render(&[Message { role: "user", content: "Hi" }], true).unwrap();
    assert_eq!(
        text,
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
         <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
    let tokenizer = file.tokenizer().unwrap();
    let ids = tokenizer.encode(&text, false).unwrap();
    assert_eq!(ids.iter().filter(|id| Some(**id) == tokenizer.id("<|im_start|>")).count(), 3);
}

#[test]
fn a_truncated_download_is_an_error() {
    let Some(path) = kvcsr_fixtures::smollm2("a_truncated_download_is_an_error") else {
        return;
    };
    let whole = fs::read(path).unwrap();
    let folder = Folder::new();
    for length in [0, 100, 5_000, 1_000_000, 50_000_000, whole.len() - 1_000] {
        let error = folder.load(&whole[..length]).err().unwrap();
        assert!(error.contains("tiny.gguf"), "{length}: {error}");
    }
}
