//! A matrix product with weights in the dtype of the model: f32, bf16 or f16.
//!
//! On the CPU, 16-bit weights are widened exactly when they are used, and everything else is f32. So a product with a
//! bf16 checkpoint stored in bf16 equals the product with the same weights in f32, but it reads half the memory. If
//! activations may be rounded ([`Kept::rounded`]), products of many rows use bf16 activations and sum in f32. This is
//! twice as fast if the CPU has a fast product of bf16 pairs. On other devices, the activations are rounded to the weights'
//! dtype for the product, and its result is f32 again.

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use kvcsr_codec::kernels::{Isa, Matrix, MatrixMut, Stored, multiply_bf16, multiply_parallel, multiply_widened};
use rayon::prelude::*;

use crate::device::Kept;

/// Up to this number of rows, reading the weights takes most of the time of a product. Each weight is then read once,
/// by any thread that is free.
const FEW_ROWS: usize = 8;
/// If there are fewer weights than this, starting threads costs more time than it saves.
const PARALLEL_FROM: usize = 1 << 15;
/// The number of weights that a thread takes at a time.
const TURN: usize = 1 << 15;

/// A linear map. Its weight has the layout of the checkpoint.
///
/// Nothing is transposed when the model is loaded. For prefill, a product with the `(out, in)` layout is as fast as
/// with a transposed copy. A dot product reads one row of weights.
pub(crate) struct Linear {
    /// `(out, in)`
    weight: Tensor,
    /// Whether activations are rounded to the weight's dtype in products of many rows.
    rounded: bool,
    /// `(out)`, f32
    bias: Option<Tensor>,
    /// The factor of each output: `(out)`, f32.
    scale: Option<Tensor>,
}

impl Linear {
    /// A map without a bias. `kept` says how its weight is stored.
    pub(crate) fn new(weight: Tensor, kept: Kept) -> Self {
        Self { weight, rounded: kept.rounded, bias: None, scale: None }
    }

    /// Adds a bias, `(out)` in f32.
    pub(crate) fn with_bias(self, bias: Option<Tensor>) -> Self {
        Self { bias, ..self }
    }

    /// What is added to every output, `(out)` in f32, if anything.
    pub(crate) fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// Multiplies each output by its own factor, `(out)` in f32.
    pub(crate) fn with_scale(self, scale: Option<Tensor>) -> Self {
        Self { scale, ..self }
    }

    /// From `(rows, in)` to `(rows, out)`, both f32.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut y = product(x, &self.weight, self.rounded)?;
        if let Some(scale) = &self.scale {
            y = y.broadcast_mul(scale)?;
        }
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

/// `x wᵀ` for `x`, `(rows, in)` in f32, and `w`, `(out, in)` in any of the three dtypes.
fn product(x: &Tensor, w: &Tensor, rounded_x: bool) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return rounded(x, w);
    }
    x.contiguous()?.apply_op2_no_bwd(w, &Product { rounded_x })
}

/// The product computed in the dtype of the weights.
fn rounded(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    x.to_dtype(w.dtype())?.matmul(&w.t()?)?.to_dtype(DType::F32)
}

struct Product {
    /// Whether `x` may be rounded to the dtype of `w`.
    rounded_x: bool,
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_at: &Layout, w: &CpuStorage, w_at: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((rows, width), (outputs, inputs)) = (x_at.shape().dims2()?, w_at.shape().dims2()?);
        let (Some(x_at), Some(w_at)) = (x_at.contiguous_offsets(), w_at.contiguous_offsets()) else {
            bail!("linear: both operands must be contiguous");
        };
        if width != inputs {
            bail!("linear: {width} channels meet weights for {inputs}");
        }
        let x = &x.as_slice::<f32>()?[x_at.0..x_at.1];
        let weights = w_at.0..w_at.1;
        let y = match w {
            CpuStorage::F32(w) if rows > FEW_ROWS => of_f32(x, &w[weights], inputs),
            CpuStorage::F32(w) => multiply(x, &w[weights], inputs),
            CpuStorage::BF16(w) if self.rounded_x && rows > FEW_ROWS => of_bf16(x, &w[weights], inputs),
            CpuStorage::BF16(w) => multiply::<bf16>(x, &w[weights], inputs),
            CpuStorage::F16(w) => multiply::<f16>(x, &w[weights], inputs),
            _ => bail!("linear: weights are f32, bf16 or f16"),
        };
        Ok((CpuStorage::F32(y), Shape::from((rows, outputs))))
    }
}

/// `(rows, inputs)` times the transpose of `(outputs, inputs)`.
fn multiply<W: Stored>(x: &[f32], w: &[W], inputs: usize) -> Vec<f32> {
    let (rows, outputs) = (x.len() / inputs, w.len() / inputs);
    if rows <= FEW_ROWS {
        return by_dots(x, w, [rows, outputs, inputs]);
    }
    let mut y = vec![0f32; rows * outputs];
    multiply_widened(&mut y, x, w, inputs);
    y
}

