//! Measures how fast encoding and attention are at the shapes of 7B models.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use kvcsr_cache::conformance::noise;
use kvcsr_cache::tensor::Attention;
use kvcsr_cache::tensor::pursuit::TensorAtoms;
use kvcsr_cache::{AttendCx, Geometry, Pattern, Rotary, SchemeContext, registry};
use kvcsr_codec::{Dictionary, Encoder, measured_bits};
use kvcsr_neuraldict::yardstick::{Heads, sdpa_seconds};

use super::Check;

const HEAD_DIM: usize = 128;
const SPARSITY: usize = 8;
/// Rounds of each measurement; the fastest counts.
const ROUNDS: usize = 5;

/// Waits until the device has finished its work.
fn wait(device: &Device) -> Result<()> {
    Ok(device.synchronize()?)
}

fn fastest(device: &Device, rounds: usize, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut fastest = f64::INFINITY;
    for _ in 0..rounds {
        wait(device)?;
        let begun = Instant::now();
        run()?;
        wait(device)?;
        fastest = fastest.min(begun.elapsed().as_secs_f64());
    }
    Ok(fastest)
}

/// Measures matching pursuit with eight atoms, compared with the host's kernels. More than 99.5 % of the atoms must be the same.
pub(super) fn encode(check: &mut Check) -> Result<()> {
    let (all, of) = if check.quick { (512, 64) } else { (16384, 4096) };
    for atoms in if check.quick { &[512][..] } else { &[1024, 8192][..] } {
        let dictionary = Arc::new(Dictionary::normalised(HEAD_DIM, noise(1, atoms * HEAD_DIM))?);
        let rows = noise(2, all * HEAD_DIM);
        let x = Tensor::from_vec(rows.clone(), (all, HEAD_DIM), &check.device)?;
        let table = Tensor::from_slice(dictionary.atoms(), (*atoms, HEAD_DIM), &check.device)?;
        let tensors = TensorAtoms::new(table);
        let mut coded = None;
        let there = fastest(&check.device, ROUNDS, || {
            coded = Some(tensors.pursue(&x, SPARSITY)?);
            Ok(())
        })?;
        let encoder = Encoder::new(dictionary);
        let (mut indices, mut coefficients) = (vec![0; of * SPARSITY], vec![0.0; of * SPARSITY]);
        let begun = Instant::now();
        encoder.encode(&rows[..of * HEAD_DIM], SPARSITY, &mut indices, &mut coefficients)?;
        let host = of as f64 / begun.elapsed().as_secs_f64();
        let found = match coded {
            Some((found, _)) => found.narrow(0, 0, of)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<u32>()?,
            None => Vec::new(),
        };
        let same = found.iter().zip(&indices).filter(|(a, b)| **a == u32::from(**b)).count();
        let share = same as f64 / (of * SPARSITY) as f64;
        let what = format!("N = {atoms}, d = {HEAD_DIM}, s = {SPARSITY}, vectors/s");
        let found = format!("{:.0}, {:.3} % the same", all as f64 / there, 100.0 * share);
        check.add("encode", what, found, format!("host {host:.0}"), share > 0.995);
    }
    Ok(())
}

/// Measures attention of one decoded token in one layer, compared with PyTorch's attention over exact bf16.
pub(super) fn decode(check: &mut Check) -> Result<()> {
    let shapes = [("Llama2-7B", 32, 32), ("Llama3-8B", 32, 8)];
    let (shapes, lengths) = if check.quick { (&shapes[1..], &[256][..]) } else { (&shapes[..], &[4096, 32768][..]) };
    for &(model, heads, kv_heads) in shapes {
        let geometry = Geometry { layers: 1, kv_heads, head_dim: HEAD_DIM };
        let cx = SchemeContext::untrained(geometry, if check.quick { 256 } else { 8192 })
            .with_attention(Attention::Tensor, &check.device);
        for &tokens in lengths {
            let shape = Heads { heads, kv_heads, head_dim: HEAD_DIM };
            let peer = sdpa_seconds(&check.torch, shape, tokens, ROUNDS)?;
            let rotary = Rotary::new(HEAD_DIM, 500_000.0, tokens + 2 * ROUNDS, &check.device)?;
            let tensor = |seed: u64, heads: usize, tokens: usize| -> Result<Tensor> {
                let x = Tensor::from_vec(
                    noise(seed, heads * tokens * HEAD_DIM),
                    (1, heads, tokens, HEAD_DIM),
                    &Device::Cpu,
                )?;
                Ok(x.to_device(&check.device)?.to_dtype(DType::BF16)?)
            };
            let (k, v) = (tensor(1, kv_heads, tokens)?, tensor(2, kv_heads, tokens)?);
            let (q, k1, v1) = (tensor(3, heads, 1)?, tensor(4, kv_heads, 1)?, tensor(5, kv_heads, 1)?);
            for name in ["dense-bf16", "csr-8", "csr+@2", "kivi-2", "gear-4"] {
                let mut cache = registry::build(name, &cx)?.after_prefill(0, &k, &v, &rotary)?;
                let mut start = tokens;
                let took = fastest(&check.device, ROUNDS, || {
                    let scale = 1.0 / (HEAD_DIM as f64).sqrt();
                    let pattern = Pattern::default();
                    cache.attend(&q, &k1, &v1, &AttendCx { start, rotary: &rotary, scale, pattern })?;
                    start += 1;
                    Ok(())
                })?;
                let bits = measured_bits(cache.footprint().total(), 2 * cache.len() * kv_heads * HEAD_DIM);
                let what = format!("{model}, {tokens} tokens, {name}, {bits} bits");
                let beside = format!("SDPA bf16 {:.3} ms, ratio {:.2}", 1e3 * peer, took / peer);
                check.add("decode", what, format!("{:.3} ms", 1e3 * took), beside, true);
            }
        }
    }
    Ok(())
}
