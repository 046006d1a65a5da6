//! Rows about the model itself: positions, dtypes, and weights that are refused.

use std::fs;
use std::path::Path;

use candle_core::quantized::gguf_file::Value;
use candle_core::{DType, Device, Tensor};
use kvcsr_model::{Arch, Checkpoint, Gguf, HfCheckpoint, Position, RopeScaling, TensorMap};
use serde_json::{Value as Json, json};

use super::Row;
use super::files::{self, byte_level, folder, text};

/// The architecture of a small configuration with these keys.
fn read(keys: &Json) -> Result<Arch, String> {
    let mut config = json!({"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "rms_norm_eps": 1e-6, "vocab_size": 64, "max_position_embeddings": 64});
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    Arch::from_hf_config(&config.to_string(), Path::new("config.json")).map_err(|e| e.to_string())
}

fn position(theta: f64, scaling: RopeScaling) -> Position {
    Position::Rope { theta, scaling }
}

fn refused(keys: &Json, named: &str) {
    let error = read(keys).unwrap_err();
    assert!(error.contains("config.json") && error.contains(named), "{error}");
}

/// The architecture of a GGUF's metadata with these keys.
fn gguf(keys: &[(&'static str, Value)]) -> Result<Arch, String> {
    let mut metadata = byte_level("gpt-2");
    metadata.insert("general.architecture", text("llama"));
    for (key, value) in [
        ("llama.block_count", 2),
        ("llama.context_length", 64),
        ("llama.embedding_length", 32),
        ("llama.feed_forward_length", 48),
        ("llama.attention.head_count", 4),
    ] {
        metadata.insert(key, Value::U32(value));
    }
    metadata.insert("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-6));
    metadata.extend(keys.iter().cloned());
    files::gguf(&metadata).1.arch().map_err(|e| e.to_string())
}

pub const CONFIG: &[Row] = &[
    Row {
        file: "config.json",
        key: "`rope_theta`, `rope_scaling`",
        behaviour: "rotary base (absent: 10000) and its rescaling: `default`, `linear`, `llama3` or `yarn`, named by \
                    `rope_type` or `type`; every key of the type is used (`factor`, `original_max_position_embeddings`, \
                    `beta_fast`, `beta_slow`, `mscale`, `mscale_all_dim`, `attention_factor`, `truncate`, \
                    `low_freq_factor`, `high_freq_factor`), any other is refused, and so are other types",
        check: || {
            let arch = read(&json!({"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}})).unwrap();
            assert_eq!(arch.position, position(500.0, RopeScaling::Linear { factor: 4.0 }));
            refused(&json!({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}), "rope_type `dynamic`");
            refused(&json!({"rope_scaling": {"type": "linear", "factor": 4.0, "alpha": 1.0}}), "rope_scaling.alpha");
        },
    },
    Row {
        file: "config.json",
        key: "`rope_parameters`",
        behaviour: "the same with `rope_theta` inside; where `rope_scaling` is there too, that wins. Nested by layer type, \
                    it is read where `layer_types` is there",
        check: || {
            let parameters = json!({"rope_type": "default", "rope_theta": 1e4});
            let both = read(&json!({"rope_parameters": parameters, "rope_scaling": {"type": "linear", "factor": 4.0}}));
            assert_eq!(both.unwrap().position, position(1e4, RopeScaling::Linear { factor: 4.0 }));
            refused(&json!({"rope_parameters": {"full_attention": parameters}}), "rope_parameters.full_attention");
        },
    },
    Row {
        file: "config.json",
        key: "`max_position_embeddings`",
        behaviour: "the context; times `factor` of `linear`, and at least `factor` times the original length of `yarn`",
        check: || {
            assert_eq!(read(&json!({})).unwrap().max_positions, 64);
            let linear = json!({"rope_scaling": {"rope_type": "linear", "factor": 4.0}});
            assert_eq!(read(&linear).unwrap().max_positions, 256);
            let yarn = json!({"rope_scaling": {"rope_type": "yarn", "factor": 8.0,
                "original_max_position_embeddings": 32}});
            assert_eq!(read(&yarn).unwrap().max_positions, 256);
        },
    },
    Row {
        file: "config.json",
        key: "`partial_rotary_factor` other than 1, `rotary_pct`, `no_rope_layers`, `alibi`, any other key about positions",
        behaviour: "refused by name",
        check: || {
            for (keys, named) in [
                (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
                (json!({"rotary_pct": 0.25}), "rotary_pct"),
                (json!({"no_rope_layers": [1]}), "no_rope_layers"),
                (json!({"alibi": true}), "alibi"),
            ] {
                refused(&keys, named);
            }
        },
    },
    Row {
        file: "config.json",
        key: "`quantization_config`, `quantization`, `compression_config`",
        behaviour: "refused with the method; so are folders with `quantize_config.json` or `hf_quant_config.json`",
        check: || {
            refused(&json!({"quantization_config": {"quant_method": "awq"}}), "quant_method `awq`");
            refused(&json!({"quantization": {"bits": 4}}), "take the unquantised checkpoint or a GGUF");
            let folder = folder(&[("quantize_config.json", "{}")]);
            let error = HfCheckpoint::open(folder.path()).err().unwrap().to_string();
            assert!(error.contains("quantize_config.json"), "{error}");
        },
    },
    Row {
        file: "adapter_config.json",
        key: "the file being there",
        behaviour: "refused: an adapter is merged into its base model first",
        check: || {
            let folder = folder(&[("adapter_config.json", r#"{"base_model_name_or_path": "org/base"}"#)]);
            let error = HfCheckpoint::open(folder.path()).err().unwrap().to_string();
            assert!(error.contains("org/base") && error.contains("merge"), "{error}");
        },
    },
    Row {
        file: "any text file",
        key: "byte order mark, encoding",
        behaviour: "a mark before UTF-8 is skipped; UTF-16, UTF-32, Git LFS pointers and web pages are refused as such",
        check: || {
            let folder = folder(&[]);
            let open = |bytes: &[u8]| {
                fs::write(folder.path().join("config.json"), bytes).unwrap();
                HfCheckpoint::open(folder.path()).err().unwrap().to_string()
            };
            assert!(open(b"\xef\xbb\xbf{}").contains("model_type"));
            assert!(open(b"{\0}\0").contains("UTF-16") && open(b"\xff\xfe{\0").contains("UTF-16"));
            assert!(open(b"version https://git-lfs.github.com/spec/v1\n").contains("Git LFS pointer"));
        },
    },
    Row {
        file: "weights",
        key: "dtype of every matrix, over all shards",
        behaviour: "`--dtype auto` is bf16 or f16 where all matrices are, else f32; vectors are kept in f32",
        check: || {
            let tensor = |shape: &[usize], dtype| Tensor::ones(shape, dtype, &Device::Cpu).unwrap();
            let of = |more: &[(&str, DType)]| {
                let matrices = more.iter().map(|(name, dtype)| ((*name).to_owned(), tensor(&[2, 2], *dtype)));
                let vector = ("norm".to_owned(), tensor(&[2], DType::F32));
                TensorMap(matrices.chain([vector]).collect()).dtype()
            };
            assert_eq!(of(&[("a", DType::BF16), ("b", DType::BF16)]), DType::BF16);
            assert_eq!(of(&[("a", DType::BF16), ("b", DType::F32)]), DType::F32);
            assert_eq!(of(&[("a", DType::BF16), ("b", DType::F16)]), DType::F32);
        },
    },
];

pub const GGUF: &[Row] = &[
    Row {
        file: "GGUF",
        key: "`rope.freq_base`, `rope.scaling.type`, `rope.scaling.factor`, `rope.scale_linear`",
        behaviour: "as in llama.cpp: `none`, `linear` (also where a factor has no type) and `yarn`; other types are refused",
        check: || {
            let linear = gguf(&[("llama.rope.scaling.factor", Value::F32(4.0))]).unwrap();
            assert_eq!(linear.position, position(1e4, RopeScaling::Linear { factor: 4.0 }));
            assert_eq!(linear.max_positions, 256);
            let error = gguf(&[("llama.rope.scaling.type", text("longrope"))]).unwrap_err();
            assert!(error.contains("rotary scaling `longrope`"), "{error}");
        },
    },
    Row {
        file: "GGUF",
        key: "`rope.scaling.original_context_length`, `attn_factor`, `yarn_attn_factor`, `yarn_beta_fast`, \
              `yarn_beta_slow`, `yarn_ext_factor`",
        behaviour: "those of `yarn`; any other key under `rope.` is refused by name, `rope.scaling.finetuned` has no effect",
        check: || {
            let yarn = [
                ("llama.rope.scaling.type", text("yarn")),
                ("llama.rope.scaling.factor", Value::F32(4.0)),
                ("llama.rope.scaling.original_context_length", Value::U32(32)),
                ("llama.rope.scaling.finetuned", Value::Bool(true)),
            ];
            assert_eq!(gguf(&yarn).unwrap().max_positions, 128);
            let error = gguf(&[("llama.rope.scaling.alpha", Value::F32(2.0))]).unwrap_err();
            assert!(error.contains("llama.rope.scaling.alpha"), "{error}");
        },
    },
    Row {
        file: "GGUF",
        key: "`split.no`, `split.count`, `split.tensors.count`",
        behaviour: "a model in parts is opened by its first; the others are found beside it by name",
        check: || {
            let parts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cases/split-gguf");
            assert_eq!(Gguf::open(parts.join("m-00001-of-00002.gguf")).unwrap().files().len(), 2);
            let error = Gguf::open(parts.join("m-00002-of-00002.gguf")).err().unwrap().to_string();
            assert!(error.contains("part 2 of 2"), "{error}");
        },
    },
];
