//! One decoder layer: attention through the cache seam, then a gated MLP. Each has RMSNorms before it, after it, or
//! both.

use candle_core::Tensor;
use candle_nn::ops::rms_norm;
use kvcsr_cache::{AttendCx, LayerCache, Pattern};

use crate::arch::{Activation, Arch, Norms, QkNorm, Qkv};
use crate::error::{ModelError, Result};
use crate::linear::Linear;
use crate::load::Weights;
use crate::swiglu::{geglu, swiglu};

/// Joins the weights of several projections of the same input into one matrix, so that their outputs are side by side.
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
    Ok(Linear::new(matrix, weights.kept).with_bias(bias))
}

pub(crate) struct Layer {
    attention: Around,
    /// q, k and v: `((H + 2 Hkv) D, hidden)`
    qkv: Linear,
    /// The norms of q and k, `(D)` each, or `(H D)` and `(Hkv D)`.
    qk_norm: Option<(Tensor, Tensor)>,
    output: Linear,
    mlp: Around,
    /// gate and up: `(2 I, hidden)`
    gate_up: Linear,
    down: Linear,
}

/// The norms before and after a part of a layer, `(hidden)` each.
struct Around {
    before: Option<Tensor>,
    after: Option<Tensor>,
}

impl Around {
    fn enter(&self, x: &Tensor, eps: f32) -> Result<Tensor> {
        Ok(self.before.as_ref().map_or(Ok(x.clone()), |norm| rms_norm(x, norm, eps))?)
    }

    /// Adds the output of the part to the residual stream `x`.
    fn leave(&self, x: &Tensor, output: Tensor, eps: f32) -> Result<Tensor> {
        let output = match &self.after {
            Some(norm) => rms_norm(&output, norm, eps)?,
            None => output,
        };
        Ok((x + output)?)
    }
}

impl Layer {
    pub(crate) fn load(arch: &Arch, weights: &Weights<'_>, layer: usize) -> Result<Self> {
        let at = |name: &str| format!("model.layers.{layer}.{name}");
        let norm = |name: &str| weights.norm(&at(&format!("{name}.weight")), arch);
        let linear = |names: &[&str], bias: bool| {
            let names: Vec<String> = names.iter().map(|name| at(name)).collect();
            fused(weights, &names, bias)
        };
        let qkv: &[&str] = match arch.qkv {
            Qkv::Packed => &["self_attn.W_pack"],
            Qkv::Joined => &["self_attn.qkv_proj"],
            Qkv::Separate | Qkv::Biased => &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        };
        let qk_norm = match arch.qk_norm {
            QkNorm::None => None,
            QkNorm::PerHead | QkNorm::Whole => Some((norm("self_attn.q_norm")?, norm("self_attn.k_norm")?)),
        };
        let gate_up: &[&str] = if arch.packed_mlp { &["mlp.gate_up_proj"] } else { &["mlp.gate_proj", "mlp.up_proj"] };
        // With `Norms::Before`, `post_attention_layernorm` is the norm of the MLP's input. Otherwise it is what its
        // name says.
        let (attention, mlp) = match arch.norms {
            Norms::Before => ((Some("input_layernorm"), None), (Some("post_attention_layernorm"), None)),
            Norms::After => ((None, Some("post_attention_layernorm")), (None, Some("post_feedforward_layernorm"))),
            Norms::Around => (
                (Some("input_layernorm"), Some("post_attention_layernorm")),
                (Some("pre_feedforward_layernorm"), Some("post_feedforward_layernorm")),
            ),
        };
        let around = |(before, after): (Option<&str>, Option<&str>)| -> Result<Around> {
            Ok(Around { before: before.map(norm).transpose()?, after: after.map(norm).transpose()? })
        };
        Ok(Self {
            attention: around(attention)?,
            qkv: linear(qkv, arch.qkv == Qkv::Biased)?,
            qk_norm,
            output: linear(&["self_attn.o_proj"], false)?,
            mlp: around(mlp)?,
            gate_up: linear(gate_up, false)?,
            down: linear(&["mlp.down_proj"], false)?,
        })
    }

    /// The bias of the projection to keys, `(Hkv, D)`, if there is one.
    pub(crate) fn key_bias(&self, arch: &Arch) -> Result<Option<Tensor>> {
        let Some(bias) = self.qkv.bias() else { return Ok(None) };
        let (queries, keys) = (arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim);
        Ok(Some(bias.narrow(0, queries, keys)?.reshape((arch.kv_heads, arch.head_dim))?))
    }

    /// The input and the output are the residual stream: `(B T, hidden)`.
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

        let normed = self.attention.enter(x, eps)?;
        let qkv = self.qkv.forward(&normed)?;
        let split = |from: usize, count: usize, whole: Option<&Tensor>| -> Result<Tensor> {
            let part = qkv.narrow(1, from * arch.head_dim, count * arch.head_dim)?;
            let part = match whole {
                Some(norm) => rms_norm(&part.contiguous()?, norm, eps)?,
                None => part,
            };
            Ok(part.reshape((batch, tokens, count, arch.head_dim))?.transpose(1, 2)?.contiguous()?)
        };
        let whole = self.qk_norm.as_ref().filter(|_| arch.qk_norm == QkNorm::Whole);
        let mut q = split(0, heads, whole.map(|norms| &norms.0))?;
        let mut k = split(heads, kv_heads, whole.map(|norms| &norms.1))?;
        let v = split(heads + kv_heads, kv_heads, None)?;
        if let (QkNorm::PerHead, Some((q_norm, k_norm))) = (arch.qk_norm, &self.qk_norm) {
            q = rms_norm(&q, q_norm, eps)?;
            k = rms_norm(&k, k_norm, eps)?;
        }
        let pattern = Pattern { reach: arch.reach(layer), ..cx.pattern };
        let cx = AttendCx { pattern, rotary: cx.rotary.of(layer), scale: arch.scale(layer), ..*cx };
        let attended = cache
            .attend(&q, &k, &v, &cx)
            .map_err(ModelError::cache(layer))?
            .transpose(1, 2)?
            .reshape((batch * tokens, heads * arch.head_dim))?;
        let x = self.attention.leave(x, self.output.forward(&attended)?, eps)?;

        let gate_up = self.gate_up.forward(&self.mlp.enter(&x, eps)?)?;
        let inner = match arch.activation {
            Activation::Silu => swiglu(&gate_up)?,
            Activation::GeluTanh => geglu(&gate_up)?,
        };
        self.mlp.leave(&x, self.down.forward(&inner)?, eps)
    }
}
