//! What a GGUF says about positions. Every key under `rope.` is either used or refused.
//!
//! The defaults are those of llama.cpp (`llama_model::load_hparams` and `llama_context` of
//! <https://github.com/ggml-org/llama.cpp>).

use super::{DEFAULT_ROPE_THETA, Position, RopeScaling};
use crate::error::{ModelError, Result};
use crate::load::gguf::{Gguf, ROPE_FREQS};

/// Keys under `ARCHITECTURE.rope.` that are read here or with the shape.
const READ: [&str; 13] = [
    "dimension_count",
    "dimension_count_swa",
    "freq_base",
    "freq_base_swa",
    "scale_linear",
    "scaling.type",
    "scaling.factor",
    "scaling.original_context_length",
    "scaling.attn_factor",
    "scaling.yarn_attn_factor",
    "scaling.yarn_beta_fast",
    "scaling.yarn_beta_slow",
    "scaling.yarn_ext_factor",
];
/// Tensors of a rotary scaling that this crate does not support.
const LONG_ROPE: [&str; 2] = ["rope_factors_long.weight", "rope_factors_short.weight"];
/// Keys that have no effect on inference.
const WITHOUT_EFFECT: [&str; 1] = ["scaling.finetuned"];

/// The position encoding and the longest context of the layers that see everything.
pub(super) fn positions(file: &Gguf, head_dim: usize) -> Result<(Position, usize)> {
    if let Some(name) = LONG_ROPE.iter().find(|name| file.has_tensor(name)) {
        return Err(ModelError::Unsupported {
            path: file.path().to_owned(),
            what: "rotary scaling",
            found: format!("longrope (tensor {name})"),
            supported: format!("none, linear, yarn, {ROPE_FREQS}"),
        });
    }
    let prefix = format!("{}.rope.", file.str("general.architecture")?);
    for key in file.keys(&prefix) {
        let name = &key[prefix.len()..];
        // llama.cpp writes 0 if there is none.
        let none = name == "scaling.yarn_log_multiplier" && file.float(key).is_ok_and(|value| value == 0.0);
        if !READ.contains(&name) && !WITHOUT_EFFECT.contains(&name) && !none {
            let expected = "no such key: nothing here reads it, and leaving it out could change positions";
            return Err(ModelError::bad_value(file.path(), key, expected, file.shown(key)));
        }
    }
    let local = format!("{prefix}dimension_count_swa");
    if file.optional(&local).is_some() && file.size(&local)? != head_dim {
        let expected = format!("{head_dim}, the head width");
        return Err(ModelError::bad_value(file.path(), &local, expected, file.shown(&local)));
    }
    let context = file.size(&format!("{}.context_length", file.str("general.architecture")?))?;
    let scaling = scaling(file, &prefix, context)?;
    let gemma3 = file.str("general.architecture")? == "gemma3";
    // Gemma 3 writes the length of the scaled model.
    let yarn = matches!(scaling, RopeScaling::Yarn { .. });
    let scaled = if gemma3 && !yarn { context } else { scaling.positions(context) };
    let scaling = match (divisors(file, head_dim)?, scaling) {
        (None, scaling) => scaling,
        (Some(divided), RopeScaling::None) => divided,
        (Some(_), _) => {
            let key = format!("{prefix}scaling.type");
            let expected = format!("none beside {ROPE_FREQS}: the two say different things");
            return Err(ModelError::bad_value(file.path(), &key, expected, file.shown(&key)));
        }
    };
    Ok((Position::Rope { theta: base(file)?, scaling }, scaled))
}

/// The rotary base, `rope.freq_base`.
pub(super) fn base(file: &Gguf) -> Result<f64> {
    let key = format!("{}.rope.freq_base", file.str("general.architecture")?);
    if file.optional(&key).is_some() { file.float(&key) } else { Ok(DEFAULT_ROPE_THETA) }
}

/// The position encoding of layers with a window, in families where it differs. It is never rescaled.
pub(super) fn local(file: &Gguf, theta: f64) -> Result<Position> {
    let key = format!("{}.rope.freq_base_swa", file.str("general.architecture")?);
    let theta = if file.optional(&key).is_some() { file.float(&key)? } else { theta };
    Ok(Position::Rope { theta, scaling: RopeScaling::None })
}

fn scaling(file: &Gguf, prefix: &str, context: usize) -> Result<RopeScaling> {
    let key = |name: &str| format!("{prefix}{name}");
    let float = |name: &str, default: f64| match file.optional(&key(name)) {
        Some(_) => file.float(&key(name)),
        None => Ok(default),
    };
    // `scale_linear` is the older name of the factor. Zero means that there is none.
    let factor = match float("scaling.factor", 0.0)? {
        0.0 => float("scale_linear", 0.0)?,
        factor => factor,
    };
    let factor = if factor == 0.0 { 1.0 } else { factor };
    // Without a type, a factor means linear scaling.
    let kind = if file.optional(&key("scaling.type")).is_some() { file.str(&key("scaling.type"))? } else { "linear" };
    let attention = float("scaling.attn_factor", 1.0)? * float("scaling.yarn_attn_factor", 1.0)?;
    if kind != "yarn" {
        let only_yarn = ["attn_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_ext_factor"];
        let present = only_yarn.map(|name| key(&format!("scaling.{name}")));
        let neutral = |key: &String| file.float(key).is_ok_and(|value| value == 0.0 || value == 1.0);
        if let Some(key) = present.iter().find(|key| file.optional(key).is_some() && !neutral(key)) {
            let expected = format!("no such key beside rope.scaling.type `{kind}`");
            return Err(ModelError::bad_value(file.path(), key, expected, file.shown(key)));
        }
    }
    match kind {
        "none" => Ok(RopeScaling::None),
        "linear" if factor == 1.0 => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor }),
        "yarn" => {
            let mixed = float("scaling.yarn_ext_factor", 1.0)?;
            if mixed != 1.0 && mixed >= 0.0 {
                let key = key("scaling.yarn_ext_factor");
                return Err(ModelError::bad_value(file.path(), key, "1, YaRN as published", mixed.to_string()));
            }
            let original = key("scaling.original_context_length");
            let original = if file.optional(&original).is_some() { file.size(&original)? } else { context };
            Ok(RopeScaling::Yarn {
                factor,
                original_max_positions: original,
                beta_fast: float("scaling.yarn_beta_fast", 32.0)?,
                beta_slow: float("scaling.yarn_beta_slow", 1.0)?,
                truncate: true,
                attention_factor: attention * RopeScaling::yarn_attention(factor, 1.0),
            })
        }
        other => Err(ModelError::Unsupported {
            path: file.path().to_owned(),
            what: "rotary scaling",
            found: other.to_owned(),
            supported: "none, linear, yarn, rope_freqs.weight".to_owned(),
        }),
    }
}

/// Llama 3.1's rescaling. Converters write it as one divisor per channel pair.
fn divisors(file: &Gguf, head_dim: usize) -> Result<Option<RopeScaling>> {
    let Some(found) = file.tensor_shape(ROPE_FREQS) else { return Ok(None) };
    let expected = vec![head_dim / 2];
    if found != expected {
        let (path, tensor) = (file.path().to_owned(), ROPE_FREQS.to_owned());
        return Err(ModelError::TensorShape { path, tensor, expected, found });
    }
    Ok(Some(RopeScaling::Divided(file.dequantise(ROPE_FREQS)?.to_vec1()?)))
}
