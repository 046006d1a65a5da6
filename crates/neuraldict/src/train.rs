//! Algorithm 1, steps 3 and 4, for one merged group of layers.

use std::time::Instant;

use kvcsr_codec::Shard;
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Tensor};

use crate::{
    coder::{Coder, Evaluation, HostCodes, dictionary_of, energy, evaluate, to_tensor},
    config::{GradientPath, Optimiser, Reduction, Selection, TrainConfig},
    device::{resolve_device, resolve_selection},
    error::{NeuralDictError, Result},
    kmeans::{centroids_to_atoms, kmeans},
    loss::{beta, diversity, reconstruction},
    optimiser::{Adam, renorm, row_norms},
    pool::VectorPool,
    pursuit::{linear_residual, unrolled_residual},
    record::{EpochRecord, Progress, Trained, Usage},
};

/// Training vectors looked at for the errors of epoch 0.
const EPOCH_0_SAMPLE: usize = 16_384;

/// Independent streams of the seeded generator, one per purpose, so that changing one draw leaves
/// the others alone.
#[derive(Clone, Copy)]
enum Stream {
    KMeansSample,
    KMeansSeeding,
    Epoch0Sample,
    Batches,
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
    config.validate()?;
    let device = resolve_device(&config.device)?;
    let pool = VectorPool::new(train, config.chunks, "training")?;
    // Checked together with the first training shard, so that both sides are alike in kind and width.
    let mixed: Vec<&Shard> = train.iter().take(1).chain(heldout).copied().collect();
    VectorPool::new(&mixed, config.chunks, "held-out")?;
    let heldout = VectorPool::new(heldout, config.chunks, "held-out")?;
    if pool.len() < config.atoms {
        return Err(NeuralDictError::TooFewVectors {
            group: pool.group().to_owned(),
            vectors: pool.len(),
            atoms: config.atoms,
        });
    }
    let selection = resolve_selection(config.selection, device);
    Run { config, device, selection, heldout_numbers: heldout.numbers(), pool, heldout }.train(observer)
}

/// One run's fixed inputs.
struct Run<'a> {
    config: &'a TrainConfig,
    device: Device,
    selection: Selection,
    pool: VectorPool<'a>,
    heldout: VectorPool<'a>,
    heldout_numbers: Vec<u32>,
}

/// Sums over an epoch's batches.
struct Tally {
    error: f64,
    energy: f64,
    beta: f64,
    usage: Usage,
}

/// What one step reports.
struct Step {
    error: f64,
    beta: f64,
}

