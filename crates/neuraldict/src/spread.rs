//! `L_div` of [`crate::loss`] and its gradient in closed form, so that no autograd graph is needed.
//!
//! With `S = Aᵀ A` for atoms `A (N, D)`, the gradient of `(1/N²) ||I - A Aᵀ||_F²` is `(4/N²) (A S - A)`. On the CPU the codec
//! computes the products, with the same bits on every CPU.

use kvcsr_codec::kernels::{Matrix, MatrixMut, multiply};
use tch::Tensor;

use crate::{axes::numbers, device::is_on_host, error::Result, loss::diversity};

/// `L_div`.
pub(crate) fn value(atoms: &Tensor) -> Result<f64> {
    if !is_on_host(atoms) {
        return Ok(diversity(&atoms.f_detach()?)?.f_double_value(&[])?);
    }
    let (count, width) = shape(atoms)?;
    let atoms = numbers(atoms)?;
    Ok(by_sums(&atoms, &scatter(&atoms, count, width), count, width))
}

/// `L_div` and its gradient, `(N, D)`.
pub(crate) fn value_and_slope(atoms: &Tensor) -> Result<(f64, Tensor)> {
    let (count, width) = shape(atoms)?;
    let factor = 4.0 / (count * count) as f64;
    if !is_on_host(atoms) {
        let _guard = tch::no_grad_guard();
        let moved = atoms.f_matmul(&atoms.f_tr()?.f_matmul(atoms)?)?;
        return Ok((value(atoms)?, moved.f_sub(atoms)?.f_mul_scalar(factor)?));
    }
    let rows = numbers(atoms)?;
    let scatter = scatter(&rows, count, width);
    let mut slope = vec![0f32; rows.len()];
    let product = MatrixMut::new(&mut slope, count, width);
    multiply(product, Matrix::new(&rows, count, width), Matrix::new(&scatter, width, width));
    slope.iter_mut().zip(&rows).for_each(|(slope, atom)| *slope = factor as f32 * (*slope - atom));
    Ok((by_sums(&rows, &scatter, count, width), Tensor::f_from_slice(&slope)?.f_view([count as i64, width as i64])?))
}

fn shape(atoms: &Tensor) -> Result<(usize, usize)> {
    let (count, width) = atoms.size2()?;
    Ok((count as usize, width as usize))
}

/// `Aᵀ A`, `(D, D)`.
fn scatter(atoms: &[f32], count: usize, width: usize) -> Vec<f32> {
    let mut scatter = vec![0f32; width * width];
    let rows = Matrix::new(atoms, count, width);
    multiply(MatrixMut::new(&mut scatter, width, width), rows.transposed(), rows);
    scatter
}

/// `(N - 2 tr S + ||S||_F²) / N²`. For few atoms the definition is used, because differences of such sums would cancel.
fn by_sums(atoms: &[f32], scatter: &[f32], count: usize, width: usize) -> f64 {
    let squared = |x: f32| f64::from(x) * f64::from(x);
    let sum = if count <= width {
        let mut gram = vec![0f32; count * count];
        let rows = Matrix::new(atoms, count, width);
        multiply(MatrixMut::new(&mut gram, count, count), rows, rows.transposed());
        (0..count).for_each(|at| gram[at * count + at] -= 1.0);
        gram.iter().map(|&x| squared(x)).sum::<f64>()
    } else {
        let trace: f64 = (0..width).map(|at| f64::from(scatter[at * width + at])).sum();
        count as f64 - 2.0 * trace + scatter.iter().map(|&x| squared(x)).sum::<f64>()
    };
    sum / (count * count) as f64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tch::Kind;

    use super::*;
    use crate::testing::random_tensor;

    #[test]
    fn value_and_slope_are_those_of_the_loss() {
        for (count, width) in [(40, 7), (7, 7), (5, 12)] {
            for kind in [Kind::Float, Kind::Double] {
                let leaf = random_tensor(3, &[count, width]).to_kind(kind).set_requires_grad(true);
                let loss = diversity(&leaf).unwrap();
                loss.backward();
                let expected = loss.double_value(&[]);
                let (found, slope) = value_and_slope(&leaf.detach()).unwrap();
                assert!((found - expected).abs() < 1e-5 * expected, "{found} {expected}");
                assert!((value(&leaf).unwrap() - found).abs() < 1e-12 * found);
                let off = (slope - leaf.grad()).abs().max().double_value(&[]);
                let largest = leaf.grad().abs().max().double_value(&[]);
                assert!(off < 1e-5 * largest, "{count} {width} {kind:?}: {off} of {largest}");
            }
        }
    }
}
