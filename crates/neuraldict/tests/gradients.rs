//! Compares both gradient paths of the loss with central differences, in double precision.

#![allow(clippy::unwrap_used)]

use kvcsr_neuraldict::{
    Reduction,
    loss::{beta, diversity, reconstruction},
    optimiser::renorm,
    pursuit::{AtomCodes, linear_residual, select_atoms, unrolled_residual},
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::Tensor;

const ATOMS: i64 = 9;
const WIDTH: i64 = 5;
const SPARSITY: usize = 4;

fn random(seed: u64, shape: [i64; 2]) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f64> = (0..shape[0] * shape[1]).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_slice(&values).view(shape)
}

struct Case {
    atoms: Tensor,
    rows: Tensor,
    codes: AtomCodes,
    beta: f64,
}

impl Case {
    fn new() -> Self {
        let atoms = renorm(&random(1, [ATOMS, WIDTH])).unwrap();
        let rows = random(2, [7, WIDTH]);
        let codes = select_atoms(&atoms, &rows, SPARSITY).unwrap();
        let left = unrolled_residual(&atoms, &rows, &codes.indices).unwrap();
        let mse = reconstruction(&left, Reduction::Sum).unwrap().double_value(&[]);
        // The value is inside the range, so that a missing or doubled diversity term is visible.
        let beta = beta(mse, diversity(&atoms).unwrap().double_value(&[])).min(0.7);
        Self { atoms, rows, codes, beta }
    }

    /// `L_MSE + beta L_div` with fixed picks. Without the coefficient path, the coefficients are fixed too.
    fn loss(&self, atoms: &Tensor, through_coefficients: bool) -> Tensor {
        let AtomCodes { indices, coefficients } = &self.codes;
        let residual = if through_coefficients {
            unrolled_residual(atoms, &self.rows, indices).unwrap()
        } else {
            linear_residual(atoms, &self.rows, indices, coefficients).unwrap()
        };
        reconstruction(&residual, Reduction::Sum).unwrap() + diversity(atoms).unwrap() * self.beta
    }

    fn gradient(&self, through_coefficients: bool) -> Vec<f64> {
        let leaf = self.atoms.copy().set_requires_grad(true);
        self.loss(&leaf, through_coefficients).backward();
        Vec::<f64>::try_from(leaf.grad().flatten(0, -1)).unwrap()
    }

    fn differences(&self, through_coefficients: bool) -> Vec<f64> {
        let step = 1e-6;
        (0..ATOMS * WIDTH)
            .map(|at| {
                let moved = |by: f64| {
                    let shifted = self.atoms.copy();
                    let _ = shifted.view([-1]).narrow(0, at, 1).f_add_scalar_(by).unwrap();
                    self.loss(&shifted, through_coefficients).double_value(&[])
                };
                (moved(step) - moved(-step)) / (2.0 * step)
            })
            .collect()
    }
}

#[test]
fn gradients_match_central_differences_on_both_paths() {
    let case = Case::new();
    for through_coefficients in [true, false] {
        let (exact, numeric) = (case.gradient(through_coefficients), case.differences(through_coefficients));
        let scale = exact.iter().fold(0f64, |m, v| m.max(v.abs()));
        for (at, (a, b)) in exact.iter().zip(&numeric).enumerate() {
            assert!((a - b).abs() < 1e-7 * scale, "path {through_coefficients}, entry {at}: {a} {b}");
        }
    }
}

#[test]
fn the_paths_differ_where_they_should() {
    let case = Case::new();
    let (full, atoms_only) = (case.gradient(true), case.gradient(false));
    let difference = full.iter().zip(&atoms_only).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
    assert!(difference > 1e-3, "the coefficient path adds nothing: {difference}");
}

#[test]
fn a_gradient_step_lowers_the_loss_of_fresh_picks() {
    let case = Case::new();
    let error = |atoms: &Tensor| {
        let codes = select_atoms(atoms, &case.rows, SPARSITY).unwrap();
        let residual = linear_residual(atoms, &case.rows, &codes.indices, &codes.coefficients).unwrap();
        reconstruction(&residual, Reduction::Sum).unwrap().double_value(&[])
    };
    for through_coefficients in [true, false] {
        let gradient = Tensor::from_slice(&case.gradient(through_coefficients)).view([ATOMS, WIDTH]);
        let moved = renorm(&(&case.atoms - gradient * 1e-3)).unwrap();
        assert!(error(&moved) < error(&case.atoms), "path {through_coefficients}");
    }
}