/// The same product for weights that need no widening.
fn of_f32(x: &[f32], w: &[f32], inputs: usize) -> Vec<f32> {
    let (rows, outputs) = (x.len() / inputs, w.len() / inputs);
    let mut y = vec![0f32; rows * outputs];
    let (x, w) = (Matrix::new(x, rows, inputs), Matrix::new(w, outputs, inputs));
    multiply_parallel(MatrixMut::new(&mut y, rows, outputs), x, w.transposed());
    y
}

/// The same product with `x` rounded to bf16.
fn of_bf16(x: &[f32], w: &[bf16], inputs: usize) -> Vec<f32> {
    let mut rounded = vec![bf16::ZERO; x.len()];
    rounded.par_chunks_mut(TURN).zip(x.par_chunks(TURN)).for_each(|(to, from)| to.convert_from_f32_slice(from));
    let mut y = vec![0f32; x.len() / inputs * (w.len() / inputs)];
    multiply_bf16(&mut y, &rounded, w, inputs);
    y
}

fn by_dots<W: Stored>(x: &[f32], w: &[W], [rows, outputs, inputs]: [usize; 3]) -> Vec<f32> {
    // The result as `(outputs, rows)`: all rows of one output are together.
    let mut turned = vec![0f32; rows * outputs];
    let isa = Isa::detect();
    let fill = |(y, w): (&mut [f32], &[W])| {
        for (y, w) in y.chunks_exact_mut(rows).zip(w.chunks_exact(inputs)) {
            for (y, x) in y.iter_mut().zip(x.chunks_exact(inputs)) {
                *y = isa.dot(w, x);
            }
        }
    };
    if w.len() >= PARALLEL_FROM {
        let turn = (TURN / inputs).max(1);
        turned.par_chunks_mut(turn * rows).zip(w.par_chunks(turn * inputs)).for_each(fill);
    } else {
        fill((&mut turned, w));
    }
    if rows == 1 {
        return turned;
    }
    (0..rows).flat_map(|row| turned.iter().skip(row).step_by(rows).copied()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::Device;

    use super::*;

    fn worst(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
    }

    #[test]
    fn every_dtype_and_path_multiplies_what_is_stored() {
        for (rows, inputs, outputs) in [(1, 48, 1000), (3, 33, 70), (8, 576, 100), (9, 576, 2000), (40, 64, 20_000)] {
            let x = Tensor::randn(0f32, 1.0, (rows, inputs), &Device::Cpu).unwrap();
            let w = Tensor::randn(0f32, 0.1, (outputs, inputs), &Device::Cpu).unwrap();
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                let w = w.to_dtype(dtype).unwrap();
                let y = product(&x, &w, false).unwrap();
                let wide = w.to_dtype(DType::F32).unwrap();
                let difference = worst(&y, &x.matmul(&wide.t().unwrap()).unwrap());
                assert!(difference < 3e-5, "{rows} {inputs} {outputs} {dtype:?}: {difference}");
                // The reference is the product as on other devices. It differs by the rounding of x and of the result.
                let unit = match dtype {
                    DType::BF16 => 0.004,
                    DType::F16 => 0.0005,
                    _ => 1e-5,
                };
                let largest = y.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                let difference = worst(&y, &rounded(&x, &w).unwrap());
                assert!(difference < 3.0 * unit * largest.max(1.0), "{dtype:?}: {difference} of {largest}");
                // Activations are rounded only in products of many rows with bf16 weights.
                let fast = product(&x, &w, true).unwrap();
                let expected = match dtype == DType::BF16 && rows > FEW_ROWS {
                    true => product(&x.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap(), &w, false).unwrap(),
                    false => y,
                };
                let difference = worst(&fast, &expected);
                assert!(difference < 3e-5, "{rows} {inputs} {outputs} {dtype:?}: {difference}");
            }
        }
    }

    #[test]
    fn biases_are_added_after_scales() {
        let tensor = |x: &[f32]| Tensor::new(x, &Device::Cpu).unwrap();
        let w = tensor(&[1.0, 2.0, 3.0, 4.0]).reshape((2, 2)).unwrap();
        let linear = Linear::new(w, DType::F32.into())
            .with_scale(Some(tensor(&[1.0, 10.0])))
            .with_bias(Some(tensor(&[0.5, 0.25])));
        let y = linear.forward(&tensor(&[1.0, 1.0]).unsqueeze(0).unwrap()).unwrap();
        assert_eq!(y.to_vec2::<f32>().unwrap(), [[3.5, 70.25]]);
    }

    #[test]
    fn shapes_that_do_not_meet_are_an_error() {
        let x = Tensor::zeros((1, 3), DType::F32, &Device::Cpu).unwrap();
        let w = Tensor::zeros((2, 4), DType::BF16, &Device::Cpu).unwrap();
        assert!(product(&x, &w, false).unwrap_err().to_string().contains("3 channels meet weights for 4"));
    }
}
