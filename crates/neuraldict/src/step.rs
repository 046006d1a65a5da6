//! Algorithm 1, step 4, for one batch: pick, loss, gradient (or closed form), update, ReNorm.

use tch::{Device, Kind, Tensor};

use crate::{
    coder::{Coder, HostCodes, to_tensor},
    config::{DeadAtoms, Diversity, GradientPath, Pursuit, Reduction, Selection, TrainConfig},
    error::{NeuralDictError, Result},
    loss::{beta, reconstruction},
    optimiser::{renorm, row_norms, square_roots},
    pursuit::{linear_residual, orthogonal_codes, unrolled_residual},
    spread,
    update::Updater,
};

/// The result of one step.
pub(crate) struct Step {
    /// Sum over the batch of the squared errors before the step, unweighted.
    pub error: f64,
    pub beta: f64,
}

/// Why a step ended the run.
pub(crate) enum StepError {
    /// The loss or the norm of an atom is not a usable number.
    Diverged(String),
    Other(NeuralDictError),
}

impl<E: Into<NeuralDictError>> From<E> for StepError {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// Buffers and settings of the steps of one run.
pub(crate) struct Stepper<'a> {
    config: &'a TrainConfig,
    device: Device,
    selection: Selection,
    /// The batch, `(B, D)`, and its weights, `(B)`. The caller fills both.
    pub rows: Vec<f32>,
    pub weights: Vec<f32>,
    /// The codes of the last step.
    pub codes: HostCodes,
    /// The squared errors of the last step, `(B)`. Filled only if dead atoms are replaced.
    pub errors: Vec<f32>,
}

impl<'a> Stepper<'a> {
    pub(crate) fn new(config: &'a TrainConfig, device: Device, selection: Selection) -> Self {
        Self {
            config,
            device,
            selection,
            rows: Vec::new(),
            weights: Vec::new(),
            codes: HostCodes::default(),
            errors: Vec::new(),
        }
    }

    /// Updates `atoms` with one batch, and leaves the picks in `codes`.
    pub(crate) fn step(
        &mut self,
        atoms: &mut Tensor,
        updater: &mut Updater,
        rate: f64,
        sparsity: usize,
        weighted: bool,
    ) -> std::result::Result<Step, StepError> {
        let config = self.config;
        let width = atoms.size2()?.1 as usize;
        let vectors = to_tensor(&self.rows, width, self.device)?;
        let weights = if weighted { Some(to_tensor(&self.weights, 1, self.device)?) } else { None };
        let indices = match config.pursuit {
            Pursuit::Mp => {
                Coder::new(self.selection, atoms)?.encode(&self.rows, sparsity, &mut self.codes)?;
                self.codes.index_tensor(sparsity, self.device)?
            }
            Pursuit::Omp => {
                let found = orthogonal_codes(atoms, &vectors, sparsity)?;
                self.codes.take(&found)?;
                found.indices
            }
        };
        match updater {
            Updater::Adam(adam) => {
                let leaf = atoms.f_detach()?.f_set_requires_grad(true)?;
                let coefficients = || self.codes.coefficient_tensor(sparsity, self.device);
                let residual = match (config.gradient, config.pursuit) {
                    (GradientPath::Coefficients, Pursuit::Mp) => unrolled_residual(&leaf, &vectors, &indices)?,
                    _ => linear_residual(&leaf, &vectors, &indices, &coefficients()?)?,
                };
                self.keep_errors(&residual)?;
                let mse = match &weights {
                    None => reconstruction(&residual, config.reduction)?,
                    Some(weights) => reconstruction(&residual.f_mul(&square_roots(weights)?)?, config.reduction)?,
                };
                let mse_value = mse.f_double_value(&[])?;
                let (slope, value, beta) = match config.diversity {
                    Diversity::Off => (None, mse_value, 0.0),
                    Diversity::Adaptive => {
                        let (spread, slope) = spread::value_and_slope(atoms)?;
                        let beta = beta(mse_value, spread);
                        (Some(slope), mse_value + beta * spread, beta)
                    }
                };
                if !value.is_finite() {
                    return Err(StepError::Diverged(format!("loss is {value}")));
                }
                let mut gradient = Tensor::f_run_backward(&[&mse], &[&leaf], false, false)?.swap_remove(0);
                let _guard = tch::no_grad_guard();
                if let Some(slope) = slope {
                    gradient = gradient.f_add(&slope.f_mul_scalar(beta)?)?;
                }
                if config.tangent {
                    let along = gradient.f_mul(atoms)?.f_sum_dim_intlist([1i64].as_slice(), true, None::<Kind>)?;
                    gradient = gradient.f_sub(&atoms.f_mul(&along)?)?;
                }
                let moved = adam.step(atoms, &gradient, rate)?;
                let norms = row_norms(&moved)?;
                for norm in [norms.f_min()?.f_double_value(&[])?, norms.f_max()?.f_double_value(&[])?] {
                    if !norm.is_finite() || norm <= 0.0 {
                        return Err(StepError::Diverged(format!("an atom's norm is {norm}")));
                    }
                }
                *atoms = renorm(&moved)?;
                let error = match (weighted, config.reduction) {
                    (true, _) => squared_sum(&residual.f_detach()?)?,
                    (false, Reduction::Sum) => mse_value,
                    (false, Reduction::Mean) => mse_value * (self.rows.len() / width) as f64,
                };
                Ok(Step { error, beta })
            }
            Updater::Closed(closed) => {
                let _guard = tch::no_grad_guard();
                let coefficients = self.codes.coefficient_tensor(sparsity, self.device)?;
                let residual = linear_residual(atoms, &vectors, &indices, &coefficients)?;
                self.keep_errors(&residual)?;
                let error = squared_sum(&residual)?;
                if !error.is_finite() {
                    return Err(StepError::Diverged(format!("squared error is {error}")));
                }
                let weights = weighted.then_some(self.weights.as_slice());
                closed.absorb(&self.rows, &self.codes, sparsity, weights);
                if closed.is_due() {
                    *atoms = solved(closed, atoms, self.device)?;
                }
                Ok(Step { error, beta: 0.0 })
            }
        }
    }

    /// Does the remaining work after the batches of an epoch.
    pub(crate) fn end_epoch(&mut self, atoms: &mut Tensor, updater: &mut Updater) -> Result<()> {
        if let Updater::Closed(closed) = updater
            && closed.pending > 0
        {
            *atoms = closed.solve(atoms, self.device)?;
        }
        Ok(())
    }

    /// Keeps the squared errors of the rows if dead atoms will be replaced.
    fn keep_errors(&mut self, residual: &Tensor) -> Result<()> {
        if self.config.dead_atoms == DeadAtoms::Replace {
            let squared = residual.f_detach()?.f_square()?;
            let rows = squared.f_sum_dim_intlist([1i64].as_slice(), false, None::<Kind>)?;
            self.errors.resize(rows.numel(), 0.0);
            rows.f_copy_data(&mut self.errors, rows.numel())?;
        }
        Ok(())
    }
}

fn squared_sum(residual: &Tensor) -> Result<f64> {
    Ok(residual.f_square()?.f_sum(None::<Kind>)?.f_double_value(&[])?)
}

/// The closed-form atoms, if they are usable.
fn solved(
    closed: &mut crate::closed::Closed,
    atoms: &Tensor,
    device: Device,
) -> std::result::Result<Tensor, StepError> {
    let found = closed.solve(atoms, device)?;
    let longest = found.f_abs()?.f_max()?.f_double_value(&[])?;
    if longest.is_finite() { Ok(found) } else { Err(StepError::Diverged(format!("an atom's entry is {longest}"))) }
}
