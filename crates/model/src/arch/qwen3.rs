//! Qwen3: an RMSNorm on every query and key head, heads of an explicit width, no biases.

use super::config::Config;
use super::{Arch, qwen2};
use crate::error::Result;

pub(super) fn from_config(config: &Config<'_>) -> Result<Arch> {
    Ok(Arch { sliding: qwen2::sliding(config)?, qk_norm: true, ..config.common()? })
}
