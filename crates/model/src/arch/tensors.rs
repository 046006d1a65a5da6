//! The tensors of a checkpoint of an [`Arch`].

use super::{Arch, Norms, QkNorm, Qkv};

impl Arch {
    /// Every tensor of the checkpoint and its shape, with Hugging Face names. Linear weights are `(out, in)`.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, q, kv) = (self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab, hidden])];
        for layer in 0..self.layers {
            let mut add = |name: &str, shape: &[usize]| {
                all.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
            };
            if self.norms != Norms::After {
                add("input_layernorm.weight", &[hidden]);
            }
            match self.qkv {
                Qkv::Packed => add("self_attn.W_pack.weight", &[self.qkv_rows(), hidden]),
                Qkv::Joined => add("self_attn.qkv_proj.weight", &[self.qkv_rows(), hidden]),
                Qkv::Separate | Qkv::Biased => {
                    for (name, rows) in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)] {
                        add(&format!("self_attn.{name}.weight"), &[rows, hidden]);
                        if self.qkv == Qkv::Biased {
                            add(&format!("self_attn.{name}.bias"), &[rows]);
                        }
                    }
                }
            }
            let normed = match self.qk_norm {
                QkNorm::None => None,
                QkNorm::PerHead => Some((self.head_dim, self.head_dim)),
                QkNorm::Whole => Some((q, kv)),
            };
            if let Some((q, k)) = normed {
                add("self_attn.q_norm.weight", &[q]);
                add("self_attn.k_norm.weight", &[k]);
            }
            add("self_attn.o_proj.weight", &[hidden, q]);
            add("post_attention_layernorm.weight", &[hidden]);
            if self.norms == Norms::Around {
                add("pre_feedforward_layernorm.weight", &[hidden]);
            }
            if self.norms != Norms::Before {
                add("post_feedforward_layernorm.weight", &[hidden]);
            }
            if self.packed_mlp {
                add("mlp.gate_up_proj.weight", &[2 * self.intermediate, hidden]);
            } else {
                add("mlp.gate_proj.weight", &[self.intermediate, hidden]);
                add("mlp.up_proj.weight", &[self.intermediate, hidden]);
            }
            add("mlp.down_proj.weight", &[hidden, self.intermediate]);
        }
        all.push(("model.norm.weight".to_owned(), vec![hidden]));
        if !self.tied_head {
            all.push(("lm_head.weight".to_owned(), vec![self.vocab, hidden]));
        }
        all
    }
}
