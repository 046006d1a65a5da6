//! Algorithm 1, step 4: the loop over epochs and batches, from a start or a checkpoint to the end.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Tensor};

use super::{Stream, numbers, seeded};
use crate::{
    checkpoint::{Identity, State},
    coder::{Coder, Evaluation, dictionary_of, energy, evaluate, to_tensor},
    config::{DeadAtoms, Selection, TrainConfig},
    error::{NeuralDictError, Result},
    optimiser::renorm,
    pool::VectorPool,
    record::{EpochRecord, Progress, Trained, Usage},
    spread,
    step::Stepper,
    update::Worst,
    weights::Weights,
};

/// Vectors encoded at once when errors are measured.
const EVALUATED_AT_ONCE: usize = 4096;
/// Maximum number of dead atoms that are replaced at the end of one epoch.
const MOST_REPLACED: usize = 1024;

/// The fixed inputs of one run.
pub(super) struct Run<'a> {
    pub(super) config: &'a TrainConfig,
    pub(super) device: Device,
    pub(super) selection: Selection,
    pub(super) identity: Identity,
    pub(super) pool: VectorPool<'a>,
    pub(super) heldout: VectorPool<'a>,
    pub(super) heldout_numbers: Vec<u32>,
    pub(super) weights: Option<Weights<'a>>,
    pub(super) heldout_weights: Option<Weights<'a>>,
    pub(super) folder: Option<&'a Path>,
    pub(super) checkpoint_every: Duration,
}

impl Run<'_> {
    pub(super) fn rng(&self, stream: Stream) -> ChaCha8Rng {
        seeded(self.config, stream)
    }

    /// Number of worst-fitted vectors to keep.
    pub(super) fn room(&self) -> usize {
        match self.config.dead_atoms {
            DeadAtoms::Keep => 0,
            DeadAtoms::Replace => self.config.atoms.min(MOST_REPLACED),
        }
    }

    pub(super) fn train(&self, observer: &mut dyn FnMut(&Progress<'_>)) -> Result<Trained> {
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

    /// Makes one step over the vectors `numbers` and returns their mean squared error. `place` is the number of the step and
    /// the total number of steps.
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

    /// Writes the record, replaces dead atoms, updates the patience counter, and moves `state` to the next epoch.
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
        let spread = spread::value(&state.atoms)?;
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

    /// Replaces dead atoms by the worst-fitted vectors and returns their number.
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

    pub(super) fn heldout(&self, coder: &Coder) -> Result<Evaluation> {
        let weights = self.heldout_weights.as_ref();
        // Use at least as many vectors as keep the encoder busy, even if the batches of steps are smaller.
        let batch = self.config.batch.max(EVALUATED_AT_ONCE);
        evaluate(&self.heldout, weights, &self.heldout_numbers, coder, self.config.sparsity, batch)
    }
}
