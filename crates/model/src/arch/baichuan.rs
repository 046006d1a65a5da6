//! Baichuan 1 and 2: one fused `W_pack` for q, k and v. In the second generation, the rows of the output projection
//! have unit length.
//!
//! The 7B models use rotary positions, and the 13B models use ALiBi. Their configurations do not say so: only the
//! published code differs. The 13B models are those with 40 heads.

use super::config::Config;
use super::{Arch, Position, Qkv};
use crate::error::Result;

/// Query heads of the 13B models.
const ALIBI_HEADS: usize = 40;
/// The vocabulary of the second generation. Its configurations also contain a `z_loss_weight`.
const VOCAB_2: usize = 125_696;

pub(super) fn from_config(config: &Config<'_>) -> Result<Arch> {
    let mut arch = config.common()?;
    if arch.heads == ALIBI_HEADS {
        arch.position = Position::Alibi;
    }
    arch.normalised_head = arch.vocab == VOCAB_2 || config.get("z_loss_weight").is_some();
    arch.qkv = Qkv::Packed;
    Ok(arch)
}
