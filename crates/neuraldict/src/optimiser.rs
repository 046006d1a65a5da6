//! Adam on one tensor of atoms, and ReNorm.

use tch::{Device, Kind, Tensor};

use crate::{axes::numbers, device::is_on_host, error::Result};

const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// Adam (Kingma and Ba 2015, algorithm 1) for one parameter tensor.
///
/// This crate implements Adam itself, because libtorch's optimisers own their parameters. Here ReNorm replaces the parameter
/// after every step. The unit tests compare this implementation with libtorch's.
#[derive(Debug)]
pub struct Adam {
    pub(crate) step: i32,
    pub(crate) first: Tensor,
    pub(crate) second: Tensor,
}

impl Adam {
    /// Starts with moments of zero, in the shape of `parameter`.
    ///
    /// # Errors
    /// Errors of libtorch.
    pub fn new(parameter: &Tensor) -> Result<Self> {
        Ok(Self { step: 0, first: parameter.f_zeros_like()?, second: parameter.f_zeros_like()? })
    }

    /// Returns the parameter after one step along `gradient` with learning rate `rate`.
    ///
    /// # Errors
    /// Errors of libtorch.
    pub fn step(&mut self, parameter: &Tensor, gradient: &Tensor, rate: f64) -> Result<Tensor> {
        self.step += 1;
        self.first = self.first.f_mul_scalar(BETA_1)?.f_add(&gradient.f_mul_scalar(1.0 - BETA_1)?)?;
        self.second = self.second.f_mul_scalar(BETA_2)?.f_add(&gradient.f_square()?.f_mul_scalar(1.0 - BETA_2)?)?;
        let first = self.first.f_div_scalar(1.0 - BETA_1.powi(self.step))?;
        let second = self.second.f_div_scalar(1.0 - BETA_2.powi(self.step))?;
        let change = first.f_div(&square_roots(&second)?.f_add_scalar(EPSILON)?)?;
        Ok(parameter.f_sub(&change.f_mul_scalar(rate)?)?)
    }

    /// Resets the moments of some rows to zero.
    pub(crate) fn forget(&mut self, rows: &[usize], device: Device) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let rows = Tensor::f_from_slice(&rows)?.f_to_device(device)?;
        self.first = self.first.f_index_fill(0, &rows, 0.0)?;
        self.second = self.second.f_index_fill(0, &rows, 0.0)?;
        Ok(())
    }
}

/// ReNorm of Algorithm 1: divides each row (atom) of `(N, D)` by its l2 norm.
///
/// A zero row stays zero. [`Dictionary`](kvcsr_codec::Dictionary) then refuses it.
///
/// # Errors
/// Errors of libtorch.
pub fn renorm(atoms: &Tensor) -> Result<Tensor> {
    let norms = row_norms(atoms)?.f_clamp_min(f64::from(f32::MIN_POSITIVE))?;
    Ok(atoms.f_div(&norms)?)
}

/// l2 norms of the rows of `(N, D)`, as `(N, 1)`.
pub(crate) fn row_norms(rows: &Tensor) -> Result<Tensor> {
    square_roots(&rows.f_square()?.f_sum_dim_intlist([1i64].as_slice(), true, None::<Kind>)?)
}

/// Square roots, correctly rounded, without a gradient. libtorch takes those of f32 on the CPU from the vector functions of
/// MKL. They are not correctly rounded, and their last bits depend on the CPU.
pub(crate) fn square_roots(x: &Tensor) -> Result<Tensor> {
    if !is_on_host(x) {
        return Ok(x.f_sqrt()?);
    }
    let roots: Vec<f32> = numbers(x)?.into_iter().map(f32::sqrt).collect();
    Ok(Tensor::f_from_slice(&roots)?.f_view(&x.size()[..])?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::random_tensor;
    use tch::nn::{self, OptimizerConfig};

    #[test]
    fn adam_takes_the_steps_of_libtorch() {
        let start = random_tensor(1, &[5, 3]).to_kind(Kind::Float);
        let goal = random_tensor(2, &[5, 3]).to_kind(Kind::Float);
        let store = nn::VarStore::new(Device::Cpu);
        let reference = store.root().var_copy("atoms", &start);
        let mut theirs = nn::Adam::default().build(&store, 0.01).unwrap();
        let mut ours = Adam::new(&start).unwrap();
        let mut atoms = start.copy();
        for _ in 0..20 {
            theirs.backward_step(&(&reference - &goal).pow_tensor_scalar(4).sum(None::<Kind>));
            let gradient = (&atoms - &goal).pow_tensor_scalar(3) * 4.0;
            atoms = ours.step(&atoms, &gradient, 0.01).unwrap();
        }
        let moved = (&atoms - &start).abs().max().double_value(&[]);
        let difference = (&atoms - reference.detach()).abs().max().double_value(&[]);
        assert!(moved > 0.1 && difference < 1e-6, "moved {moved}, differs by {difference}");
    }

    #[test]
    fn forgotten_rows_start_over_and_others_do_not() {
        let gradient = random_tensor(1, &[4, 3]);
        let mut adam = Adam::new(&gradient).unwrap();
        let _ = adam.step(&gradient, &gradient, 0.1).unwrap();
        let before = adam.second.copy();
        adam.forget(&[1, 3], Device::Cpu).unwrap();
        for row in 0..4 {
            let expected = if row % 2 == 1 { before.get(row) * 0.0 } else { before.get(row) };
            assert_eq!(adam.second.get(row), expected, "row {row}");
        }
    }

    #[test]
    fn renorm_gives_unit_rows_and_keeps_zero_finite() {
        let mut rows = random_tensor(4, &[6, 5]);
        let _ = rows.get(2).zero_();
        let norms = Vec::<f64>::try_from(row_norms(&renorm(&rows).unwrap()).unwrap().flatten(0, -1)).unwrap();
        for (row, norm) in norms.iter().enumerate() {
            let expected = if row == 2 { 0.0 } else { 1.0 };
            assert!((norm - expected).abs() < 1e-12, "row {row}: {norm}");
        }
        let _ = rows.zero_();
        assert!(bool::try_from(renorm(&rows).unwrap().isfinite().all()).unwrap());
    }
}
