//! Llama 2, 3 and 3.x, and models with the same structure (SmolLM2, TinyLlama). They need only the common keys.

use super::Arch;
use super::config::Config;
use crate::error::Result;

pub(super) fn from_config(config: &Config<'_>) -> Result<Arch> {
    config.common()
}
