//! Algorithm 1, steps 3 and 4, for one merged group of layers.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use kvcsr_codec::Shard;
use rand::{RngExt, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Tensor};

use crate::{
    checkpoint::{Identity, State, Sums},
    coder::{Coder, Evaluation, dictionary_of, energy, evaluate, to_tensor},
    config::{DeadAtoms, Selection, Start, TrainConfig},
    device::{resolve_device, resolve_selection},
    error::{NeuralDictError, Result},
    kmeans::{centroids_to_atoms, kmeans},
    loss::diversity,
    optimiser::renorm,
    pool::{VectorPool, draw},
    record::{EpochRecord, Progress, Trained, Usage},
    step::Stepper,
    update::{Updater, Worst},
    weights::Weights,
};

/// Training vectors looked at for the errors of epoch 0.
const EPOCH_0_SAMPLE: usize = 16_384;
/// Vectors coded at once when errors are measured.
const EVALUATED_AT_ONCE: usize = 4096;
/// Most dead atoms that one epoch's end moves.
const MOST_REPLACED: usize = 1024;

/// Independent streams of the seeded generator, one per purpose, so that changing one draw leaves
/// the others alone.
#[derive(Clone, Copy)]
enum Stream {
    KMeansSample,
    KMeansSeeding,
    Epoch0Sample,
    Batches,
    Subset,
    Start,
}

/// What a run reads and writes beside its configuration.
#[derive(Clone, Copy, Default)]
pub struct Inputs<'a> {
    /// Shards to learn from: the layers of one group, all keys or all values.
    pub train: &'a [&'a Shard],
    /// Shards that are only ever measured.
    pub heldout: &'a [&'a Shard],
    /// How much each training head vector counts in the loss: one shard `(T, Hkv, 1)` for each of
    /// `train`. Weights of mean 1 leave `beta` comparable. k-means does not use them.
    pub weights: Option<&'a [&'a Shard]>,
    /// The same for `heldout`: only measured, in [`Trained::heldout_weighted`].
    pub heldout_weights: Option<&'a [&'a Shard]>,
    /// Folder for the checkpoint ([`CHECKPOINT`](crate::checkpoint::CHECKPOINT)), which a later call
    /// with the same configuration and vectors goes on from, and for the batch at which the loss
    /// diverged ([`DIVERGED`](crate::checkpoint::DIVERGED)). Without, neither is written.
    pub folder: Option<&'a Path>,
    /// Least time between two checkpoints; zero writes one after every step.
    pub checkpoint_every: Duration,
}

