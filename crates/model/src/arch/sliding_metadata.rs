//! What a GGUF says about sliding layers.

use candle_core::quantized::gguf_file::Value;

use super::{Arch, SlidingLayers};
use crate::error::{ModelError, Result};
use crate::load::gguf::Gguf;

/// The sliding layers of a family in which all layers slide except every `period`th one, unless the file says which
/// layers do.
pub(super) fn sliding_with_period(file: &Gguf, arch: &Arch, period: usize) -> Result<Option<SlidingLayers>> {
    let Some(tokens) = arch.sliding.as_ref().map(|sliding| sliding.tokens) else { return Ok(None) };
    let key = format!("{}.attention.sliding_window_pattern", file.str("general.architecture")?);
    let layers = arch.layers;
    let sliding = match file.optional(&key) {
        None => SlidingLayers::but_every(period, layers, tokens),
        Some(Value::Array(flags)) => {
            let flags: Option<Vec<bool>> = flags.iter().map(|flag| flag.to_bool().ok()).collect();
            let flags = flags.filter(|flags| flags.len() == layers).ok_or_else(|| {
                let expected = format!("true or false for each of {layers} layers");
                ModelError::bad_value(file.path(), &key, expected, "another array")
            })?;
            SlidingLayers { tokens, layers: flags, position: None }
        }
        Some(_) => SlidingLayers::but_every(file.size(&key)?.max(1), layers, tokens),
    };
    Ok(sliding.unless_none())
}
