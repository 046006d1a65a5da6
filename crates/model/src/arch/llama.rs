//! The Llama family: Llama 2 and 3, and what is shaped like them (SmolLM2, TinyLlama).

use std::path::Path;

use serde_json::{Map, Value};

use super::{Arch, RopeScaling};
use crate::error::{ModelError, Result};
use crate::load::gguf::Gguf;

/// `model_type` values of Hugging Face configurations that [`Arch::from_hf_config`] understands.
pub const HF_MODEL_TYPES: &[&str] = &["llama"];

/// Llama 2's and Hugging Face's default rotary base, used where a file names none.
const DEFAULT_ROPE_THETA: f64 = 10_000.0;

pub(super) fn from_gguf(file: &Gguf) -> Result<Arch> {
    let heads = file.size("llama.attention.head_count")?;
    let hidden = file.size("llama.embedding_length")?;
    let head_dim = match file.optional("llama.attention.key_length") {
        Some(_) => file.size("llama.attention.key_length")?,
        None => even_share(file.path(), "llama.attention.head_count", hidden, heads)?,
    };
    let same = |key: &str, expected: usize, what: &str| -> Result<()> {
        match file.optional(key).map(|_| file.size(key)).transpose()? {
            Some(found) if found != expected => {
                Err(ModelError::bad_value(file.path(), key, format!("{expected}, {what}"), found.to_string()))
            }
            _ => Ok(()),
        }
    };
    same("llama.attention.value_length", head_dim, "the key length")?;
    same("llama.rope.dimension_count", head_dim, "the head width")?;
    let vocab = file.array_len("tokenizer.ggml.tokens")?;
    same("llama.vocab_size", vocab, "the number of tokenizer tokens")?;
    if file.optional("llama.rope.scaling.type").is_some() {
        let found = file.str("llama.rope.scaling.type")?;
        if found != "none" {
            return Err(ModelError::Unsupported {
                path: file.path().to_owned(),
                what: "rotary scaling",
                found: found.to_owned(),
                supported: "none".to_owned(),
            });
        }
    }
    Ok(Arch {
        hidden,
        layers: file.size("llama.block_count")?,
        heads,
        kv_heads: match file.optional("llama.attention.head_count_kv") {
            Some(_) => file.size("llama.attention.head_count_kv")?,
            None => heads,
        },
        head_dim,
        intermediate: file.size("llama.feed_forward_length")?,
        vocab,
        rms_eps: shortest_f64(file.float("llama.attention.layer_norm_rms_epsilon")?),
        rope_theta: match file.optional("llama.rope.freq_base") {
            Some(_) => file.float("llama.rope.freq_base")?,
            None => DEFAULT_ROPE_THETA,
        },
        rope_scaling: RopeScaling::None,
        max_positions: file.size("llama.context_length")?,
        tied_head: !file.has_tensor("output.weight"),
        qkv_bias: false,
    })
}

/// The number its author wrote: GGUF stores `1e-5` as the nearest f32, 9.99999974e-6.
fn shortest_f64(stored: f64) -> f64 {
    (stored as f32).to_string().parse().unwrap_or(stored)
}

fn even_share(path: &Path, key: &str, hidden: usize, heads: usize) -> Result<usize> {
    if heads > 0 && hidden.is_multiple_of(heads) {
        return Ok(hidden / heads);
    }
    let expected = format!("a divisor of the hidden width {hidden}");
    Err(ModelError::bad_value(path, key, expected, heads.to_string()))
}

/// One JSON object of a `config.json`, with errors that name the file and the key.
struct Config<'a> {
    path: &'a Path,
    /// Name of the enclosing object with its dot, or nothing at the top.
    prefix: &'static str,
    keys: &'a Map<String, Value>,
}

impl Config<'_> {
    /// The value of a key; an explicit `null` counts as absent.
    fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    fn need<T>(&self, key: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Result<T> {
        let name = format!("{}{key}", self.prefix);
        let value =
            self.get(key).ok_or_else(|| ModelError::MissingKey { path: self.path.to_owned(), key: name.clone() })?;
        read(value).ok_or_else(|| ModelError::bad_value(self.path, name, expected, value.to_string()))
    }

    fn size(&self, key: &str) -> Result<usize> {
        let read = |v: &Value| v.as_u64().and_then(|v| usize::try_from(v).ok());
        self.need(key, "a whole number", read)
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        self.get(key).map_or(Ok(default), |_| self.size(key))
    }

    fn float(&self, key: &str) -> Result<f64> {
        self.need(key, "a number", Value::as_f64)
    }

    fn flag(&self, key: &str) -> Result<bool> {
        self.get(key).map_or(Ok(false), |_| self.need(key, "true or false", Value::as_bool))
    }

    fn text(&self, key: &str) -> Result<String> {
        self.need(key, "a string", |v| v.as_str().map(str::to_owned))
    }

    fn object(&self, key: &str, prefix: &'static str) -> Result<Option<Config<'_>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(keys)) => Ok(Some(Config { path: self.path, prefix, keys })),
            Some(other) => Err(ModelError::bad_value(self.path, key, "an object", other.to_string())),
        }
    }

    fn unsupported(&self, what: &'static str, found: String, supported: &str) -> ModelError {
        ModelError::Unsupported { path: self.path.to_owned(), what, found, supported: supported.to_owned() }
    }
}