/// Learns one dictionary from the vectors of `train`, the shards of one group: all keys or all
/// values.
///
/// k-means on a sample, ReNorm, then `epochs` passes in seeded random order; each step picks atoms
/// with the current dictionary, takes the gradient of `L_MSE + beta L_div`, updates and applies
/// ReNorm. `heldout` vectors are only ever measured. Memory: the k-means sample and one batch in
/// f32, four bytes per vector for the order, and `O(N D)`.
///
/// The result depends on the configuration, the vectors and the number of libtorch's threads alone
/// (on CUDA: up to rounding).
///
/// # Errors
/// See [`NeuralDictError`]; each names the group. Nothing is written anywhere.
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
/// A run that goes on from a checkpoint ends with the same bytes as one that was never interrupted,
/// but for the times in its records. The checkpoint stays in its folder; whoever saved the result
/// may remove it.
///
/// # Errors
/// As [`train_group`]; also for weights that do not fit, and for a checkpoint that is damaged or
/// belongs to another run.
pub fn train_group_from(
    config: &TrainConfig,
    inputs: &Inputs<'_>,
    observer: &mut dyn FnMut(&Progress<'_>),
) -> Result<Trained> {
    config.validate()?;
    let device = resolve_device(&config.device)?;
    let pool = VectorPool::new(inputs.train, config.chunks, "training")?;
    // Checked together with the first training shard, so that both sides are alike in kind and width.
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

/// The vectors that [`train_group`] learns from, `(M, D)` row-major, as [`TrainConfig::vectors`]
/// limits them and in the order of their numbers' draw: for other trainers to learn from the same.
///
/// # Errors
/// As [`train_group`], for the vectors.
pub fn training_vectors(config: &TrainConfig, train: &[&Shard]) -> Result<Vec<f32>> {
    let pool = VectorPool::new(train, config.chunks, "training")?;
    let mut rows = Vec::new();
    pool.gather(&numbers(config, &pool), &mut rows)?;
    Ok(rows)
}

/// Numbers of the vectors trained on.
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

/// One run's fixed inputs.
struct Run<'a> {
    config: &'a TrainConfig,
    device: Device,
    selection: Selection,
    identity: Identity,
    pool: VectorPool<'a>,
    heldout: VectorPool<'a>,
    heldout_numbers: Vec<u32>,
    weights: Option<Weights<'a>>,
    heldout_weights: Option<Weights<'a>>,
    folder: Option<&'a Path>,
    checkpoint_every: Duration,
}

impl Run<'_> {
    fn rng(&self, stream: Stream) -> ChaCha8Rng {
        seeded(self.config, stream)
    }

    /// Room for worst-fitted vectors.
    fn room(&self) -> usize {
        match self.config.dead_atoms {
            DeadAtoms::Keep => 0,
            DeadAtoms::Replace => self.config.atoms.min(MOST_REPLACED),
        }
    }

    fn train(&self, observer: &mut dyn FnMut(&Progress<'_>)) -> Result<Trained> {
        let config = self.config;
        let group = self.pool.group();
        let mut order = numbers(config, &self.pool);
        let loaded = match self.folder {
            Some(folder) => State::load(folder, &self.identity, self.device, self.room())?,
            None => None,
        };
        let mut state = match loaded {
            Some(state) => {
                observer(&Progress::Resumed { group, epoch: state.epoch, batch: state.batch });
                state
            }
            None => {
                let state = self.begin(&order, observer)?;
                observer(&Progress::Epoch { group, record: &state.epochs[0] });
                self.save(&state)?;
                state
            }
        };
        let mut rng = self.rng(Stream::Batches);
        for _ in 1..state.epoch {
            order.shuffle(&mut rng);
        }
        let mut saved = Instant::now();
        let mut stepper = Stepper::new(config, self.device, self.selection);
        let batches = order.len().div_ceil(config.batch);
        while state.epoch <= config.epochs && !self.is_over(&state) {
            let started = Instant::now();
            let before = state.sums.seconds;
            order.shuffle(&mut rng);
            while state.batch < batches {
                let numbers = &order[state.batch * order.len() / batches..(state.batch + 1) * order.len() / batches];
                let step = (state.epoch - 1) * batches + state.batch;
                let mse = self.step(&mut state, &mut stepper, numbers, (step, config.epochs * batches))?;
                let (epoch, batch) = (state.epoch, state.batch);
                observer(&Progress::Batch { group, epoch, batch, batches, mse });
                state.batch += 1;
                if self.folder.is_some() && saved.elapsed() >= self.checkpoint_every {
                    state.sums.seconds = before + started.elapsed().as_secs_f64();
                    self.save(&state)?;
                    saved = Instant::now();
                }
            }
            let last_step = state.epoch * batches - 1;
            let rate = config.learning_rate_at(last_step, config.epochs * batches);
            self.end_epoch(&mut state, &mut stepper, rate, order.len(), before, started)?;
            observer(&Progress::Epoch { group, record: &state.epochs[state.epochs.len() - 1] });
            if self.folder.is_some() && saved.elapsed() >= self.checkpoint_every {
                self.save(&state)?;
                saved = Instant::now();
            }
        }
        self.finish(state)
    }

    fn save(&self, state: &State) -> Result<()> {
        self.folder.map_or(Ok(()), |folder| state.save(folder, &self.identity))
    }

    fn is_over(&self, state: &State) -> bool {
        self.config.patience > 0 && state.stale >= self.config.patience
    }

    /// Step 3, and the measurements of epoch 0.
    fn begin(&self, order: &[u32], observer: &mut dyn FnMut(&Progress<'_>)) -> Result<State> {
        let started = Instant::now();
        let atoms = self.initialise(order, observer)?;
        let start = dictionary_of(&atoms)?;
        let record = self.epoch_0(&atoms, order, started)?;
        Ok(State {
            epoch: 1,
            batch: 0,
            updater: Updater::new(self.config, &atoms)?,
            sums: Sums::default(),
            usage: vec![0; self.config.atoms],
            worst: Worst::new(self.room()),
            epochs: vec![record],
            best: (0, (self.config.patience > 0).then(|| start.atoms().to_vec())),
            stale: 0,
            atoms,
            start,
        })
    }

    /// One step over the vectors `numbers`; their mean squared error. `place` is the step of how many.
    fn step(
        &self,
        state: &mut State,
        stepper: &mut Stepper<'_>,
        numbers: &[u32],
        place: (usize, usize),
    ) -> Result<f64> {
        let (at, of) = place;
        self.pool.gather(numbers, &mut stepper.rows)?;
        if let Some(weights) = &self.weights {
            weights.gather(numbers, &mut stepper.weights)?;
        }
        let weighted = self.weights.is_some();
        let sparsity = self.config.sparsity_at(at, of);
        let rate = self.config.learning_rate_at(at, of);
        let step = stepper.step(&mut state.atoms, &mut state.updater, rate, sparsity, weighted).map_err(|error| {
            let saved =
                || self.folder.and_then(|f| crate::checkpoint::save_diverged(f, &stepper.rows, &state.atoms).ok());
            match error {
                crate::step::StepError::Diverged(what) => NeuralDictError::Diverged {
                    group: self.pool.group().to_owned(),
                    epoch: state.epoch,
                    batch: state.batch,
                    what,
                    saved: saved(),
                },
                crate::step::StepError::Other(error) => error,
            }
        })?;
        state.worst.count(&stepper.errors, numbers);
        let mut usage = Usage(std::mem::take(&mut state.usage));
        usage.count(&stepper.codes.indices, &stepper.codes.coefficients);
        state.usage = usage.0;
        state.sums.error += step.error;
        state.sums.beta += step.beta;
        state.sums.energy += energy(&stepper.rows, self.pool.width());
        Ok(step.error / numbers.len() as f64)
    }

    /// Record, dead atoms, patience; then `state` stands at the next epoch.
    fn end_epoch(
        &self,
        state: &mut State,
        stepper: &mut Stepper<'_>,
        rate: f64,
        vectors: usize,
        before: f64,
        started: Instant,
    ) -> Result<()> {
        let config = self.config;
        let batches = state.batch;
        stepper.end_epoch(&mut state.atoms, &mut state.updater)?;
        let usage = Usage(std::mem::replace(&mut state.usage, vec![0; config.atoms]));
        let heldout = self.heldout(&Coder::new(self.selection, &state.atoms)?)?;
        let improved = state.epochs.iter().all(|record| heldout.relative < record.heldout_relative);
        if improved {
            state.best.0 = state.epoch;
            if config.patience > 0 {
                state.best.1 = Some(dictionary_of(&state.atoms)?.atoms().to_vec());
            }
        }
        state.stale = if improved { 0 } else { state.stale + 1 };
        let spread = diversity(&state.atoms)?.f_double_value(&[])?;
        let replaced = if state.epoch < config.epochs { self.replace(state, &usage)? } else { 0 };
        let sums = std::mem::take(&mut state.sums);
        state.epochs.push(EpochRecord {
            epoch: state.epoch,
            mse: sums.error / vectors as f64,
            diversity: spread,
            beta: sums.beta / batches as f64,
            train_relative: if sums.energy > 0.0 { sums.error / sums.energy } else { 0.0 },
            heldout_relative: heldout.relative,
            heldout_mse: heldout.mse,
            dead_atoms: usage.dead(),
            usage_entropy: usage.entropy(),
            replaced_atoms: replaced,
            learning_rate: rate,
            seconds: before + started.elapsed().as_secs_f64(),
        });
        state.worst = Worst::new(self.room());
        (state.epoch, state.batch) = (state.epoch + 1, 0);
        Ok(())
    }

    /// Moves dead atoms to the worst-fitted vectors; how many.
    fn replace(&self, state: &mut State, usage: &Usage) -> Result<usize> {
        if self.config.dead_atoms == DeadAtoms::Keep {
            return Ok(0);
        }
        let mut dead = usage.unused();
        let vectors: Vec<u32> = state.worst.found.iter().map(|&(_, number)| number).collect();
        let mut rows = Vec::new();
        self.pool.gather(&vectors, &mut rows)?;
        // A vector with an error has a direction, unless it is too short for f32.
        let usable: Vec<&[f32]> = rows
            .chunks_exact(self.pool.width())
            .filter(|row| row.iter().map(|v| v * v).sum::<f32>() > f32::MIN_POSITIVE)
            .collect();
        dead.truncate(usable.len());
        if dead.is_empty() {
            return Ok(0);
        }
        let _guard = tch::no_grad_guard();
        let moved = to_tensor(&usable[..dead.len()].concat(), self.pool.width(), self.device)?;
        let places: Vec<i64> = dead.iter().map(|&atom| atom as i64).collect();
        let places = Tensor::f_from_slice(&places)?.f_to_device(self.device)?;
        state.atoms = state.atoms.f_index_copy(0, &places, &renorm(&moved)?)?;
        state.updater.forget(&dead, self.device)?;
        Ok(dead.len())
    }

    fn finish(&self, state: State) -> Result<Trained> {
        let (dictionary, at) = match state.best.1 {
            Some(best) => (kvcsr_codec::Dictionary::new(self.pool.width(), best)?, state.best.0),
            None => (dictionary_of(&state.atoms)?, state.epochs.len() - 1),
        };
        let heldout_weighted = match &self.heldout_weights {
            None => None,
            Some(_) => {
                let atoms = to_tensor(dictionary.atoms(), self.pool.width(), self.device)?;
                self.heldout(&Coder::new(self.selection, &atoms)?)?.weighted
            }
        };
        Ok(Trained {
            kmeans: state.start,
            dictionary,
            kmeans_heldout_relative: state.epochs[0].heldout_relative,
            heldout_relative: state.epochs[at].heldout_relative,
            best_epoch: state.best.0,
            heldout_weighted,
            epochs: state.epochs,
        })
    }

    /// Step 3: "initialise `W_D` with cluster centroids", then ReNorm; or another start. `(N, D)` on
    /// the device.
    fn initialise(&self, order: &[u32], observer: &mut dyn FnMut(&Progress<'_>)) -> Result<Tensor> {
        let config = self.config;
        let (group, width) = (self.pool.group(), self.pool.width());
        let all_zero = || NeuralDictError::AllZero { group: group.to_owned() };
        if config.start == Start::Random {
            let mut rng = self.rng(Stream::Start);
            let values: Vec<f32> = (0..config.atoms * width).map(|_| rng.random_range(-1.0f32..1.0)).collect();
            return renorm(&to_tensor(&values, width, self.device)?);
        }
        let sample = draw(order.to_vec(), config.kmeans_sample, &mut self.rng(Stream::KMeansSample));
        let mut rows = Vec::new();
        self.pool.gather(&sample, &mut rows)?;
        if config.start == Start::Sample {
            let mut kept: Vec<&[f32]> = rows
                .chunks_exact(width)
                .filter(|row| row.iter().map(|v| v * v).sum::<f32>() > f32::MIN_POSITIVE)
                .take(config.atoms)
                .collect();
            if kept.is_empty() {
                return Err(all_zero());
            }
            let found = kept.len();
            // Fewer vectors with a direction than atoms: use them again.
            (found..config.atoms).for_each(|at| kept.push(kept[at % found]));
            return renorm(&to_tensor(&kept.concat(), width, self.device)?);
        }
        let vectors = to_tensor(&rows, width, self.device)?;
        drop(rows);
        let iterations = config.kmeans_iterations;
        let clusters = kmeans(
            &vectors,
            config.atoms,
            iterations,
            &mut self.rng(Stream::KMeansSeeding),
            &mut |iteration, inertia| observer(&Progress::KMeans { group, iteration, iterations, inertia }),
        )?;
        centroids_to_atoms(&vectors, &clusters)?.ok_or_else(all_zero)
    }

    fn epoch_0(&self, atoms: &Tensor, order: &[u32], started: Instant) -> Result<EpochRecord> {
        let coder = Coder::new(self.selection, atoms)?;
        let sample = draw(order.to_vec(), EPOCH_0_SAMPLE, &mut self.rng(Stream::Epoch0Sample));
        let (sparsity, batch) = (self.config.sparsity, self.config.batch);
        let train = evaluate(&self.pool, None, &sample, &coder, sparsity, batch)?;
        let heldout = self.heldout(&coder)?;
        Ok(EpochRecord {
            epoch: 0,
            mse: train.mse,
            diversity: diversity(atoms)?.f_double_value(&[])?,
            train_relative: train.relative,
            heldout_relative: heldout.relative,
            heldout_mse: heldout.mse,
            dead_atoms: train.usage.dead(),
            usage_entropy: train.usage.entropy(),
            seconds: started.elapsed().as_secs_f64(),
            ..EpochRecord::default()
        })
    }

    fn heldout(&self, coder: &Coder) -> Result<Evaluation> {
        let weights = self.heldout_weights.as_ref();
        // At least as many at a time as keep the encoder busy, whatever a step takes.
        let batch = self.config.batch.max(EVALUATED_AT_ONCE);
        evaluate(&self.heldout, weights, &self.heldout_numbers, coder, self.config.sparsity, batch)
    }
}
