//! The plain twin of every vector kernel, and the tail of some.

use half::f16;

pub(super) use super::attend::{exponentials, gather, rotate, scatter, score_codes, scores};

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

/// See [`super::Isa::combine_union`].
pub(super) fn combine_union(out: &mut [f32], atoms: &[f32], online: &[f16], indices: &[u16], coefficients: &[f32]) {
    out.fill(0.0);
    combine_union_from(out, 0, atoms, online, indices, coefficients);
}

/// Adds to `out` the channels from `first` on of what the codes stand for; `first + out.len()` is
/// the atoms' width.
pub(super) fn combine_union_from(
    out: &mut [f32],
    first: usize,
    atoms: &[f32],
    online: &[f16],
    indices: &[u16],
    coefficients: &[f32],
) {
    let width = first + out.len();
    let offline = atoms.len() / width;
    for (&index, &c) in indices.iter().zip(coefficients) {
        if usize::from(index) < offline {
            axpy(out, c, &super::atom(atoms, width, index)[first..]);
        } else {
            let atom = &super::online_atom(online, width, index.into(), offline)[first..];
            for (y, x) in out.iter_mut().zip(atom) {
                *y = c.mul_add(x.to_f32(), *y);
            }
        }
    }
}
