//! Phi-3 and Phi-4: q, k and v are one matrix, and gate and up are another. Some models have a sliding window in every
//! layer. The models for long contexts have their own rescaling (`longrope`), which is refused.

use super::config::Config;
use super::{Arch, Qkv, SlidingLayers};
use crate::error::Result;

/// The properties that are the same for both kinds of files.
pub(super) fn specialised(arch: Arch) -> Arch {
    Arch { qkv: Qkv::Joined, packed_mlp: true, ..arch }
}

pub(super) fn from_config(config: &Config<'_>) -> Result<Arch> {
    let (arch, _) = config.common_by_type()?;
    let sliding = match config.get("sliding_window") {
        None => None,
        Some(_) => Some(SlidingLayers::from_layer(0, arch.layers, config.size("sliding_window")?)),
    };
    Ok(Arch { sliding, ..specialised(arch) })
}
