//! Algorithm 1, step 3: the atoms before the first step, and their errors.

use std::time::Instant;

use rand::RngExt;
use tch::Tensor;

use super::{Stream, run::Run};
use crate::{
    checkpoint::{State, Sums},
    coder::{Coder, dictionary_of, evaluate, to_tensor},
    config::Start,
    error::{NeuralDictError, Result},
    kmeans::{centroids_to_atoms, kmeans},
    optimiser::renorm,
    pool::draw,
    record::{EpochRecord, Progress},
    spread,
    update::{Updater, Worst},
};

/// Number of training vectors used to measure the errors of epoch 0.
const EPOCH_0_SAMPLE: usize = 16_384;

impl Run<'_> {
    /// Step 3, and the measurements of epoch 0.
    pub(super) fn begin(&self, order: &[u32], observer: &mut dyn FnMut(&Progress<'_>)) -> Result<State> {
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

    /// Step 3: "initialise `W_D` with cluster centroids", then ReNorm. Other starts are possible. The atoms are `(N, D)` on the
    /// device.
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
            // There are fewer vectors with a direction than atoms, so some are used more than once.
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
            diversity: spread::value(atoms)?,
            train_relative: train.relative,
            heldout_relative: heldout.relative,
            heldout_mse: heldout.mse,
            dead_atoms: train.usage.dead(),
            usage_entropy: train.usage.entropy(),
            seconds: started.elapsed().as_secs_f64(),
            ..EpochRecord::default()
        })
    }
}
