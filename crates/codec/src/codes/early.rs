//! Rows that use fewer atoms than the sparsity allows.

/// Number of entries of a row without the zeros at its end.
pub(super) fn used(coefficients: &[f32]) -> usize {
    coefficients.iter().rposition(|&c| c != 0.0).map_or(0, |last| last + 1)
}

/// Keeps in each row of codes `(n, s)` only the atoms that matching pursuit needed to reach a relative squared error
/// `‖x - x̂‖² / ‖x‖²` of at most `tolerance`. The other entries become index 0 with coefficient 0. A row that does not
/// reach the tolerance keeps all its atoms.
///
/// Each step of matching pursuit subtracts the square of its coefficient from the squared residual. The error is
/// therefore known without decoding. The coefficients must be those of matching pursuit itself, so call
/// [`refit`](crate::refit) after this function.
///
/// # Panics
/// If `rows` `(n, width)` and the codes have different numbers of rows.
pub fn stop_early(rows: &[f32], width: usize, tolerance: f32, indices: &mut [u16], coefficients: &mut [f32]) {
    let n = rows.len() / width.max(1);
    if n == 0 || indices.is_empty() {
        return;
    }
    let s = indices.len() / n;
    assert_eq!((indices.len(), coefficients.len()), (n * s, n * s), "codes of every row");
    let codes = indices.chunks_exact_mut(s).zip(coefficients.chunks_exact_mut(s));
    for (row, (indices, coefficients)) in rows.chunks_exact(width).zip(codes) {
        let energy: f64 = row.iter().map(|&x| f64::from(x).powi(2)).sum();
        let enough = f64::from(tolerance) * energy;
        let mut left = energy;
        let mut kept = 0;
        while kept < s && left > enough {
            left -= f64::from(coefficients[kept]).powi(2);
            kept += 1;
        }
        indices[kept..].fill(0);
        coefficients[kept..].fill(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pursuit_stops_where_enough_is_represented() {
        // Row 1 has energy 25: its steps take 16 and 9. Row 2 has energy 1: its first step takes all. Row 3 is zero.
        let rows = [4.0, 3.0, 1.0, 0.0, 0.0, 0.0];
        let run = |tolerance: f32| {
            let (mut indices, mut coefficients) = ([5, 6, 7, 0, 0, 0], [4.0, 3.0, 1.0, 0.0, 0.0, 0.0]);
            stop_early(&rows, 2, tolerance, &mut indices, &mut coefficients);
            (indices, coefficients)
        };
        assert_eq!(run(0.35), ([5, 6, 7, 0, 0, 0], [4.0, 3.0, 1.0, 0.0, 0.0, 0.0]));
        assert_eq!(run(0.36), ([5, 0, 7, 0, 0, 0], [4.0, 0.0, 1.0, 0.0, 0.0, 0.0]));
        assert_eq!(run(1.0), ([0; 6], [0.0; 6]));
    }
}
