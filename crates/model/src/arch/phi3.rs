//! Phi-3 and Phi-4: q, k and v in one matrix, gate and up in another, and in some a sliding window in every layer. The
//! models for long contexts have a rescaling of their own (`longrope`), which is refused.

use super::config::Config;
use super::{Arch, Qkv, SlidingLayers};
use crate::error::Result;

/// What both kinds of files say in the same way.
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
