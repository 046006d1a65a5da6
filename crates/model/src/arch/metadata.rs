//! The keys that the GGUF files of all families share.

use super::sliding_metadata::sliding_with_period;
use super::{
    Activation, Arch, Norms, QkNorm, Qkv, SlidingLayers, even_share, gemma3, olmo2, phi3, rope_metadata, validate,
};
use crate::error::{ModelError, Result};
use crate::load::gguf::Gguf;

/// The architecture of a file, read as the family that the file names.
pub(super) fn read(file: &Gguf) -> Result<Arch> {
    let arch = common(file)?;
    match file.str("general.architecture")? {
        "gemma3" => gemma3::from_metadata(file, arch),
        "olmo2" => olmo2::from_metadata(file, arch),
        "phi3" => Ok(phi3::specialised(all_slide(file, arch)?)),
        _ => all_slide(file, arch),
    }
}

/// Every layer slides, unless the file says which layers do.
fn all_slide(file: &Gguf, arch: Arch) -> Result<Arch> {
    Ok(Arch { sliding: sliding_with_period(file, &arch, usize::MAX)?, ..arch })
}

/// The keys that all families share. Each family has its own prefix, such as `llama.`.
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
    for name in ["attn_logit_softcapping", "final_logit_softcapping", "attention.max_alibi_bias", "attention.clamp_kqv"]
    {
        let key = key(name);
        if file.optional(&key).is_some() && file.float(&key)? != 0.0 {
            let (expected, found) = ("no such key, or 0: nothing here reads it", file.float(&key)?.to_string());
            return Err(ModelError::bad_value(file.path(), key, expected, found));
        }
    }
    // Scales of other architectures. The values 0 and 1 change nothing.
    for name in ["logit_scale", "embedding_scale", "residual_scale"] {
        let key = key(name);
        if file.optional(&key).is_some() && ![0.0, 1.0].contains(&file.float(&key)?) {
            let (expected, found) = ("no such key, or 1: nothing here reads it", file.float(&key)?.to_string());
            return Err(ModelError::bad_value(file.path(), key, expected, found));
        }
    }
    for (name, read) in [("attention.causal", true), ("use_parallel_residual", false)] {
        let key = key(name);
        if file.optional(&key).is_some() && file.flag(&key)? != read {
            return Err(ModelError::bad_value(
                file.path(),
                key,
                format!("no such key, or {read}"),
                (!read).to_string(),
            ));
        }
    }
    let scale = key("attention.scale");
    let layers = validate::layers(file.path(), &key("block_count"), file.size(&key("block_count"))?)?;
    let (position, max_positions) = rope_metadata::positions(file, head_dim)?;
    let sliding = match file.optional(&key("attention.sliding_window")) {
        Some(_) => Some(file.size(&key("attention.sliding_window"))?).filter(|&tokens| tokens > 0),
        None => None,
    };
    Ok(Arch {
        hidden,
        layers,
        heads,
        kv_heads: match file.optional(&key("attention.head_count_kv")) {
            Some(_) => file.size(&key("attention.head_count_kv"))?,
            None => heads,
        },
        head_dim,
        intermediate: file.size(&key("feed_forward_length"))?,
        vocab,
        rms_eps: shortest_f64(file.float(&key("attention.layer_norm_rms_epsilon"))?),
        position,
        sliding: sliding.map(|tokens| SlidingLayers::from_layer(0, layers, tokens)),
        max_positions,
        qkv: if file.has_tensor("blk.0.attn_q.bias") { Qkv::Biased } else { Qkv::Separate },
        qk_norm: if file.has_tensor("blk.0.attn_q_norm.weight") { QkNorm::PerHead } else { QkNorm::None },
        norms: Norms::Before,
        norms_less_one: false,
        activation: Activation::Silu,
        packed_mlp: false,
        embedding_scale: 1.0,
        // llama.cpp writes 0 for no scale.
        score_scale: match file.optional(&scale) {
            Some(_) => Some(file.float(&scale)?).filter(|&scale| scale != 0.0),
            None => None,
        },
        tied_head: !file.has_tensor("output.weight"),
        normalised_head: false,
    })
}

/// The number that the author wrote: GGUF stores `1e-5` as the nearest f32, 9.99999974e-6.
fn shortest_f64(stored: f64) -> f64 {
    (stored as f32).to_string().parse().unwrap_or(stored)
}
