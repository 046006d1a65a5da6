//! Rows that need fewer atoms than they may have.

/// Entries of a row before the zeros at its end.
pub(super) fn used(coefficients: &[f32]) -> usize {
    coefficients.iter().rposition(|&c| c != 0.0).map_or(0, |last| last + 1)
}

/// Keeps of every row of codes `(n, s)` only the atoms that matching pursuit needed to come within
/// `tolerance`, in `‖x - x̂‖² / ‖x‖²`, and sets the rest to index 0 with coefficient 0. A row that
/// does not come that close keeps all.
///
/// Each step of pursuit takes the square of its coefficient off the squared residual, so nothing
/// is restored to find out. The coefficients must be those of pursuit itself: refit afterwards.
///
/// # Panics
/// If `rows` `(n, width)` and the codes differ in rows.
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
        // Energies 25, of which steps take 16 and 9; then 1, all in the first; then nothing at all.
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
