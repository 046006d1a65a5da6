//! Principal axes of a set of vectors.

use tch::{Kind, Tensor};

use crate::error::Result;

/// Unit axes `(D, D)`, one per row, sorted by decreasing standard deviation, and the standard deviations, `(D)`.
pub(crate) struct Axes {
    pub(crate) vectors: Vec<f32>,
    pub(crate) deviations: Vec<f32>,
}

/// The axes for the second moment or covariance `moment` `(D, D)`, in double precision.
pub(crate) fn principal(moment: &Tensor) -> Result<Axes> {
    // Eigenvalues are in rising order; eigenvectors are columns.
    let (values, vectors) = moment.f_linalg_eigh("L")?;
    let values = Vec::<f64>::try_from(values.f_to_kind(Kind::Double)?)?;
    // Not libtorch's square roots: see `optimiser::square_roots`.
    let deviations = values.iter().rev().map(|value| value.max(0.0).sqrt() as f32).collect();
    Ok(Axes { vectors: numbers(&vectors.f_tr()?.f_flip([0])?)?, deviations })
}

/// The elements of a tensor, row by row.
pub(crate) fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(Vec::<f32>::try_from(tensor.f_to_kind(Kind::Float)?.f_contiguous()?.f_view([-1])?)?)
}
