//! Llama 2, 3 and 3.x, and what is shaped like them (SmolLM2, TinyLlama): nothing beyond the common keys.

use super::Arch;
use super::config::Config;
use crate::error::Result;

pub(super) fn from_config(config: &Config<'_>) -> Result<Arch> {
    config.common()
}
