//! One decoder layer: attention through the cache seam, then the SwiGLU MLP, each after an RMSNorm.

use candle_core::Tensor;
use candle_nn::ops::rms_norm;
use kvcsr_cache::{AttendCx, LayerCache, Pattern};

use crate::arch::{Arch, Qkv};
use crate::error::{ModelError, Result};
use crate::linear::Linear;
use crate::load::Weights;
use crate::swiglu::swiglu;

/// Weights of some projections of one input as one matrix, so that their outputs come out side by side.
fn fused(weights: &Weights<'_>, names: &[String], bias: bool) -> Result<Linear> {
    let join = |parts: Vec<Tensor>| -> Result<Tensor> {
        Ok(if parts.len() == 1 { parts[0].clone() } else { Tensor::cat(&parts, 0)? })
    };
    let of = |parameter: &str| -> Vec<String> { names.iter().map(|name| format!("{name}.{parameter}")).collect() };
    let matrix = join(of("weight").iter().map(|name| weights.matrix(name)).collect::<Result<_>>()?)?;
    let bias = match bias {
        true => Some(join(of("bias").iter().map(|name| weights.vector(name)).collect::<Result<_>>()?)?),
        false => None,
    };
    Ok(Linear::new(matrix).with_bias(bias))
}

pub(crate) struct Layer {
    attention_norm: Tensor,
    /// q, k and v: `((H + 2 Hkv) D, hidden)`
    qkv: Linear,
    /// Per-head norms of q and k, `(D)` each.
    qk_norm: Option<(Tensor, Tensor)>,
    output: Linear,
    mlp_norm: Tensor,
    /// gate and up: `(2 I, hidden)`
    gate_up: Linear,
    down: Linear,
}

impl Layer {
    pub(crate) fn load(arch: &Arch, weights: &Weights<'_>, layer: usize) -> Result<Self> {
        let at = |name: &str| format!("model.layers.{layer}.{name}");
        let norm = |name: &str| weights.vector(&at(&format!("{name}.weight")));
        let linear = |names: &[&str], bias: bool| {
            let names: Vec<String> = names.iter().map(|name| at(name)).collect();
            fused(weights, &names, bias)
        };
        let qkv: &[&str] = match arch.qkv {
            Qkv::Packed => &["self_attn.W_pack"],
            Qkv::Separate | Qkv::Biased => &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        };
        let qk_norm = if arch.qk_norm { Some((norm("self_attn.q_norm")?, norm("self_attn.k_norm")?)) } else { None };
        Ok(Self {
            attention_norm: norm("input_layernorm")?,
            qkv: linear(qkv, arch.qkv == Qkv::Biased)?,
            qk_norm,
            output: linear(&["self_attn.o_proj"], false)?,
            mlp_norm: norm("post_attention_layernorm")?,
            gate_up: linear(&["mlp.gate_proj", "mlp.up_proj"], false)?,
            down: linear(&["mlp.down_proj"], false)?,
        })
    }

    /// Residual stream in and out: `(B T, hidden)`.
    pub(crate) fn forward(
        &self,
        arch: &Arch,
        x: &Tensor,
        (batch, tokens): (usize, usize),
        layer: usize,
        cache: &mut dyn LayerCache,
        cx: &AttendCx<'_>,
    ) -> Result<Tensor> {
        let (heads, kv_heads) = (arch.heads, arch.kv_heads);
        let eps = arch.rms_eps as f32;

        let normed = rms_norm(x, &self.attention_norm, eps)?;
        let qkv = self
            .qkv
            .forward(&normed)?
            .reshape((batch, tokens, heads + 2 * kv_heads, arch.head_dim))?
            .transpose(1, 2)?;
        let mut q = qkv.narrow(1, 0, heads)?.contiguous()?;
        let mut k = qkv.narrow(1, heads, kv_heads)?.contiguous()?;
        let v = qkv.narrow(1, heads + kv_heads, kv_heads)?.contiguous()?;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            q = rms_norm(&q, q_norm, eps)?;
            k = rms_norm(&k, k_norm, eps)?;
        }
        let cx = AttendCx { pattern: Pattern { reach: arch.reach(layer), ..cx.pattern }, ..*cx };
        let attended = cache
            .attend(&q, &k, &v, &cx)
            .map_err(ModelError::cache(layer))?
            .transpose(1, 2)?
            .reshape((batch * tokens, heads * arch.head_dim))?;
        let x = (x + self.output.forward(&attended)?)?;

        let normed = rms_norm(&x, &self.mlp_norm, eps)?;
        let inner = swiglu(&self.gate_up.forward(&normed)?)?;
        Ok((x + self.down.forward(&inner)?)?)
    }
}
