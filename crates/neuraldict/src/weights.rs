//! The weight of each vector, recorded together with the calibration vectors (beyond the paper).

use kvcsr_codec::Shard;

use crate::{
    error::{NeuralDictError, Result},
    pool::VectorPool,
};

/// One weight per head vector of a group, shared by its chunks.
#[derive(Debug)]
pub(crate) struct Weights<'a> {
    pool: VectorPool<'a>,
    chunks: usize,
}

impl<'a> Weights<'a> {
    /// `shards` contain `(T, Hkv, 1)`, one for each shard of `vectors`, in the same order.
    pub(crate) fn new(
        shards: &[&'a Shard],
        vectors: &[&Shard],
        chunks: usize,
        group: &str,
        what: &'static str,
    ) -> Result<Self> {
        let bad = |reason: String| Err(NeuralDictError::Weights { group: group.to_owned(), reason });
        if shards.len() != vectors.len() {
            return bad(format!("{} shards for {} shards of {what} vectors", shards.len(), vectors.len()));
        }
        for (weights, vectors) in shards.iter().zip(vectors) {
            let shape = |s: &Shard| (s.layer(), s.kind(), s.tokens(), s.heads());
            if weights.head_dim() != 1 || shape(weights) != shape(vectors) {
                return bad(format!(
                    "layer {}: expected one weight for each of {} x {} head vectors, found {} x {} x {} of layer {}",
                    vectors.layer(),
                    vectors.tokens(),
                    vectors.heads(),
                    weights.tokens(),
                    weights.heads(),
                    weights.head_dim(),
                    weights.layer()
                ));
            }
        }
        Ok(Self { pool: VectorPool::new(shards, 1, what)?, chunks })
    }

    /// Reads the weights of the chunk vectors with the given `numbers` in the group's pool.
    pub(crate) fn gather(&self, numbers: &[u32], weights: &mut Vec<f32>) -> Result<()> {
        let heads: Vec<u32> = numbers.iter().map(|&number| number / self.chunks as u32).collect();
        self.pool.gather(&heads, weights)?;
        match weights.iter().position(|weight| *weight < 0.0) {
            None => Ok(()),
            Some(at) => Err(NeuralDictError::Weights {
                group: self.pool.group().to_owned(),
                reason: format!("head vector {} has {}, expected 0 or more", heads[at], weights[at]),
            }),
        }
    }
}
