//! The names of a decoder's tensors in Hugging Face files and in GGUF files.

use crate::arch::{Arch, Norms};

/// Hugging Face name, GGUF name.
type Pairs = &'static [(&'static str, &'static str)];

const OUTER: Pairs = &[
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
];

/// Modules of a layer, without the layer's prefix.
const IN_LAYER: Pairs = &[
    ("input_layernorm", "attn_norm"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.down_proj", "ffn_down"),
];

/// The norms of the MLP. Hugging Face uses the name `post_attention_layernorm` for two different norms.
const NORMS_BEFORE: Pairs = &[("post_attention_layernorm", "ffn_norm")];
const NORMS_AFTER: Pairs =
    &[("post_attention_layernorm", "post_attention_norm"), ("post_feedforward_layernorm", "post_ffw_norm")];
const NORM_BEFORE_MLP: Pairs = &[("pre_feedforward_layernorm", "ffn_norm")];

const UP: Pairs = &[("mlp.up_proj", "ffn_up")];
/// Gate and up as one matrix.
const GATE_UP: Pairs = &[("mlp.gate_up_proj", "ffn_up")];

/// The names of one architecture.
pub(super) struct Names {
    in_layer: Vec<(&'static str, &'static str)>,
}

impl Names {
    pub(super) fn of(arch: &Arch) -> Self {
        let norms: &[Pairs] = match arch.norms {
            Norms::Before => &[NORMS_BEFORE],
            Norms::After => &[NORMS_AFTER],
            Norms::Around => &[NORMS_AFTER, NORM_BEFORE_MLP],
        };
        let up = if arch.packed_mlp { GATE_UP } else { UP };
        let in_layer = [IN_LAYER, up].iter().chain(norms).flat_map(|pairs| pairs.iter().copied()).collect();
        Self { in_layer }
    }

    pub(super) fn gguf(&self, hugging_face: &str) -> Option<String> {
        if let Some((_, gguf)) = OUTER.iter().find(|(hf, _)| *hf == hugging_face) {
            return Some((*gguf).to_owned());
        }
        let (layer, rest) = hugging_face.strip_prefix("model.layers.")?.split_once('.')?;
        let (module, parameter) = rest.rsplit_once('.')?;
        let (_, gguf) = self.in_layer.iter().find(|(hf, _)| *hf == module)?;
        Some(format!("blk.{layer}.{gguf}.{parameter}"))
    }

    pub(super) fn hugging_face(&self, gguf: &str) -> Option<String> {
        if let Some((hf, _)) = OUTER.iter().find(|(_, name)| *name == gguf) {
            return Some((*hf).to_owned());
        }
        let (layer, rest) = gguf.strip_prefix("blk.")?.split_once('.')?;
        let (module, parameter) = rest.rsplit_once('.')?;
        let (hf, _) = self.in_layer.iter().find(|(_, name)| *name == module)?;
        Some(format!("model.layers.{layer}.{hf}.{parameter}"))
    }
}
