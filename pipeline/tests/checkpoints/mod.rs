//! Checkpoint folders like those of the paper's models: files, names, shapes and dtypes as published, but with two layers, random
//! weights and a vocabulary of made-up pieces. The published JSON files are in `tests/data/published`.

mod pickle;
mod pieces;
mod tensors;
mod tokenizers;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use self::tensors::{Dtype, Shape, Tensor};

/// Layers of every folder.
pub const LAYERS: usize = 2;

/// How a checkpoint keeps its weights.
#[derive(Clone, Copy)]
enum Files {
    /// Safetensors in this many shards, with their index.
    Safetensors(usize),
    /// One `pytorch_model.bin`.
    Pickle,
}

/// Its vocabulary.
#[derive(Clone, Copy)]
enum Vocabulary {
    Llama2,
    Llama3,
    Baichuan2,
}

/// A model of the paper.
pub struct Published {
    /// Our profile, and the folder of its files.
    pub profile: &'static str,
    dtype: Dtype,
    files: Files,
    vocabulary: Vocabulary,
}

/// All of them.
pub const ALL: [Published; 3] = [
    Published {
        profile: "llama2-7b-chat",
        dtype: Dtype::F16,
        files: Files::Safetensors(2),
        vocabulary: Vocabulary::Llama2,
    },
    Published {
        profile: "llama3-8b-instruct",
        dtype: Dtype::Bf16,
        files: Files::Safetensors(4),
        vocabulary: Vocabulary::Llama3,
    },
    Published {
        profile: "baichuan2-7b-chat",
        dtype: Dtype::Bf16,
        files: Files::Pickle,
        vocabulary: Vocabulary::Baichuan2,
    },
];

impl Published {
    fn source(&self, name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/published").join(self.profile).join(name)
    }

    /// Its `config.json` as published.
    pub fn config(&self) -> Value {
        serde_json::from_str(&fs::read_to_string(self.source("config.json")).unwrap()).unwrap()
    }

    /// Whether all of its query heads have keys and values of their own.
    pub fn is_wide(&self) -> bool {
        let Shape { hidden, kv_width, .. } = Shape::of(&self.config());
        hidden == kv_width
    }

    /// Writes the folder.
    pub fn write(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        let mut config = self.config();
        config["num_hidden_layers"] = LAYERS.into();
        let write = |name: &str, value: &Value| fs::write(folder.join(name), value.to_string()).unwrap();
        write("config.json", &config);
        for name in ["generation_config.json", "special_tokens_map.json"] {
            fs::copy(self.source(name), folder.join(name)).unwrap();
        }
        let own = fs::read_to_string(self.source("tokenizer_config.json")).unwrap();
        let mut settings: Value = serde_json::from_str(&own).unwrap();
        let vocab = Shape::of(&config).vocab;
        match self.vocabulary {
            Vocabulary::Llama2 => fs::write(folder.join("tokenizer.model"), tokenizers::llama2(vocab)).unwrap(),
            Vocabulary::Baichuan2 => fs::write(folder.join("tokenizer.model"), tokenizers::baichuan2(vocab)).unwrap(),
            Vocabulary::Llama3 => {
                write("tokenizer.json", &tokenizers::llama3(vocab));
                settings["added_tokens_decoder"] = tokenizers::llama3_special().collect();
            }
        }
        write("tokenizer_config.json", &settings);
        let weights = self.tensors(&config);
        match self.files {
            Files::Safetensors(shards) => tensors::write_shards(folder, &weights, self.dtype, shards),
            Files::Pickle => pickle::write(&folder.join("pytorch_model.bin"), &weights, self.dtype),
        }
    }

    /// Names and shapes of the checkpoint's tensors, in its order.
    fn tensors(&self, config: &Value) -> Vec<Tensor> {
        let Shape { hidden, intermediate, vocab, head_dim, kv_width } = Shape::of(config);
        let mut all = vec![Tensor::matrix("model.embed_tokens", vocab, hidden)];
        for layer in 0..LAYERS {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            let matrix = |part: &str, rows, columns| Tensor::matrix(&name(part), rows, columns);
            match self.vocabulary {
                Vocabulary::Baichuan2 => all.push(matrix("self_attn.W_pack", 3 * hidden, hidden)),
                _ => all.extend([
                    matrix("self_attn.q_proj", hidden, hidden),
                    matrix("self_attn.k_proj", kv_width, hidden),
                    matrix("self_attn.v_proj", kv_width, hidden),
                ]),
            }
            all.extend([
                matrix("self_attn.o_proj", hidden, hidden),
                matrix("mlp.gate_proj", intermediate, hidden),
                matrix("mlp.up_proj", intermediate, hidden),
                matrix("mlp.down_proj", hidden, intermediate),
                Tensor::norm(&name("input_layernorm"), hidden),
                Tensor::norm(&name("post_attention_layernorm"), hidden),
            ]);
            // Files of Llama 2 keep the frequencies of the rotation, in f32.
            if matches!(self.vocabulary, Vocabulary::Llama2) {
                all.push(Tensor::frequencies(&name("self_attn.rotary_emb.inv_freq"), head_dim));
            }
        }
        all.extend([Tensor::norm("model.norm", hidden), Tensor::matrix("lm_head", vocab, hidden)]);
        all
    }
}
