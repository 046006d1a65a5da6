//! Algorithm 1, steps 3 and 4, for one merged group of layers.

mod run;
mod start;

use std::{path::Path, time::Duration};

use kvcsr_codec::Shard;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use self::run::Run;
use crate::{
    checkpoint::Identity,
    config::TrainConfig,
    device::{resolve_device, resolve_selection},
    error::{NeuralDictError, Result},
    pool::VectorPool,
    record::{Progress, Trained},
    weights::Weights,
};

/// Independent streams of the seeded generator, one per purpose. A change to one draw therefore does not change the others.
#[derive(Clone, Copy)]
enum Stream {
    KMeansSample,
    KMeansSeeding,
    Epoch0Sample,
    Batches,
    Subset,
    Start,
}

/// The inputs and outputs of a run other than its configuration.
#[derive(Clone, Copy, Default)]
pub struct Inputs<'a> {
    /// Shards to learn from: the layers of one group, either all keys or all values.
    pub train: &'a [&'a Shard],
    /// Shards used for measurements only.
    pub heldout: &'a [&'a Shard],
    /// The weight of each training head vector in the loss: one shard `(T, Hkv, 1)` for each shard of `train`. With weights of
    /// mean 1, `beta` stays comparable. k-means does not use weights.
    pub weights: Option<&'a [&'a Shard]>,
    /// The same for `heldout`. These weights are used only for [`Trained::heldout_weighted`].
    pub heldout_weights: Option<&'a [&'a Shard]>,
    /// Folder for two files. One is the checkpoint ([`CHECKPOINT`](crate::checkpoint::CHECKPOINT)), from which a later call with
    /// the same configuration and vectors continues. The other is the batch at which the loss diverged
    /// ([`DIVERGED`](crate::checkpoint::DIVERGED)). Without a folder, neither file is written.
    pub folder: Option<&'a Path>,
    /// Minimum time between two checkpoints. With zero, one is written after every step.
    pub checkpoint_every: Duration,
}

/// Learns one dictionary from the vectors of `train`, the shards of one group: either all keys or all values.
///
/// Training starts with k-means on a sample and ReNorm. Then it makes `epochs` passes over the vectors in seeded random
/// order. Each step picks atoms with the current dictionary, takes the gradient of `L_MSE + beta L_div`, updates the atoms
/// and applies ReNorm. `heldout` vectors are used for measurements only. The memory is the k-means sample and one batch in
/// f32, four bytes per vector for the order, and `O(N D)`.
///
/// The result depends only on the configuration, the vectors and the number of libtorch's threads (on CUDA: up to rounding).
///
/// # Errors
/// See [`NeuralDictError`]. Each error names the group. This function writes no files.
///
/// # Example
/// ```no_run
/// use kvcsr_codec::Shard;
/// use kvcsr_neuraldict::{Progress, TrainConfig, train_group};
///
/// let train = Shard::open("key.3.safetensors")?;
/// let heldout = Shard::open("key.3.heldout.safetensors")?;
/// let trained = train_group(&TrainConfig::default(), &[&train], &[&heldout], &mut |progress| {
///     if let Progress::Epoch { group, record } = progress {
///         println!("{group} epoch {}: {:.4}", record.epoch, record.heldout_relative);
///     }
/// })?;
/// println!("{:.4} -> {:.4}", trained.kmeans_heldout_relative, trained.heldout_relative);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn train_group(
    config: &TrainConfig,
    train: &[&Shard],
    heldout: &[&Shard],
    observer: &mut dyn FnMut(&Progress<'_>),
) -> Result<Trained> {
    train_group_from(config, &Inputs { train, heldout, ..Inputs::default() }, observer)
}

/// [`train_group`] with weights and checkpoints.
///
/// A run that continues from a checkpoint gives the same bytes as a run without interruption, except for the times in its
/// records. The checkpoint stays in its folder. The caller may remove it after saving the result.
///
/// # Errors
/// The same as [`train_group`]. Also if weights do not match the vectors, or a checkpoint is damaged or belongs to another
/// run.
pub fn train_group_from(
    config: &TrainConfig,
    inputs: &Inputs<'_>,
    observer: &mut dyn FnMut(&Progress<'_>),
) -> Result<Trained> {
    config.validate()?;
    let config = &config.clone().resolved();
    let device = resolve_device(&config.device)?;
    let pool = VectorPool::new(inputs.train, config.chunks, "training")?;
    // Checked together with the first training shard, so that both sides have the same kind and width.
    let mixed: Vec<&Shard> = inputs.train.iter().take(1).chain(inputs.heldout).copied().collect();
    VectorPool::new(&mixed, config.chunks, "held-out")?;
    let heldout = VectorPool::new(inputs.heldout, config.chunks, "held-out")?;
    let group = pool.group();
    if pool.len() < config.atoms {
        return Err(NeuralDictError::TooFewVectors {
            group: group.to_owned(),
            vectors: pool.len(),
            atoms: config.atoms,
        });
    }
    let weights = match inputs.weights {
        Some(weights) => Some(Weights::new(weights, inputs.train, config.chunks, group, "training")?),
        None => None,
    };
    let heldout_weights = match inputs.heldout_weights {
        Some(weights) => Some(Weights::new(weights, inputs.heldout, config.chunks, group, "held-out")?),
        None => None,
    };
    let sizes = (pool.len(), heldout.len(), pool.width());
    let run = Run {
        config,
        device,
        selection: resolve_selection(config.selection, device),
        identity: Identity::new(config, group, sizes, weights.is_some()),
        heldout_numbers: heldout.numbers(),
        folder: inputs.folder,
        checkpoint_every: inputs.checkpoint_every,
        weights,
        heldout_weights,
        pool,
        heldout,
    };
    run.train(observer)
}

/// The vectors that [`train_group`] learns from, `(M, D)` row-major, so that other trainers can learn from the same vectors.
/// [`TrainConfig::vectors`] limits their number. They are in the order in which their numbers are drawn.
///
/// # Errors
/// The errors of [`train_group`] about vectors.
pub fn training_vectors(config: &TrainConfig, train: &[&Shard]) -> Result<Vec<f32>> {
    let pool = VectorPool::new(train, config.chunks, "training")?;
    let mut rows = Vec::new();
    pool.gather(&numbers(config, &pool), &mut rows)?;
    Ok(rows)
}

/// Numbers of the training vectors.
fn numbers(config: &TrainConfig, pool: &VectorPool<'_>) -> Vec<u32> {
    match config.vectors {
        0 => pool.numbers(),
        most if most >= pool.len() => pool.numbers(),
        most => pool.sample(most, &mut seeded(config, Stream::Subset)),
    }
}

fn seeded(config: &TrainConfig, stream: Stream) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    rng.set_stream(stream as u64);
    rng
}
