//! PyTorch's own attention, to compare with.

use std::time::Instant;

use tch::{Cuda, Device, Kind, Tensor, no_grad};

use crate::NeuralDictError;

/// Shapes of one decoded token's attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key-value heads.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
}

/// Seconds of `scaled_dot_product_attention` of one query token over `tokens` exact ones in bf16, the fastest of `rounds`.
///
/// # Errors
/// If the device is not there or libtorch refuses.
pub fn sdpa_seconds(device: &str, heads: Heads, tokens: usize, rounds: usize) -> Result<f64, NeuralDictError> {
    let device = crate::resolve_device(device)?;
    no_grad(|| {
        let make = |count: usize, tokens: usize| {
            Tensor::f_randn([1, count as i64, tokens as i64, heads.head_dim as i64], (Kind::Float, device))
                .and_then(|x| x.f_to_kind(Kind::BFloat16))
        };
        let (q, k, v) = (make(heads.heads, 1)?, make(heads.kv_heads, tokens)?, make(heads.kv_heads, tokens)?);
        let mut fastest = f64::INFINITY;
        for _ in 0..rounds.max(1) {
            wait(device);
            let begun = Instant::now();
            let out = Tensor::f_scaled_dot_product_attention::<&Tensor>(&q, &k, &v, None, 0.0, false, None, true)?;
            wait(device);
            drop(out);
            fastest = fastest.min(begun.elapsed().as_secs_f64());
        }
        Ok(fastest)
    })
}

fn wait(device: Device) {
    if let Device::Cuda(index) = device {
        Cuda::synchronize(index as i64);
    }
}
