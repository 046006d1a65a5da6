//! OLMo 2 and 3: norms after attention and MLP instead of before them, and norms of queries and keys over all heads
//! together. OLMo 3 has a sliding window in three of four layers.

use super::config::Config;
use super::rope_config::Bases;
use super::{Arch, Norms, QkNorm, SlidingLayers};
use crate::error::Result;
use crate::load::gguf::Gguf;

/// The rotary base of OLMo 3, if a file gives none.
const THETA_3: f64 = 5e5;
/// Every OLMo 3 layer whose number is a multiple of this sees all tokens.
const PERIOD: usize = 4;

fn specialised(arch: Arch) -> Arch {
    Arch { norms: Norms::After, qk_norm: QkNorm::Whole, ..arch }
}

pub(super) fn from_config(config: &Config<'_>) -> Result<Arch> {
    Ok(specialised(config.common()?))
}

/// OLMo 3: long contexts are scaled only in the layers that see everything.
pub(super) fn third_from_config(config: &Config<'_>) -> Result<Arch> {
    config.only_silu()?;
    let theta = config.optional_float("rope_theta")?.unwrap_or(THETA_3);
    let positions = config.positions_by_type(&Bases { full: theta, sliding: theta }, config.max_positions()?)?;
    let arch = config.shape(config.head_dim()?, positions.full, positions.max)?;
    let tokens = config.size_or("sliding_window", 4096)?;
    let sliding = match config.sliding_by_type(tokens, arch.layers)? {
        Some(sliding) => sliding,
        None => SlidingLayers::but_every(PERIOD, arch.layers, tokens).unless_none(),
    };
    let sliding = sliding.map(|sliding| SlidingLayers { position: positions.sliding, ..sliding });
    Ok(Arch { sliding, ..specialised(arch) })
}

/// A GGUF of OLMo 3 has the architecture of OLMo 2, with a window.
pub(super) fn from_metadata(file: &Gguf, arch: Arch) -> Result<Arch> {
    let sliding = super::sliding_metadata::sliding_with_period(file, &arch, PERIOD)?;
    let theta = super::rope_metadata::base(file)?;
    let local = super::rope_metadata::local(file, theta)?;
    let position = Some(local).filter(|local| *local != arch.position);
    Ok(Arch { sliding: sliding.map(|sliding| SlidingLayers { position, ..sliding }), ..specialised(arch) })
}
