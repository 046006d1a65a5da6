//! Hugging Face's `config.json`: a reader whose errors name the file and the key, and the keys that all families share.

use std::path::Path;

use serde_json::{Map, Value};

use super::validate::layers;
use super::{Activation, Arch, Norms, Position, QkNorm, Qkv, SlidingLayers, even_share};
use crate::error::{ModelError, Result};

/// One JSON object of a `config.json`. Errors name the file and the key.
pub(super) struct Config<'a> {
    pub(super) path: &'a Path,
    /// The name of the enclosing object followed by a dot. Empty at the top level.
    pub(super) prefix: &'static str,
    pub(super) keys: &'a Map<String, Value>,
}

impl Config<'_> {
    /// The value of a key. An explicit `null` counts as absent.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn need<T>(&self, key: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Result<T> {
        let name = format!("{}{key}", self.prefix);
        let value =
            self.get(key).ok_or_else(|| ModelError::MissingKey { path: self.path.to_owned(), key: name.clone() })?;
        read(value).ok_or_else(|| ModelError::bad_value(self.path, name, expected, value.to_string()))
    }

    pub(super) fn size(&self, key: &str) -> Result<usize> {
        let read = |v: &Value| v.as_u64().and_then(|v| usize::try_from(v).ok());
        self.need(key, "a whole number", read)
    }

    pub(super) fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        self.get(key).map_or(Ok(default), |_| self.size(key))
    }

    pub(super) fn float(&self, key: &str) -> Result<f64> {
        self.need(key, "a number", Value::as_f64)
    }

    pub(super) fn flag(&self, key: &str) -> Result<bool> {
        self.get(key).map_or(Ok(false), |_| self.need(key, "true or false", Value::as_bool))
    }

    pub(super) fn text(&self, key: &str) -> Result<String> {
        self.need(key, "a string", |v| v.as_str().map(str::to_owned))
    }

    pub(super) fn object(&self, key: &str, prefix: &'static str) -> Result<Option<Config<'_>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(keys)) => Ok(Some(Config { path: self.path, prefix, keys })),
            Some(other) => Err(ModelError::bad_value(self.path, key, "an object", other.to_string())),
        }
    }

    pub(super) fn unsupported(&self, what: &'static str, found: String, supported: &str) -> ModelError {
        ModelError::Unsupported { path: self.path.to_owned(), what, found, supported: supported.to_owned() }
    }
}

impl Config<'_> {
    /// Reads the keys that most families share. The result is a decoder with rotary positions, plain projections and no
    /// other special features.
    pub(super) fn common(&self) -> Result<Arch> {
        let (arch, _) = self.common_by_type()?;
        if self.sliding_by_type(1, arch.layers)?.flatten().is_some() {
            let found = "sliding_attention".to_owned();
            return Err(self.unsupported("layer_types", found, "full_attention in this family"));
        }
        Ok(arch)
    }

    /// The same as [`Config::common`] for families whose layers may slide. Also returns the positions of sliding layers
    /// if they differ.
    pub(super) fn common_by_type(&self) -> Result<(Arch, Option<Position>)> {
        self.only_silu()?;
        let positions = self.positions(self.max_positions()?)?;
        Ok((self.shape(self.head_dim()?, positions.full, positions.max)?, positions.sliding))
    }

    /// Reads the keys that all families share.
    pub(super) fn shape(&self, head_dim: usize, position: Position, max_positions: usize) -> Result<Arch> {
        for key in ["attention_bias", "mlp_bias"] {
            if self.flag(key)? {
                return Err(self.unsupported("bias", key.to_owned(), "none but Qwen2's"));
            }
        }
        for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
            if self.get(key).is_some() {
                return Err(self.unsupported("softcapping", format!("{key} {}", self.float(key)?), "none: null"));
            }
        }
        let heads = self.size("num_attention_heads")?;
        Ok(Arch {
            hidden: self.size("hidden_size")?,
            layers: layers(self.path, "num_hidden_layers", self.size("num_hidden_layers")?)?,
            heads,
            kv_heads: self.size_or("num_key_value_heads", heads)?,
            head_dim,
            intermediate: self.size("intermediate_size")?,
            vocab: self.size("vocab_size")?,
            rms_eps: self.float("rms_norm_eps")?,
            position,
            sliding: None,
            max_positions,
            qkv: Qkv::Separate,
            qk_norm: QkNorm::None,
            norms: Norms::Before,
            norms_less_one: false,
            activation: Activation::Silu,
            packed_mlp: false,
            embedding_scale: 1.0,
            score_scale: None,
            tied_head: self.flag("tie_word_embeddings")?,
            normalised_head: false,
        })
    }

    /// `head_dim`, or the width divided by the number of heads if this key is missing.
    pub(super) fn head_dim(&self) -> Result<usize> {
        match self.get("head_dim") {
            Some(_) => self.size("head_dim"),
            None => {
                let heads = self.size("num_attention_heads")?;
                even_share(self.path, "num_attention_heads", self.size("hidden_size")?, heads)
            }
        }
    }

    /// Refuses all activations except SiLU.
    pub(super) fn only_silu(&self) -> Result<()> {
        if self.get("hidden_act").is_some() && self.text("hidden_act")? != "silu" {
            return Err(self.unsupported("hidden_act", self.text("hidden_act")?, "silu"));
        }
        Ok(())
    }

    /// The context length: `max_position_embeddings`, or Baichuan's `model_max_length`.
    pub(super) fn max_positions(&self) -> Result<usize> {
        if self.get("max_position_embeddings").is_none() && self.get("model_max_length").is_some() {
            return self.size("model_max_length");
        }
        self.size("max_position_embeddings")
    }

    /// The layers that slide according to `layer_types` (transformers 5). The outer option says whether the key exists.
    pub(super) fn sliding_by_type(&self, tokens: usize, layers: usize) -> Result<Option<Option<SlidingLayers>>> {
        let Some(types) = self.get("layer_types") else { return Ok(None) };
        let slides = |value: &Value| match value.as_str() {
            Some("full_attention") => Some(false),
            Some("sliding_attention") => Some(true),
            _ => None,
        };
        let sliding = types.as_array().and_then(|all| all.iter().map(slides).collect::<Option<Vec<bool>>>());
        let sliding = sliding.ok_or_else(|| {
            self.unsupported("layer_types", types.to_string(), "a list of full_attention and sliding_attention")
        })?;
        if sliding.len() != layers {
            let expected = format!("{layers} entries, one per layer");
            return Err(ModelError::bad_value(self.path, "layer_types", expected, sliding.len().to_string()));
        }
        Ok(Some(SlidingLayers { tokens, layers: sliding, position: None }.unless_none()))
    }

    /// Refuses weights with a quantisation that only its maker's program can read.
    pub(super) fn refuse_quantised(&self) -> Result<()> {
        for (key, what) in [
            ("quantization_config", "quantization_config: quant_method"),
            ("compression_config", "compression_config: quant_method"),
            ("quantization", "quantization"),
        ] {
            let empty = |value: &&Value| !value.as_object().is_some_and(Map::is_empty);
            let Some(value) = self.get(key).filter(empty) else { continue };
            let method = value.get("quant_method").and_then(Value::as_str);
            let found = method.map_or_else(|| value.to_string(), str::to_owned);
            let supported = "none in checkpoint folders; take the unquantised checkpoint or a GGUF";
            return Err(self.unsupported(what, found, supported));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::RopeScaling;
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
        assert_eq!((old.head_dim, old.kv_heads), (128, 8));
        assert!(matches!(old.position, Position::Rope { theta: 5e5, scaling: RopeScaling::Llama3 { .. } }));
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