pub(super) fn from_hf_config(json: &str, path: &Path) -> Result<Arch> {
    let malformed = |detail: String| ModelError::Malformed { path: path.to_owned(), format: "config.json", detail };
    let value: Value = serde_json::from_str(json).map_err(|e| malformed(e.to_string()))?;
    let keys = value.as_object().ok_or_else(|| malformed("the top level is not an object".to_owned()))?;
    let config = Config { path, prefix: "", keys };

    let model_type = config.text("model_type")?;
    if !HF_MODEL_TYPES.contains(&model_type.as_str()) {
        return Err(config.unsupported("model_type", model_type, &HF_MODEL_TYPES.join(", ")));
    }
    if config.get("hidden_act").is_some() && config.text("hidden_act")? != "silu" {
        return Err(config.unsupported("hidden_act", config.text("hidden_act")?, "silu"));
    }
    for key in ["attention_bias", "mlp_bias"] {
        if config.flag(key)? {
            return Err(config.unsupported("bias", key.to_owned(), "none for model_type llama"));
        }
    }
    let heads = config.size("num_attention_heads")?;
    let hidden = config.size("hidden_size")?;
    let head_dim = match config.get("head_dim") {
        Some(_) => config.size("head_dim")?,
        None => even_share(path, "num_attention_heads", hidden, heads)?,
    };
    let (rope_theta, rope_scaling) = rope(&config)?;
    Ok(Arch {
        hidden,
        layers: config.size("num_hidden_layers")?,
        heads,
        kv_heads: config.size_or("num_key_value_heads", heads)?,
        head_dim,
        intermediate: config.size("intermediate_size")?,
        vocab: config.size("vocab_size")?,
        rms_eps: config.float("rms_norm_eps")?,
        rope_theta,
        rope_scaling,
        max_positions: config.size("max_position_embeddings")?,
        tied_head: config.flag("tie_word_embeddings")?,
        qkv_bias: false,
    })
}

/// Rotary base and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).
fn rope(config: &Config<'_>) -> Result<(f64, RopeScaling)> {
    let parameters = config.object("rope_parameters", "rope_parameters.")?;
    let old = config.object("rope_scaling", "rope_scaling.")?;
    let theta = match &parameters {
        Some(parameters) if parameters.get("rope_theta").is_some() => parameters.float("rope_theta")?,
        _ if config.get("rope_theta").is_some() => config.float("rope_theta")?,
        _ => DEFAULT_ROPE_THETA,
    };
    let Some(scaling) = parameters.or(old) else {
        return Ok((theta, RopeScaling::None));
    };
    let kind = if scaling.get("rope_type").is_some() { "rope_type" } else { "type" };
    let rope_scaling = match scaling.get(kind).map(|_| scaling.text(kind)).transpose()?.as_deref() {
        None | Some("default") => RopeScaling::None,
        Some("llama3") => RopeScaling::Llama3 {
            factor: scaling.float("factor")?,
            low_freq_factor: scaling.float("low_freq_factor")?,
            high_freq_factor: scaling.float("high_freq_factor")?,
            original_max_positions: scaling.size("original_max_position_embeddings")?,
        },
        Some(other) => {
            return Err(config.unsupported("rope_type", other.to_owned(), "default, llama3"));
        }
    };
    Ok((theta, rope_scaling))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LLAMA31: &str = r#"{"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32,
        "num_key_value_heads": 8, "num_hidden_layers": 32, "intermediate_size": 14336, "vocab_size": 128256,
        "rms_norm_eps": 1e-05, "max_position_embeddings": 131072, "rope_theta": 500000.0, "rope_scaling": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3"}, "tie_word_embeddings": false, "pretraining_tp": 1, "head_dim": null}"#;

    fn read(json: &str) -> Result<Arch> {
        Arch::from_hf_config(json, Path::new("config.json"))
    }

    #[test]
    fn both_rope_spellings_mean_the_same() {
        let old = read(LLAMA31).unwrap();
        let new = LLAMA31
            .replace("\"rope_theta\": 500000.0, \"rope_scaling\"", "\"rope_parameters\"")
            .replace("\"rope_type\": \"llama3\"", "\"rope_type\": \"llama3\", \"rope_theta\": 500000.0");
        assert_ne!(new, LLAMA31);
        assert_eq!(read(&new).unwrap(), old);
        assert_eq!((old.head_dim, old.kv_heads, old.rope_theta), (128, 8, 5e5));
    }

    #[test]
    fn errors_name_the_key() {
        for (from, to, named) in [
            ("4096", "4097", "num_attention_heads"),
            ("\"num_key_value_heads\": 8", "\"num_key_value_heads\": 5", "kv_heads"),
            ("14336", "\"wide\"", "intermediate_size"),
            ("\"vocab_size\"", "\"vocab\"", "vocab_size"),
            ("\"model_type\": \"llama\"", "\"model_type\": \"mamba\"", "mamba"),
            ("llama3", "yarn", "yarn"),
            ("131072", "-1", "max_position_embeddings"),
            ("\"factor\": 8.0,", "", "rope_scaling.factor"),
        ] {
            let json = LLAMA31.replace(from, to);
            assert_ne!(json, LLAMA31);
            let error = read(&json).unwrap_err().to_string();
            assert!(error.contains(named) && error.contains("config.json"), "{error}");
        }
        assert!(read("[]").is_err());
        assert!(read("{").is_err());
    }
}
