//! A view over the shards of a merged group. It concatenates the vectors of the group's layers (Algorithm 1, step 2)
//! without copying them.

use kvcsr_codec::Shard;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::error::{NeuralDictError, Result};

/// The vectors of several shards. Each head vector is cut into chunks of `width` channels, which are numbered from 0 in the
/// order of the shards. Vectors stay in the shards' memory maps, in f16, until they are gathered.
#[derive(Debug)]
pub struct VectorPool<'a> {
    group: String,
    shards: Vec<&'a Shard>,
    /// For each shard: the number of vectors in the shards up to and including it.
    ends: Vec<usize>,
    width: usize,
}

/// The name of a group of shards: `key[3]`, `value[4-6]`.
#[must_use]
pub fn group_name(shards: &[&Shard]) -> String {
    match (shards.first(), shards.last()) {
        (Some(first), Some(last)) if shards.len() > 1 => {
            format!("{}[{}-{}]", first.kind(), first.layer(), last.layer())
        }
        (Some(first), _) => format!("{}[{}]", first.kind(), first.layer()),
        _ => "empty group".to_owned(),
    }
}

impl<'a> VectorPool<'a> {
    /// `chunks` is the paper's `s_n`. `what` names the role of the vectors in errors.
    ///
    /// # Errors
    /// If there are no vectors, `chunks` does not divide the head vector, the shards have different kinds or head_dims, or there
    /// are more vectors than 32-bit numbers can address.
    pub fn new(shards: &[&'a Shard], chunks: usize, what: &'static str) -> Result<Self> {
        let group = group_name(shards);
        let Some(first) = shards.first() else {
            return Err(NeuralDictError::NoVectors { group, what });
        };
        let head_dim = first.head_dim();
        if chunks == 0 || head_dim % chunks != 0 {
            return Err(NeuralDictError::Chunks { group, chunks, head_dim });
        }
        let width = head_dim / chunks;
        let mut ends = Vec::with_capacity(shards.len());
        let mut vectors = 0;
        for shard in shards {
            if shard.kind() != first.kind() || shard.head_dim() != head_dim {
                return Err(NeuralDictError::MixedShards {
                    group,
                    layer: shard.layer(),
                    found: format!("{} vectors of {} channels", shard.kind(), shard.head_dim()),
                    expected: format!("{} vectors of {head_dim} channels", first.kind()),
                });
            }
            vectors += shard.rows(width);
            ends.push(vectors);
        }
        if vectors == 0 {
            return Err(NeuralDictError::NoVectors { group, what });
        }
        if u32::try_from(vectors).is_err() {
            return Err(NeuralDictError::TooManyVectors { group, vectors });
        }
        Ok(Self { group, shards: shards.to_vec(), ends, width })
    }

    /// The group's name.
    #[must_use]
    pub fn group(&self) -> &str {
        &self.group
    }

    /// Number of vectors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Always false, because [`VectorPool::new`] refuses an empty pool.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Channels of one vector: `head_dim / chunks`.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Draws the numbers of `count` vectors without replacement, in random order. If the pool has at most `count` vectors, it
    /// returns all numbers.
    #[must_use]
    pub fn sample(&self, count: usize, rng: &mut ChaCha8Rng) -> Vec<u32> {
        draw(self.numbers(), count, rng)
    }

    /// The numbers of all vectors, in order.
    #[must_use]
    pub fn numbers(&self) -> Vec<u32> {
        (0..u32::try_from(self.len()).unwrap_or(u32::MAX)).collect()
    }

    /// Reads the vectors `numbers` into `rows`. `rows` becomes `(numbers.len(), width)`, row-major in f32.
    ///
    /// # Errors
    /// If a vector is not finite; the error names its shard. Also errors of the shards.
    pub fn gather(&self, numbers: &[u32], rows: &mut Vec<f32>) -> Result<()> {
        let width = self.width;
        rows.clear();
        rows.resize(numbers.len() * width, 0.0);
        if let [shard] = self.shards.as_slice() {
            let inside: Vec<usize> = numbers.iter().map(|&number| number as usize).collect();
            shard.gather(width, &inside, rows)?;
            return check_finite(shard, width, &inside, rows);
        }
        // For each shard: positions in the batch, and numbers inside the shard.
        let mut wanted: Vec<(Vec<usize>, Vec<usize>)> = vec![Default::default(); self.shards.len()];
        for (position, &number) in numbers.iter().enumerate() {
            let number = number as usize;
            let shard = self.ends.partition_point(|&end| end <= number);
            let start = if shard == 0 { 0 } else { self.ends[shard - 1] };
            wanted[shard].0.push(position);
            wanted[shard].1.push(number - start);
        }
        let mut buffer = Vec::new();
        for (shard, (positions, inside)) in self.shards.iter().zip(&wanted) {
            buffer.clear();
            buffer.resize(inside.len() * width, 0.0);
            shard.gather(width, inside, &mut buffer)?;
            check_finite(shard, width, inside, &buffer)?;
            for (&position, row) in positions.iter().zip(buffer.chunks_exact(width)) {
                rows[position * width..][..width].copy_from_slice(row);
            }
        }
        Ok(())
    }
}

/// Draws `count` of `numbers` without replacement, in random order. If there are at most `count`, it returns all.
pub(crate) fn draw(mut numbers: Vec<u32>, count: usize, rng: &mut ChaCha8Rng) -> Vec<u32> {
    let count = count.min(numbers.len());
    numbers.partial_shuffle(rng, count).0.to_vec()
}

fn check_finite(shard: &Shard, width: usize, inside: &[usize], rows: &[f32]) -> Result<()> {
    match rows.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(at) => Err(NeuralDictError::NonFiniteVector {
            layer: shard.layer(),
            kind: shard.kind(),
            vector: inside[at / width],
            width,
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use kvcsr_codec::{Kind, ShardHeader, ShardWriter};
    use rand::SeedableRng;

    use super::*;

    /// A shard whose vector `n` of four channels contains `start + 4 n ..`.
    fn shard(folder: &std::path::Path, layer: usize, tokens: usize, start: u16) -> Shard {
        let path = folder.join(format!("{layer}.safetensors"));
        let header = ShardHeader { layer, kind: Kind::Key, tokens, heads: 1, head_dim: 4, extra: BTreeMap::new() };
        let mut writer = ShardWriter::create(&path, header).unwrap();
        let values: Vec<f32> = (0..tokens * 4).map(|at| f32::from(start) + at as f32).collect();
        writer.append(&values).unwrap();
        writer.finish().unwrap();
        Shard::open(&path).unwrap()
    }

    #[test]
    fn numbers_run_through_the_shards_and_rows_keep_the_order_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (shard(folder.path(), 2, 3, 0), shard(folder.path(), 3, 2, 100));
        let pool = VectorPool::new(&[&first, &second], 2, "training").unwrap();
        assert_eq!((pool.len(), pool.width(), pool.group()), (10, 2, "key[2-3]"));
        let mut rows = Vec::new();
        pool.gather(&[9, 0, 6, 5, 0], &mut rows).unwrap();
        assert_eq!(rows, [106.0, 107.0, 0.0, 1.0, 100.0, 101.0, 10.0, 11.0, 0.0, 1.0]);
    }

    #[test]
    fn samples_are_distinct_and_shuffled_even_when_they_hold_everything() {
        let folder = tempfile::tempdir().unwrap();
        let data = shard(folder.path(), 0, 100, 0);
        let pool = VectorPool::new(&[&data], 1, "training").unwrap();
        for count in [30, 100, 1000] {
            let sample = pool.sample(count, &mut ChaCha8Rng::seed_from_u64(1));
            let mut sorted = sample.clone();
            sorted.sort_unstable();
            assert_ne!(sample, sorted);
            sorted.dedup();
            assert_eq!(sorted.len(), count.min(100));
        }
    }
}
