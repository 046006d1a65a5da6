//! Orthogonal matching pursuit on the residuals of a block of rows, without a Gram matrix.

use super::super::residual::{self, Residual};
use super::super::{BLOCK_ROWS, index_u16};
use super::{OrthogonalCodes, Triangle};
use crate::kernels::Isa;

/// Buffers for one block of rows.
pub(super) struct Scratch {
    residual: residual::Scratch,
    /// Orthogonalised atoms of every row, `(rows, sparsity, width)`.
    basis: Vec<f32>,
    triangles: Vec<Triangle>,
}

impl Scratch {
    pub(super) fn new(residual: &Residual<'_>, sparsity: usize, rows: usize) -> Self {
        Self {
            residual: residual.scratch(rows),
            basis: vec![0.0; rows * sparsity * residual.atoms.width()],
            triangles: (0..rows).map(|_| Triangle::new(sparsity)).collect(),
        }
    }
}

/// A row's progress.
#[derive(Clone, Copy, Default)]
struct Row {
    /// Atoms picked so far.
    length: usize,
    /// The row's energy, what is left of it, and how little may be left.
    whole: f32,
    left: f32,
    stop: f32,
    /// Whether no other atom would help.
    ended: bool,
}

impl Row {
    fn new(row: &[f32], tolerance: f32) -> Self {
        let whole: f32 = row.iter().map(|x| x * x).sum();
        Self { length: 0, whole, left: whole, stop: tolerance * tolerance * whole, ended: whole <= 0.0 }
    }
}

/// Encodes one block of rows, as [`super::Encoder::encode_orthogonal`] says.
pub(super) fn encode(
    residual: &Residual<'_>,
    rows: &[f32],
    sparsity: usize,
    tolerance: f32,
    codes: OrthogonalCodes<'_>,
    scratch: &mut Scratch,
) {
    let (isa, width) = (Isa::detect(), residual.atoms.width());
    let Scratch { residual: buffers, basis, triangles } = scratch;
    let mut progress = [Row::default(); BLOCK_ROWS];
    let n = rows.len() / width;
    for (state, row) in progress.iter_mut().zip(rows.chunks_exact(width)) {
        *state = Row::new(row, tolerance);
    }
    buffers.begin(rows);
    for _ in 0..sparsity {
        if progress[..n].iter().all(|row| row.ended) {
            break;
        }
        residual.step(isa, rows.len(), buffers, |r, candidates, left, atom| {
            let row = &mut progress[r];
            row.ended |= tolerance > 0.0 && row.left <= row.stop;
            if row.ended {
                return;
            }
            let picked = &mut codes.indices[r * sparsity..][..=row.length];
            // The residual is orthogonal to the picked atoms, up to rounding.
            let again = |index: usize| picked[..row.length].contains(&index_u16(index));
            let exact = |index: usize| match again(index) {
                true => 0.0,
                false => isa.dot(residual.atoms.atom(index, atom), left),
            };
            let (product, index) = candidates.best(exact);
            let atom = residual.atoms.atom(index, atom);
            let (done, fresh) =
                basis[r * sparsity * width..][..(row.length + 1) * width].split_at_mut(row.length * width);
            let triangle = &mut triangles[r];
            let gain = triangle.weigh(done.chunks_exact(width).map(|done| isa.dot(done, atom)));
            let (Some(gain), true) = (gain, product != 0.0) else {
                row.ended = true;
                return;
            };
            fresh.copy_from_slice(atom);
            for (&weight, done) in triangle.weights.iter().zip(done.chunks_exact(width)) {
                isa.axpy(fresh, -weight, done);
            }
            fresh.iter_mut().for_each(|x| *x *= gain);
            let step = gain * product;
            triangle.extend(row.length, gain, step);
            isa.axpy(left, -step, fresh);
            row.left -= step * step;
            picked[row.length] = index_u16(index);
            row.length += 1;
        });
    }
    for (r, row) in progress[..n].iter().enumerate() {
        triangles[r].coefficients(&mut codes.coefficients[r * sparsity..][..row.length]);
        codes.lengths[r] = row.length as u8;
        codes.residuals[r] = if row.whole > 0.0 { row.left.max(0.0) / row.whole } else { 0.0 };
    }
}
