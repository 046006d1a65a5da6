//! Qwen2 and Qwen2.5: biases on q, k and v, in small models a tied head, and an optional sliding window in the upper
//! layers.

use super::config::Config;
use super::{Arch, Qkv, SlidingLayers};
use crate::error::Result;

pub(super) fn from_config(config: &Config<'_>) -> Result<Arch> {
    Ok(Arch { sliding: sliding(config)?, qkv: Qkv::Biased, ..config.common()? })
}

/// `sliding_window` counts only with `use_sliding_window`, and then from layer `max_window_layers` on, unless
/// `layer_types` spells the layers out.
pub(super) fn sliding(config: &Config<'_>) -> Result<Option<SlidingLayers>> {
    if !config.flag("use_sliding_window")? || config.get("sliding_window").is_none() {
        return Ok(None);
    }
    let tokens = config.size("sliding_window")?;
    if let Some(sliding) = config.sliding_by_type(tokens)? {
        return Ok(sliding);
    }
    let from_layer = config.size("max_window_layers")?;
    Ok((from_layer < config.size("num_hidden_layers")?).then_some(SlidingLayers { tokens, from_layer }))
}
