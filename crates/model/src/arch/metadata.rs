//! What the GGUF files of all families share.

use super::{Arch, DEFAULT_ROPE_THETA, Position, Qkv, RopeScaling, SlidingLayers, even_share};
use crate::error::{ModelError, Result};
use crate::load::gguf::{Gguf, ROPE_FREQS};

/// The keys all families share under the prefix of their own, such as `llama.`.
pub(super) fn common(file: &Gguf) -> Result<Arch> {
    let prefix = file.str("general.architecture")?;
    let key = |name: &str| format!("{prefix}.{name}");
    let heads = file.size(&key("attention.head_count"))?;
    let hidden = file.size(&key("embedding_length"))?;
    let head_dim = match file.optional(&key("attention.key_length")) {
        Some(_) => file.size(&key("attention.key_length"))?,
        None => even_share(file.path(), &key("attention.head_count"), hidden, heads)?,
    };
    let same = |name: &str, expected: usize, what: &str| -> Result<()> {
        let key = key(name);
        match file.optional(&key).map(|_| file.size(&key)).transpose()? {
            Some(found) if found != expected => {
                Err(ModelError::bad_value(file.path(), key, format!("{expected}, {what}"), found.to_string()))
            }
            _ => Ok(()),
        }
    };
    same("attention.value_length", head_dim, "the key length")?;
    same("rope.dimension_count", head_dim, "the head width")?;
    let vocab = file.array_len("tokenizer.ggml.tokens")?;
    same("vocab_size", vocab, "the number of tokenizer tokens")?;
    let scaled = file.optional(&key("rope.scaling.type")).is_some() && file.str(&key("rope.scaling.type"))? != "none";
    let legacy = file.optional(&key("rope.scale_linear")).is_some();
    if scaled || legacy {
        return Err(ModelError::Unsupported {
            path: file.path().to_owned(),
            what: "rotary scaling",
            found: if scaled { file.str(&key("rope.scaling.type"))? } else { "scale_linear" }.to_owned(),
            supported: "none, rope_freqs.weight".to_owned(),
        });
    }
    let theta = match file.optional(&key("rope.freq_base")) {
        Some(_) => file.float(&key("rope.freq_base"))?,
        None => DEFAULT_ROPE_THETA,
    };
    let sliding = match file.optional(&key("attention.sliding_window")) {
        Some(_) => Some(file.size(&key("attention.sliding_window"))?).filter(|&tokens| tokens > 0),
        None => None,
    };
    Ok(Arch {
        hidden,
        layers: file.size(&key("block_count"))?,
        heads,
        kv_heads: match file.optional(&key("attention.head_count_kv")) {
            Some(_) => file.size(&key("attention.head_count_kv"))?,
            None => heads,
        },
        head_dim,
        intermediate: file.size(&key("feed_forward_length"))?,
        vocab,
        rms_eps: shortest_f64(file.float(&key("attention.layer_norm_rms_epsilon"))?),
        position: Position::Rope { theta, scaling: rope_scaling(file, head_dim)? },
        sliding: sliding.map(|tokens| SlidingLayers { tokens, from_layer: 0 }),
        max_positions: file.size(&key("context_length"))?,
        tied_head: !file.has_tensor("output.weight"),
        qkv: if file.has_tensor("blk.0.attn_q.bias") { Qkv::Biased } else { Qkv::Separate },
        qk_norm: file.has_tensor("blk.0.attn_q_norm.weight"),
        normalised_head: false,
    })
}

/// The number its author wrote: GGUF stores `1e-5` as the nearest f32, 9.99999974e-6.
fn shortest_f64(stored: f64) -> f64 {
    (stored as f32).to_string().parse().unwrap_or(stored)
}

/// Llama 3.1's rescaling, which converters write out as one divisor per channel pair.
fn rope_scaling(file: &Gguf, head_dim: usize) -> Result<RopeScaling> {
    let Some(found) = file.tensor_shape(ROPE_FREQS) else { return Ok(RopeScaling::None) };
    let expected = vec![head_dim / 2];
    if found != expected {
        let (path, tensor) = (file.path().to_owned(), ROPE_FREQS.to_owned());
        return Err(ModelError::TensorShape { path, tensor, expected, found });
    }
    Ok(RopeScaling::Divided(file.dequantise(ROPE_FREQS)?.to_vec1()?))
}
