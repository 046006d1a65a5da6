//! Qwen3: an RMSNorm on every query and key head, heads with an explicit width, no biases.

use super::config::Config;
use super::{Arch, QkNorm, qwen2};
use crate::error::Result;

pub(super) fn from_config(config: &Config<'_>) -> Result<Arch> {
    let (arch, local) = config.common_by_type()?;
    Ok(Arch { sliding: qwen2::sliding(config, arch.layers, local)?, qk_norm: QkNorm::PerHead, ..arch })
}
