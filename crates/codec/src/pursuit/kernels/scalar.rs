//! The plain twin of every vector kernel, and the tail of some.

pub(super) use super::attend::{gather, rotate, scatter, scores};

/// See [`super::Isa::peak`].
pub(super) fn peak(p: &[f32]) -> usize {
    peak_from(p, 0, (0, 0.0)).0
}

/// Continues a search at `start` with the best `(index, magnitude)` so far.
pub(super) fn peak_from(p: &[f32], start: usize, best: (usize, f32)) -> (usize, f32) {
    p.iter().enumerate().fold(best, |best, (i, x)| if x.abs() > best.1 { (start + i, x.abs()) } else { best })
}

/// See [`super::Isa::subtract_then_peak`].
pub(super) fn subtract_then_peak(p: &mut [f32], c: f32, g: &[f32]) -> usize {
    axpy(p, -c, g);
    peak(p)
}

/// See [`super::Isa::axpy`].
pub(super) fn axpy(y: &mut [f32], a: f32, x: &[f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = a.mul_add(x, *y);
    }
}

/// See [`super::Isa::combine`].
pub(super) fn combine(out: &mut [f32], atoms: &[f32], indices: &[u16], coefficients: &[f32]) {
    out.fill(0.0);
    for (&index, &c) in indices.iter().zip(coefficients) {
        axpy(out, c, super::atom(atoms, out.len(), index));
    }
}
