//! Qwen2 and Qwen2.5: biases on q, k and v, a tied head in small models, and an optional sliding window in the upper
//! layers.

use super::config::Config;
use super::{Arch, Position, Qkv, SlidingLayers};
use crate::error::Result;

pub(super) fn from_config(config: &Config<'_>) -> Result<Arch> {
    let (arch, local) = config.common_by_type()?;
    Ok(Arch { sliding: sliding(config, arch.layers, local)?, qkv: Qkv::Biased, ..arch })
}

/// `sliding_window` counts only with `use_sliding_window`, and then from layer `max_window_layers` on. If `layer_types`
/// is present, it lists the sliding layers instead.
pub(super) fn sliding(config: &Config<'_>, layers: usize, position: Option<Position>) -> Result<Option<SlidingLayers>> {
    if !config.flag("use_sliding_window")? || config.get("sliding_window").is_none() {
        return Ok(None);
    }
    let tokens = config.size("sliding_window")?;
    let sliding = match config.sliding_by_type(tokens, layers)? {
        Some(sliding) => sliding,
        None => SlidingLayers::from_layer(config.size("max_window_layers")?, layers, tokens).unless_none(),
    };
    Ok(sliding.map(|sliding| SlidingLayers { position, ..sliding }))
}
