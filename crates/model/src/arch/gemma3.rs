//! Gemma 3: norms before and after attention and MLP, whose files hold the weights minus one; normed heads with an
//! explicit width; a sliding window in five of six layers, with its own rotary base; scaled embeddings; and GELU.

use super::config::Config;
use super::rope_config::Bases;
use super::{Activation, Arch, Norms, QkNorm, SlidingLayers};
use crate::error::{ModelError, Result};
use crate::load::gguf::Gguf;

/// The rotary bases that are used if a file gives none.
const BASES: Bases = Bases { full: 1e6, sliding: 1e4 };
/// Every layer whose number is a multiple of this sees all tokens.
const PERIOD: usize = 6;
/// The number of layers of the 27B model. Its scores are scaled by the width divided by the number of heads, not by the
/// head width.
const LAYERS_27B: usize = 62;

/// The properties that are the same for both kinds of files.
fn specialised(arch: Arch) -> Arch {
    Arch {
        norms: Norms::Around,
        qk_norm: QkNorm::PerHead,
        activation: Activation::GeluTanh,
        embedding_scale: (arch.hidden as f64).sqrt(),
        ..arch
    }
}

pub(super) fn from_config(config: &Config<'_>) -> Result<Arch> {
    let activation = if config.get("hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" };
    if config.get(activation).is_some() && config.text(activation)? != "gelu_pytorch_tanh" {
        return Err(config.unsupported("hidden_activation", config.text(activation)?, "gelu_pytorch_tanh"));
    }
    if config.flag("use_bidirectional_attention")? {
        return Err(config.unsupported("use_bidirectional_attention", "true".to_owned(), "false: a text generator"));
    }
    let max = config.size_or("max_position_embeddings", 131_072)?;
    let positions = config.positions_by_type(&BASES, max)?;
    let head_dim = config.size_or("head_dim", 256)?;
    let shape = config.shape(head_dim, positions.full, positions.max)?;
    let scalar = config.optional_float("query_pre_attn_scalar")?.unwrap_or(256.0);
    let tokens = config.size_or("sliding_window", 4096)?;
    let period = config.size_or("sliding_window_pattern", PERIOD)?;
    if period == 0 {
        return Err(ModelError::bad_value(config.path, "sliding_window_pattern", "at least 1", "0"));
    }
    let sliding = match config.sliding_by_type(tokens, shape.layers)? {
        Some(sliding) => sliding,
        None => SlidingLayers::but_every(period, shape.layers, tokens).unless_none(),
    };
    Ok(Arch {
        norms_less_one: true,
        score_scale: Some(scalar.powf(-0.5)),
        sliding: sliding.map(|sliding| SlidingLayers { position: positions.sliding, ..sliding }),
        // Gemma 3 checkpoints omit the key, and the default is true.
        tied_head: config.get("tie_word_embeddings").is_none() || config.flag("tie_word_embeddings")?,
        ..specialised(shape)
    })
}

/// In GGUF, the converter has already added one to the weights of norms.
pub(super) fn from_metadata(file: &Gguf, arch: Arch) -> Result<Arch> {
    // A number of heads of zero is refused later. Here it must not be a divisor.
    let share = arch.hidden.checked_div(arch.heads).unwrap_or(arch.head_dim);
    let width = if arch.layers == LAYERS_27B { share } else { arch.head_dim };
    let sliding = super::sliding_metadata::sliding_with_period(file, &arch, PERIOD)?;
    let local = super::rope_metadata::local(file, BASES.sliding)?;
    let sliding = sliding.map(|sliding| SlidingLayers { position: Some(local), ..sliding });
    Ok(Arch { sliding, score_scale: Some(1.0 / (width as f64).sqrt()), ..specialised(arch) })
}
