//! The state after one exact prefill, from which every scheme starts.

use candle_core::Tensor;

use crate::{CacheError, LayerCache, Padding, Rotary, Scheme};

/// Queries of a prompt's last tokens that a snapshot keeps at most, for schemes that choose tokens by them.
pub const OBSERVED: usize = 64;

/// What one layer's last queries of a prompt were.
#[derive(Debug, Clone)]
pub struct LastQueries {
    /// `(B, H, W, D)` before position embedding, of the last `W` tokens, at most 64.
    pub queries: Tensor,
    /// Factor on their scores.
    pub scale: f64,
}

/// Keys and values of an exact prefill, before position embedding, with the last logits.
///
/// Tensors are reference-counted: cloning or forking copies none of them.
#[derive(Debug, Clone)]
pub struct PrefillSnapshot {
    /// Per layer `(B, Hkv, T, D)`, before position embedding.
    pub keys: Vec<Tensor>,
    /// Per layer `(B, Hkv, T, D)`.
    pub values: Vec<Tensor>,
    /// Per layer the last queries; empty where they were not recorded.
    pub queries: Vec<LastQueries>,
    /// Logits of the last prefilled token, `(B, V)`; `(1, 0)` where a prompt was restored from a file.
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

    /// One cache per layer under `scheme`, holding this prefill; `rotary` has the tables of all layers. Dictionaries and
    /// their tables are those of the scheme, shared by all its forks.
    ///
    /// # Errors
    /// If the scheme cannot take a layer.
    pub fn fork(&self, scheme: &dyn Scheme, rotary: &Rotary) -> Result<Vec<Box<dyn LayerCache>>, CacheError> {
        self.keys
            .iter()
            .zip(&self.values)
            .enumerate()
            .map(|(layer, (k, v))| match self.queries.get(layer) {
                Some(queries) => scheme.after_observed_prefill(layer, k, v, queries, rotary.of(layer)),
                None => scheme.after_prefill(layer, k, v, rotary.of(layer)),
            })
            .collect()
    }

    /// As [`PrefillSnapshot::fork`] for a batch of texts of different lengths, padded at the front.
    ///
    /// # Errors
    /// If the scheme cannot take a layer, or no padding.
    pub fn fork_padded(
        &self,
        scheme: &dyn Scheme,
        rotary: &Rotary,
        padding: Padding<'_>,
    ) -> Result<Vec<Box<dyn LayerCache>>, CacheError> {
        let taken = |(layer, (k, v)): (usize, (&Tensor, &Tensor))| {
            let mut cache = scheme.empty(layer)?;
            cache.absorb_padded(k, v, rotary.of(layer), padding)?;
            Ok(cache)
        };
        self.keys.iter().zip(&self.values).enumerate().map(taken).collect()
    }
}
