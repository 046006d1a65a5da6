//! GGUF files of every family and with every rescaling of positions: the model that is read equals the one that was
//! written.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use candle_core::quantized::gguf_file::Value;
use common::gguf::{Folder, metadata, renamed, same_logits, write};
use common::tiny_arch;
use kvcsr_model::{Activation, Arch, Gguf, Norms, Position, QkNorm, Qkv, RopeScaling, SlidingLayers};

type Metadata = BTreeMap<&'static str, Value>;

fn read(arch: &Arch, metadata: &Metadata) -> Result<Arch, String> {
    let folder = Folder::new();
    let opened = Gguf::open(folder.file(&write(arch, metadata, |_| {})));
    opened.and_then(|file| file.arch()).map_err(|e| e.to_string())
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

fn rope(theta: f64, scaling: RopeScaling) -> Position {
    Position::Rope { theta, scaling }
}

/// Writes a model of a family, reads it, and compares the architecture and the logits.
fn round_trip(arch: &Arch, metadata: &Metadata) {
    let folder = Folder::new();
    let file = Gguf::open(folder.file(&write(arch, metadata, |_| {}))).unwrap();
    assert_eq!(&file.arch().unwrap(), arch);
    same_logits(&file.decoder(&candle_core::Device::Cpu).unwrap(), arch);
}

#[test]
fn gemma3_slides_in_five_layers_of_six_with_a_base_of_its_own() {
    let sliding = |layers: &[bool], theta| SlidingLayers {
        tokens: 3,
        layers: layers.to_vec(),
        position: Some(rope(theta, RopeScaling::None)),
    };
    let arch = Arch {
        layers: 3,
        head_dim: 12,
        kv_heads: 1,
        position: rope(1e6, RopeScaling::None),
        sliding: Some(sliding(&[true, true, true], 1e4)),
        qk_norm: QkNorm::PerHead,
        norms: Norms::Around,
        activation: Activation::GeluTanh,
        embedding_scale: (tiny_arch().hidden as f64).sqrt(),
        score_scale: Some(1.0 / 12f64.sqrt()),
        tied_head: true,
        ..tiny_arch()
    };
    let mut written = renamed(metadata(&arch), "gemma3");
    written.insert("gemma3.attention.key_length", Value::U32(12));
    written.insert("gemma3.attention.value_length", Value::U32(12));
    written.insert("gemma3.attention.sliding_window", Value::U32(3));
    round_trip(&arch, &written);

    let every_second = Arch { sliding: Some(sliding(&[true, false, true], 1e4)), ..arch.clone() };
    written.insert("gemma3.attention.sliding_window_pattern", Value::U32(2));
    round_trip(&every_second, &written);
    let flags = [false, true, false];
    let listed = Arch { sliding: Some(sliding(&flags, 500.0)), ..arch.clone() };
    let flags = flags.map(Value::Bool).to_vec();
    written.insert("gemma3.attention.sliding_window_pattern", Value::Array(flags));
    written.insert("gemma3.rope.freq_base_swa", Value::F32(500.0));
    round_trip(&listed, &written);

    // The large models rescale their full layers. The file has the length after rescaling.
    written.insert("gemma3.rope.scaling.type", text("linear"));
    written.insert("gemma3.rope.scaling.factor", Value::F32(8.0));
    let scaled = Arch { position: rope(1e6, RopeScaling::Linear { factor: 8.0 }), ..listed };
    round_trip(&scaled, &written);
}

#[test]
fn olmo2_and_phi3_have_their_own_norms_and_matrices() {
    let olmo = Arch { norms: Norms::After, qk_norm: QkNorm::Whole, ..tiny_arch() };
    round_trip(&olmo, &renamed(metadata(&olmo), "olmo2"));
    let phi = Arch { qkv: Qkv::Joined, packed_mlp: true, ..tiny_arch() };
    round_trip(&phi, &renamed(metadata(&phi), "phi3"));
}

#[test]
fn rescaled_positions_are_read_as_in_llama_cpp() {
    let yarn = |factor, original_max_positions, attention_factor| RopeScaling::Yarn {
        factor,
        original_max_positions,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
        attention_factor,
    };
    let sharpened = 0.1 * 4f64.ln() + 1.0;
    type Keys = Vec<(&'static str, Value)>;
    let cases: Vec<(Keys, RopeScaling, usize)> = vec![
        (vec![("llama.rope.scaling.type", text("none"))], RopeScaling::None, 64),
        (vec![("llama.rope.scaling.factor", Value::F32(0.0))], RopeScaling::None, 64),
        (vec![("llama.rope.scaling.factor", Value::F32(4.0))], RopeScaling::Linear { factor: 4.0 }, 256),
        (vec![("llama.rope.scale_linear", Value::F32(2.0))], RopeScaling::Linear { factor: 2.0 }, 128),
        (
            vec![("llama.rope.scaling.type", text("linear")), ("llama.rope.scaling.factor", Value::F32(4.0))],
            RopeScaling::Linear { factor: 4.0 },
            256,
        ),
        (
            vec![("llama.rope.scaling.type", text("yarn")), ("llama.rope.scaling.factor", Value::F32(4.0))],
            yarn(4.0, 64, sharpened),
            256,
        ),
        (
            vec![
                ("llama.rope.scaling.type", text("yarn")),
                ("llama.rope.scaling.factor", Value::F32(4.0)),
                ("llama.rope.scaling.original_context_length", Value::U32(32)),
                ("llama.rope.scaling.attn_factor", Value::F32(0.5)),
                ("llama.rope.scaling.finetuned", Value::Bool(true)),
            ],
            yarn(4.0, 32, 0.5 * sharpened),
            128,
        ),
    ];
    for (keys, scaling, max_positions) in cases {
        let mut written = metadata(&tiny_arch());
        let named = format!("{keys:?}");
        written.extend(keys);
        let arch = Arch { position: rope(1e4, scaling), max_positions, ..tiny_arch() };
        assert_eq!(read(&tiny_arch(), &written).unwrap(), arch, "{named}");
        round_trip(&arch, &written);
    }
}

#[test]
fn keys_about_positions_that_nothing_reads_are_refused() {
    for (key, value, named) in [
        (
            "llama.rope.scaling.type",
            text("longrope"),
            "rotary scaling `longrope` is not supported (supported: none, linear, yarn",
        ),
        ("llama.rope.scaling.type", text("dynamic"), "rotary scaling `dynamic`"),
        ("llama.rope.scaling.factor", text("four"), "llama.rope.scaling.factor`: expected a number"),
        ("llama.rope.scaling.factor", Value::F32(0.5), "factor >= 1"),
        ("llama.rope.scaling.yarn_log_multiplier", Value::F32(0.1), "llama.rope.scaling.yarn_log_multiplier"),
        ("llama.rope.scaling.alpha", Value::F32(1000.0), "llama.rope.scaling.alpha"),
        ("llama.rope.scaling.yarn_beta_fast", Value::F32(16.0), "llama.rope.scaling.yarn_beta_fast"),
        ("llama.rope.dimension_sections", Value::U32(3), "llama.rope.dimension_sections"),
        ("llama.rope.dimension_count", Value::U32(4), "llama.rope.dimension_count"),
        ("llama.attn_logit_softcapping", Value::F32(50.0), "llama.attn_logit_softcapping"),
        ("llama.attention.max_alibi_bias", Value::F32(8.0), "llama.attention.max_alibi_bias"),
    ] {
        let mut written = metadata(&tiny_arch());
        written.insert(key, value);
        let error = read(&tiny_arch(), &written).unwrap_err();
        assert!(error.contains(named) && error.contains("tiny.gguf"), "{key}: {error}");
    }
}
