//! Mistral: heads with an explicit width and, in early versions, a sliding window in every layer.

use super::config::Config;
use super::{Arch, SlidingLayers};
use crate::error::Result;

pub(super) fn from_config(config: &Config<'_>) -> Result<Arch> {
    let (arch, position) = config.common_by_type()?;
    let sliding = match config.get("sliding_window") {
        None => None,
        Some(_) => {
            let tokens = config.size("sliding_window")?;
            let all = || Some(SlidingLayers::from_layer(0, arch.layers, tokens));
            config.sliding_by_type(tokens, arch.layers)?.unwrap_or_else(all)
        }
    };
    Ok(Arch { sliding: sliding.map(|sliding| SlidingLayers { position, ..sliding }), ..arch })
}
