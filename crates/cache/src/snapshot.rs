//! The state after one exact prefill, from which every scheme starts.

use candle_core::Tensor;

use crate::{CacheError, LayerCache, Rotary, Scheme};

/// Keys and values of an exact prefill, before position embedding, with the last logits.
///
/// Tensors are reference-counted: cloning or forking copies none of them.
#[derive(Debug, Clone)]
pub struct PrefillSnapshot {
    /// Per layer `(B, Hkv, T, D)`, before position embedding.
    pub keys: Vec<Tensor>,
    /// Per layer `(B, Hkv, T, D)`.
    pub values: Vec<Tensor>,
    /// Logits of the last prefilled token, `(B, V)`.
    pub last_logits: Tensor,
}

impl PrefillSnapshot {
    /// Tokens prefilled.
    pub fn len(&self) -> usize {
        self.keys.first().and_then(|k| k.dim(2).ok()).unwrap_or(0)
    }

    /// True for a snapshot of nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One cache per layer under `scheme`, holding this prefill.
    ///
    /// # Errors
    /// If the scheme cannot take a layer.
    pub fn fork(&self, scheme: &dyn Scheme, rotary: &Rotary) -> Result<Vec<Box<dyn LayerCache>>, CacheError> {
        self.keys
            .iter()
            .zip(&self.values)
            .enumerate()
            .map(|(layer, (k, v))| scheme.after_prefill(layer, k, v, rotary))
            .collect()
    }
}
