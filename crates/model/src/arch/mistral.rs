//! Mistral: heads of an explicit width, and in early versions a sliding window in every layer.

use super::config::Config;
use super::{Arch, SlidingLayers};
use crate::error::Result;

pub(super) fn from_config(config: &Config<'_>) -> Result<Arch> {
    let arch = config.common()?;
    let sliding = match config.get("sliding_window") {
        None => None,
        Some(_) => Some(SlidingLayers { tokens: config.size("sliding_window")?, from_layer: 0 }),
    };
    Ok(Arch { sliding, ..arch })
}