impl Run<'_> {
    fn rng(&self, stream: Stream) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.config.seed);
        rng.set_stream(stream as u64);
        rng
    }

    fn train(&self, observer: &mut dyn FnMut(&Progress<'_>)) -> Result<Trained> {
        let config = self.config;
        let started = Instant::now();
        let mut atoms = self.initialise(observer)?;
        let kmeans = dictionary_of(&atoms)?;
        let mut epochs = vec![self.epoch_0(&atoms, started)?];
        observer(&Progress::Epoch { group: self.pool.group(), record: &epochs[0] });

        let mut rng = self.rng(Stream::Batches);
        let mut order = self.pool.numbers();
        let batches = order.len().div_ceil(config.batch);
        let mut adam = match config.optimiser {
            Optimiser::Adam => Adam::new(&atoms)?,
        };
        let (mut rows, mut codes) = (Vec::new(), HostCodes::default());
        for epoch in 1..=config.epochs {
            let started = Instant::now();
            order.shuffle(&mut rng);
            let mut tally = Tally { error: 0.0, energy: 0.0, beta: 0.0, usage: Usage::new(config.atoms) };
            let mut rate = 0.0;
            for batch in 0..batches {
                let numbers = &order[batch * order.len() / batches..(batch + 1) * order.len() / batches];
                self.pool.gather(numbers, &mut rows)?;
                rate = config.learning_rate_at((epoch - 1) * batches + batch, config.epochs * batches);
                let step = self.step(&mut atoms, &mut adam, rate, &rows, &mut codes, (epoch, batch))?;
                tally.error += step.error;
                tally.beta += step.beta / batches as f64;
                tally.energy += energy(&rows, self.pool.width());
                tally.usage.count(&codes.indices, &codes.coefficients);
                let mse = step.error / numbers.len() as f64;
                observer(&Progress::Batch { group: self.pool.group(), epoch, batch, batches, mse });
            }
            let record = self.record(epoch, &atoms, &tally, rate, started)?;
            observer(&Progress::Epoch { group: self.pool.group(), record: &record });
            epochs.push(record);
        }
        let best_epoch = epochs
            .iter()
            .min_by(|a, b| a.heldout_relative.total_cmp(&b.heldout_relative))
            .map_or(0, |record| record.epoch);
        Ok(Trained {
            kmeans,
            dictionary: dictionary_of(&atoms)?,
            kmeans_heldout_relative: epochs[0].heldout_relative,
            heldout_relative: epochs[epochs.len() - 1].heldout_relative,
            best_epoch,
            epochs,
        })
    }

    /// Step 3: "initialise `W_D` with cluster centroids", then ReNorm. `(N, D)` on the device.
    fn initialise(&self, observer: &mut dyn FnMut(&Progress<'_>)) -> Result<Tensor> {
        let config = self.config;
        let group = self.pool.group();
        let numbers = self.pool.sample(config.kmeans_sample, &mut self.rng(Stream::KMeansSample));
        let mut rows = Vec::new();
        self.pool.gather(&numbers, &mut rows)?;
        let vectors = to_tensor(&rows, self.pool.width(), self.device)?;
        drop(rows);
        let iterations = config.kmeans_iterations;
        let clusters = kmeans(
            &vectors,
            config.atoms,
            iterations,
            &mut self.rng(Stream::KMeansSeeding),
            &mut |iteration, inertia| observer(&Progress::KMeans { group, iteration, iterations, inertia }),
        )?;
        centroids_to_atoms(&vectors, &clusters)?.ok_or_else(|| NeuralDictError::AllZero { group: group.to_owned() })
    }

    /// Step 4 for one batch: replaces `atoms`, leaves the picks in `codes`. `place` is (epoch,
    /// batch), for errors.
    fn step(
        &self,
        atoms: &mut Tensor,
        adam: &mut Adam,
        rate: f64,
        rows: &[f32],
        codes: &mut HostCodes,
        place: (usize, usize),
    ) -> Result<Step> {
        let config = self.config;
        let (width, device, sparsity) = (self.pool.width(), self.device, config.sparsity);
        Coder::new(self.selection, atoms)?.encode(rows, sparsity, codes)?;
        let vectors = to_tensor(rows, width, device)?;
        let indices = codes.index_tensor(sparsity, device)?;

        let leaf = atoms.f_detach()?.f_set_requires_grad(true)?;
        let residual = match config.gradient {
            GradientPath::Coefficients => unrolled_residual(&leaf, &vectors, &indices)?,
            GradientPath::Atoms => {
                linear_residual(&leaf, &vectors, &indices, &codes.coefficient_tensor(sparsity, device)?)?
            }
        };
        let mse = reconstruction(&residual, config.reduction)?;
        let spread = diversity(&leaf)?;
        let (mse_value, spread_value) = (mse.f_double_value(&[])?, spread.f_double_value(&[])?);
        let beta = beta(mse_value, spread_value);
        let value = mse_value + beta * spread_value;
        if !value.is_finite() {
            return Err(self.diverged(place, format!("loss is {value}")));
        }
        let loss = mse.f_add(&spread.f_mul_scalar(beta)?)?;
        let gradient = Tensor::f_run_backward(&[&loss], &[&leaf], false, false)?.swap_remove(0);

        let _guard = tch::no_grad_guard();
        let moved = adam.step(atoms, &gradient, rate)?;
        let norms = row_norms(&moved)?;
        for norm in [norms.f_min()?.f_double_value(&[])?, norms.f_max()?.f_double_value(&[])?] {
            if !norm.is_finite() || norm <= 0.0 {
                return Err(self.diverged(place, format!("an atom's norm is {norm}")));
            }
        }
        *atoms = renorm(&moved)?;
        let error = match config.reduction {
            Reduction::Sum => mse_value,
            Reduction::Mean => mse_value * (rows.len() / width) as f64,
        };
        Ok(Step { error, beta })
    }

    fn diverged(&self, (epoch, batch): (usize, usize), what: String) -> NeuralDictError {
        NeuralDictError::Diverged { group: self.pool.group().to_owned(), epoch, batch, what }
    }

    fn epoch_0(&self, atoms: &Tensor, started: Instant) -> Result<EpochRecord> {
        let coder = Coder::new(self.selection, atoms)?;
        let sample = self.pool.sample(EPOCH_0_SAMPLE, &mut self.rng(Stream::Epoch0Sample));
        let train = evaluate(&self.pool, &sample, &coder, self.config.sparsity, self.config.batch)?;
        let heldout = self.heldout(&coder)?;
        Ok(EpochRecord {
            epoch: 0,
            mse: train.mse,
            diversity: diversity(atoms)?.f_double_value(&[])?,
            beta: 0.0,
            train_relative: train.relative,
            heldout_relative: heldout.relative,
            heldout_mse: heldout.mse,
            dead_atoms: train.usage.dead(),
            usage_entropy: train.usage.entropy(),
            learning_rate: 0.0,
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    fn record(&self, epoch: usize, atoms: &Tensor, tally: &Tally, rate: f64, started: Instant) -> Result<EpochRecord> {
        let heldout = self.heldout(&Coder::new(self.selection, atoms)?)?;
        Ok(EpochRecord {
            epoch,
            mse: tally.error / self.pool.len() as f64,
            diversity: diversity(atoms)?.f_double_value(&[])?,
            beta: tally.beta,
            train_relative: if tally.energy > 0.0 { tally.error / tally.energy } else { 0.0 },
            heldout_relative: heldout.relative,
            heldout_mse: heldout.mse,
            dead_atoms: tally.usage.dead(),
            usage_entropy: tally.usage.entropy(),
            learning_rate: rate,
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    fn heldout(&self, coder: &Coder) -> Result<Evaluation> {
        evaluate(&self.heldout, &self.heldout_numbers, coder, self.config.sparsity, self.config.batch)
    }
}
