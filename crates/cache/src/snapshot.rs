//! The state after one exact prefill. Every scheme starts from it.

use candle_core::Tensor;

use crate::{CacheError, LayerCache, Padding, Rotary, Scheme};

/// A snapshot keeps the queries of at most this number of last tokens, for schemes that use them to choose tokens.
pub const OBSERVED: usize = 64;

/// The last queries of a prompt in one layer.
#[derive(Debug, Clone)]
pub struct LastQueries {
    /// `(B, H, W, D)` before position embedding, for the last `W` tokens, at most 64.
    pub queries: Tensor,
    /// The factor on their scores.
    pub scale: f64,
}

/// Keys and values of an exact prefill, before position embedding, and the last logits.
///
/// Tensors are reference-counted: cloning or forking does not copy them.
#[derive(Debug, Clone)]
pub struct PrefillSnapshot {
    /// For each layer `(B, Hkv, T, D)`, before position embedding.
    pub keys: Vec<Tensor>,
    /// For each layer `(B, Hkv, T, D)`.
    pub values: Vec<Tensor>,
    /// For each layer, the last queries. Empty if they were not recorded.
    pub queries: Vec<LastQueries>,
    /// Logits of the last prefilled token, `(B, V)`. `(1, 0)` if a prompt was restored from a file.
    pub last_logits: Tensor,
}

impl PrefillSnapshot {
    /// The number of prefilled tokens.
    pub fn len(&self) -> usize {
        self.keys.first().and_then(|k| k.dim(2).ok()).unwrap_or(0)
    }

    /// Whether the snapshot has no tokens.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One cache per layer under `scheme`, each with this prefill. `rotary` has the tables of all layers. The
    /// dictionaries and their tables belong to the scheme, and all its forks share them.
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

    /// The same as [`PrefillSnapshot::fork`], for a batch of texts of different lengths that are padded at the front.
    ///
    /// # Errors
    /// If the scheme cannot take a layer, or does not support padding.
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
