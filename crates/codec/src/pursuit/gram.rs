//! Matching pursuit on correlations, with the Gram matrix.

use rayon::prelude::*;

use super::transposed::Transposed;
use super::{BLOCK_ROWS, Codes, index_u16};
use crate::Dictionary;
use crate::kernels::Isa;
use crate::kernels::{AlignedVec, LINE};

/// `G = D Dᵀ`, `(N, stride)`. Rows are padded with zeros to whole cache lines.
#[derive(Debug)]
pub(super) struct Gram {
    entries: AlignedVec,
    stride: usize,
}

impl Gram {
    pub(super) fn new(dictionary: &Dictionary, transposed: &Transposed) -> Self {
        let stride = transposed.stride();
        let mut entries = AlignedVec::zeros(dictionary.len() * stride);
        entries
            .par_chunks_mut(BLOCK_ROWS * stride)
            .zip(dictionary.atoms().par_chunks(BLOCK_ROWS * dictionary.width()))
            .for_each(|(out, atoms)| transposed.correlate(0..stride, atoms, out));
        Self { entries, stride }
    }

    pub(super) fn bytes_of(atoms: usize) -> usize {
        AlignedVec::bytes_of(atoms * atoms.next_multiple_of(LINE))
    }

    /// Inner products of atom `i` with all atoms, `(stride,)`.
    pub(super) fn row(&self, i: usize) -> &[f32] {
        &self.entries[i * self.stride..(i + 1) * self.stride]
    }

    pub(super) fn bytes(&self) -> usize {
        self.entries.bytes()
    }

    /// Encodes one block of rows `(n, width)`, `n <= BLOCK_ROWS`.
    pub(super) fn encode(
        &self,
        isa: Isa,
        transposed: &Transposed,
        rows: &[f32],
        codes: Codes<'_>,
        correlations: &mut [f32],
    ) {
        let n = rows.len() / transposed.width();
        let correlations = &mut correlations[..n * self.stride];
        transposed.correlate(0..self.stride, rows, correlations);
        for (p, (indices, coefficients)) in correlations.chunks_exact_mut(self.stride).zip(
            codes.indices.chunks_exact_mut(codes.sparsity).zip(codes.coefficients.chunks_exact_mut(codes.sparsity)),
        ) {
            self.pursue(isa, p, indices, coefficients);
        }
    }

    /// Runs the `s` steps for one row, given its correlations `p` `(stride,)`.
    fn pursue(&self, isa: Isa, p: &mut [f32], indices: &mut [u16], coefficients: &mut [f32]) {
        let mut best = isa.peak(p);
        let last = indices.len() - 1;
        for step in 0..=last {
            let coefficient = p[best];
            if coefficient == 0.0 {
                indices[step..].fill(0);
                coefficients[step..].fill(0.0);
                return;
            }
            indices[step] = index_u16(best);
            coefficients[step] = coefficient;
            if step < last {
                best = isa.subtract_then_peak(p, coefficient, self.row(best));
            }
        }
    }
}
