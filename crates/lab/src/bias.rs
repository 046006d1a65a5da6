//! How long keys are with and without the bias of their projection.
//!
//! Qwen2 and Qwen2.5 add a bias to keys. It is the same for every token, so it tells nothing about a token; but a scheme that codes
//! keys as they are spends its precision on it.

use std::path::Path;

use kvcsr_codec::Kind;
use kvcsr_model::Decoder;
use kvcsr_report::KeyBiasRow;
use kvcsr_report::notebook::{Outcome, heldout_vectors};

/// The rows of [`kvcsr_report::figures::KeyBias`], over the first `tokens` held-out tokens of a run: one for each layer whose keys have
/// a bias.
///
/// # Errors
/// If files are missing, or the run is another model's.
pub fn key_lengths(run: &Path, decoder: &Decoder, tokens: usize) -> Outcome<Vec<KeyBiasRow>> {
    let mut rows = Vec::new();
    for layer in 0..decoder.geometry().layers {
        if let Some(bias) = decoder.key_bias(layer)? {
            let (keys, _) = heldout_vectors(run, layer, Kind::Key, tokens)?;
            let (found, width) = (keys.len(), bias.elem_count());
            let row = lengths(layer, &keys, &bias.flatten_all()?.to_vec1::<f32>()?, bias.dim(0)?);
            let other = || {
                format!(
                    "layer {layer}: {found} channels of keys are not whole tokens of {width}: is the run another model's?"
                )
            };
            rows.push(row.ok_or_else(other)?);
        }
    }
    Ok(rows)
}

/// The row of a layer with `keys`, `(T, Hkv, D)`, and `bias`, `(Hkv, D)`. `None` if the keys are not whole tokens.
fn lengths(layer: usize, keys: &[f32], bias: &[f32], heads: usize) -> Option<KeyBiasRow> {
    if keys.is_empty() || bias.is_empty() || !keys.len().is_multiple_of(bias.len()) {
        return None;
    }
    let squares = |x: f32| f64::from(x).powi(2);
    let vectors = (keys.len() / bias.len() * heads) as f64;
    let less = keys.chunks_exact(bias.len()).flat_map(|token| token.iter().zip(bias).map(|(x, bias)| x - bias));
    Some(KeyBiasRow {
        layer,
        keys: (keys.iter().copied().map(squares).sum::<f64>() / vectors).sqrt(),
        without: (less.map(squares).sum::<f64>() / vectors).sqrt(),
        bias: (bias.iter().copied().map(squares).sum::<f64>() / heads as f64).sqrt(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::Device;
    use kvcsr_fixtures::{random_weights, tiny_arch};
    use kvcsr_model::{Arch, Qkv, TensorMap};

    use super::*;
    use crate::testing::write_shard;

    #[test]
    fn lengths_are_root_mean_squares_over_tokens_and_heads() {
        // Two tokens of two heads of two channels, and a bias in the first head.
        let keys = [3.0, 4.0, 0.0, 1.0, 3.0, 4.0, 0.0, 1.0];
        let row = lengths(7, &keys, &[3.0, 3.0, 0.0, 0.0], 2).unwrap();
        assert_eq!((row.layer, row.keys, row.without, row.bias), (7, 13f64.sqrt(), 1.0, 3.0));
        assert!(lengths(0, &keys[..6], &[0.0; 4], 2).is_none() && lengths(0, &[], &[0.0; 4], 2).is_none());
    }

    #[test]
    fn every_biased_layer_of_a_run_has_a_row() {
        let arch = Arch { qkv: Qkv::Biased, ..tiny_arch() };
        let decoder = Decoder::new(arch.clone(), &TensorMap(random_weights(&arch, 3)), &Device::Cpu).unwrap();
        let run = tempfile::tempdir().unwrap();
        let shape = [arch.kv_heads, arch.head_dim];
        for layer in 0..arch.layers {
            // Keys that are the bias and nothing else.
            let bias = decoder.key_bias(layer).unwrap().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            write_shard(run.path(), "heldout", layer, Kind::Key, shape, &bias.repeat(20));
        }
        let rows = key_lengths(run.path(), &decoder, 10).unwrap();
        assert_eq!(rows.iter().map(|row| row.layer).collect::<Vec<_>>(), [0, 1, 2]);
        // Shards hold 16 bits.
        assert!(rows.iter().all(|row| row.without < 0.01 && (row.keys / row.bias - 1.0).abs() < 0.01), "{rows:?}");

        let plain = tiny_arch();
        let plain = Decoder::new(plain.clone(), &TensorMap(random_weights(&plain, 3)), &Device::Cpu).unwrap();
        assert!(key_lengths(run.path(), &plain, 10).unwrap().is_empty());
    }
}
