//! Two-dimensional views of vectors: the plane of their principal components (paper, Figure 2).

use tch::{Kind, Tensor};

use crate::error::Result;

/// Coordinates of `rows` `(n, width)` in the plane of their two directions of largest variance,
/// about their mean, with the share of the variance that lies in the plane. Of each direction the
/// sign is chosen that makes its largest entry positive.
///
/// # Errors
/// Errors of libtorch.
pub fn principal_plane(rows: &[f32], width: usize) -> Result<(Vec<(f64, f64)>, f64)> {
    let _guard = tch::no_grad_guard();
    let rows = Tensor::f_from_slice(rows)?.f_view([-1, width as i64])?.f_to_kind(Kind::Double)?;
    let mean = rows.f_mean_dim([0i64].as_slice(), true, Kind::Double)?;
    let centred = rows.f_sub(&mean)?;
    let (values, vectors) = centred.f_tr()?.f_matmul(&centred)?.f_linalg_eigh("L")?; // ascending; columns
    let last = width as i64 - 1;
    let mut coordinates = Vec::with_capacity(2);
    for at in [last, (last - 1).max(0)] {
        let axis = vectors.f_select(1, at)?;
        let largest = axis.f_abs()?.f_argmax(0, false)?.f_int64_value(&[])?;
        let sign = if axis.f_double_value(&[largest])? < 0.0 { -1.0 } else { 1.0 };
        coordinates.push(Vec::<f64>::try_from(centred.f_mv(&axis)?.f_mul_scalar(sign)?)?);
    }
    let total = values.f_sum(Kind::Double)?.f_double_value(&[])?;
    let within = values.f_narrow(0, (last - 1).max(0), width.min(2) as i64)?.f_sum(Kind::Double)?;
    let share = if total > 0.0 { within.f_double_value(&[])? / total } else { 0.0 };
    Ok((coordinates[0].iter().copied().zip(coordinates[1].iter().copied()).collect(), share))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_plane_holds_the_two_widest_directions() {
        // Widest along channel 2, then channel 0; channel 1 hardly varies. The mean is not zero.
        let rows: Vec<f32> = (0..100)
            .flat_map(|i| {
                let (a, b) = ((i % 10) as f32, (i / 10) as f32);
                [5.0 + b, 7.0 + 0.01 * ((i % 3) as f32), 10.0 * a]
            })
            .collect();
        let (points, share) = principal_plane(&rows, 3).unwrap();
        assert!(share > 0.999 && share < 1.0, "{share}");
        assert!((points[9].0 - points[0].0 - 90.0).abs() < 0.1, "{:?} {:?}", points[0], points[9]);
        assert!((points[90].1 - points[0].1 - 9.0).abs() < 0.1, "{:?} {:?}", points[0], points[90]);
        let centre: f64 = points.iter().map(|p| p.0).sum();
        assert!(centre.abs() < 1e-6);
    }
}
