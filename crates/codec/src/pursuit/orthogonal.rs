//! Orthogonal matching pursuit with an inverse Cholesky factor, the encoder of Lexico (Kim et al., ICML 2025).
//!
//! Each step picks the atom with the largest correlation among the atoms not picked yet, the lowest index among equals.
//! It then solves for all coefficients again by least squares. `p = D y` are the correlations. With rows of the Gram
//! matrix, a step costs `k N` multiply-adds for `k` atoms picked so far. The step makes the new Gram row orthogonal to the
//! previous ones and subtracts it from `p`. The small triangular factor `F` converts the coefficients of the orthogonal
//! atoms to those of the picked atoms (Zhu et al., Efficient Implementations for Orthogonal Matching Pursuit, 2020,
//! version 0).

use std::sync::Arc;

use rayon::prelude::*;

use super::{BLOCK_ROWS, Encoder, PursuitPath, index_u16};
use crate::kernels::AlignedVec;
use crate::kernels::Isa;
use crate::{Atoms, CodecError};

/// The pursuit of a row ends if less than this part of the new atom is outside the span of the picked atoms.
const DEPENDENT: f32 = 1e-6;

/// Output buffers of [`Encoder::encode_orthogonal`], one row per vector.
#[derive(Debug)]
pub struct OrthogonalCodes<'a> {
    /// Atom indices, `(n, sparsity)`. Entries after a row's length are 0.
    pub indices: &'a mut [u16],
    /// Least-squares coefficients, `(n, sparsity)`. Entries after a row's length are 0.
    pub coefficients: &'a mut [f32],
    /// Numbers of picked atoms, `(n)`.
    pub lengths: &'a mut [u8],
    /// `||x - x^||² / ||x||²` before the coefficients are rounded, `(n)`. It is 0 for a row of zeros.
    pub residuals: &'a mut [f32],
}

impl Encoder {
    /// Encodes `rows` `(n, width)` over `atoms` with at most `sparsity` atoms per row. A row stops earlier if its relative
    /// residual `||x - x^|| / ||x||` reaches `tolerance` (0: never), or if no other atom reduces the residual.
    ///
    /// Runs on the current rayon pool. The code of a row does not depend on the other rows.
    ///
    /// # Errors
    /// The same as [`Encoder::encode`]. Also if `sparsity` is greater than 255.
    ///
    /// # Panics
    /// If the offline part of `atoms` is not this encoder's dictionary.
    pub fn encode_orthogonal(
        &self,
        atoms: Atoms<'_>,
        rows: &[f32],
        sparsity: usize,
        tolerance: f32,
        codes: OrthogonalCodes<'_>,
    ) -> Result<(), CodecError> {
        assert!(std::ptr::eq(atoms.offline(), Arc::as_ptr(self.dictionary())), "another offline dictionary");
        let n = self.check_rows(rows)?;
        if sparsity > usize::from(u8::MAX) {
            return Err(CodecError::Length { what: "sparsity", expected: u8::MAX.into(), found: sparsity });
        }
        let OrthogonalCodes { indices, coefficients, lengths, residuals } = codes;
        CodecError::length("indices", n * sparsity, indices.len())?;
        CodecError::length("coefficients", n * sparsity, coefficients.len())?;
        CodecError::length("lengths", n, lengths.len())?;
        CodecError::length("residuals", n, residuals.len())?;
        indices.fill(0);
        coefficients.fill(0.0);
        lengths.fill(0);
        residuals.fill(1.0);
        if n == 0 || sparsity == 0 {
            return Ok(());
        }
        let width = self.dictionary().width();
        let block_rows = BLOCK_ROWS.min(n);
        let init = || Scratch::new(self, atoms, sparsity, block_rows);
        type Row<'r> = ((&'r [f32], &'r mut [u16]), ((&'r mut [f32], &'r mut [u8]), &'r mut [f32]));
        let block = |scratch: &mut Scratch, ((rows, indices), ((coefficients, lengths), residuals)): Row<'_>| {
            self.correlate_block(atoms, rows, scratch);
            for (r, row) in rows.chunks_exact(width).enumerate() {
                let at = r * sparsity..(r + 1) * sparsity;
                let (length, left) = self.pursue_orthogonal(
                    atoms,
                    row,
                    r,
                    tolerance,
                    (&mut indices[at.clone()], &mut coefficients[at]),
                    scratch,
                );
                (lengths[r], residuals[r]) = (length as u8, left);
            }
        };
        if n <= BLOCK_ROWS {
            block(&mut init(), ((rows, indices), ((coefficients, lengths), residuals)));
        } else {
            let values = coefficients
                .par_chunks_mut(BLOCK_ROWS * sparsity)
                .zip(lengths.par_chunks_mut(BLOCK_ROWS))
                .zip(residuals.par_chunks_mut(BLOCK_ROWS));
            rows.par_chunks(BLOCK_ROWS * width)
                .zip(indices.par_chunks_mut(BLOCK_ROWS * sparsity))
                .zip(values)
                .for_each_init(init, block);
        }
        Ok(())
    }

    /// Correlations of a block of rows with all atoms.
    fn correlate_block(&self, atoms: Atoms<'_>, rows: &[f32], scratch: &mut Scratch) {
        let width = self.dictionary().width();
        let n = rows.len() / width;
        let (stride, all) = (self.transposed.stride(), scratch.all);
        if all == stride {
            self.transposed.correlate(0..stride, rows, &mut scratch.correlations[..n * stride]);
            return;
        }
        let Scratch { correlations, offline, .. } = scratch;
        for (row, p) in rows.chunks_exact(width).zip(correlations.chunks_exact_mut(all)) {
            self.transposed.correlate(0..stride, row, &mut offline[..stride]);
            p[..stride].copy_from_slice(&offline[..stride]);
            online_products(atoms, row, &mut p[stride..]);
        }
    }

    /// Encodes one row. Returns the number of picked atoms and the fraction of the row's energy that remains.
    fn pursue_orthogonal(
        &self,
        atoms: Atoms<'_>,
        row: &[f32],
        r: usize,
        tolerance: f32,
        (indices, coefficients): (&mut [u16], &mut [f32]),
        scratch: &mut Scratch,
    ) -> (usize, f32) {
        let Scratch { isa, all, correlations, basis, offline, atom, factor, weights, orthogonal, .. } = scratch;
        let (isa, all, s) = (*isa, *all, indices.len());
        let p = &mut correlations[r * all..(r + 1) * all];
        let whole: f32 = row.iter().map(|x| x * x).sum();
        let (mut left, mut length) = (whole, 0);
        let stop = tolerance * tolerance * whole;
        while length < s && whole > 0.0 && (tolerance <= 0.0 || left > stop) {
            let best = isa.peak(p);
            if p[best] == 0.0 {
                break;
            }
            let (done, rest) = basis.split_at_mut(length * all);
            let fresh = &mut rest[..all];
            let mut outside = 1.0;
            for (weight, done) in weights.iter_mut().zip(done.chunks_exact(all)) {
                *weight = done[best];
                outside -= *weight * *weight;
            }
            if outside < DEPENDENT {
                break;
            }
            self.gram_row(atoms, self.atom_of(best), fresh, atom, offline);
            for (&weight, done) in weights.iter().zip(done.chunks_exact(all)) {
                isa.axpy(fresh, -weight, done);
            }
            let gain = 1.0 / outside.sqrt();
            fresh.iter_mut().for_each(|x| *x *= gain);
            let step = gain * p[best];
            for j in 0..length {
                let sum: f32 = (j..length).map(|l| weights[l] * factor[l * s + j]).sum();
                factor[length * s + j] = -gain * sum;
            }
            factor[length * s + length] = gain;
            isa.axpy(p, -step, fresh);
            orthogonal[length] = step;
            left -= step * step;
            indices[length] = index_u16(self.atom_of(best));
            length += 1;
            for &picked in &indices[..length] {
                p[self.place_of(usize::from(picked))] = 0.0;
            }
        }
        for j in 0..length {
            coefficients[j] = (j..length).map(|k| orthogonal[k] * factor[k * s + j]).sum();
        }
        (length, if whole > 0.0 { left.max(0.0) / whole } else { 0.0 })
    }

    /// The atom whose correlation is at `place`. Online atoms follow the padding of the offline atoms.
    fn atom_of(&self, place: usize) -> usize {
        let (stride, offline) = (self.transposed.stride(), self.dictionary().len());
        if place < stride { place } else { offline + place - stride }
    }

    fn place_of(&self, atom: usize) -> usize {
        let (stride, offline) = (self.transposed.stride(), self.dictionary().len());
        if atom < offline { atom } else { stride + atom - offline }
    }

    /// Inner products of atom `i` with all atoms.
    fn gram_row(&self, atoms: Atoms<'_>, i: usize, out: &mut [f32], atom: &mut [f32], offline: &mut [f32]) {
        let stride = self.transposed.stride();
        match &self.gram {
            Some(gram) if i < self.dictionary().len() => out[..stride].copy_from_slice(gram.row(i)),
            _ => {
                atoms.copy_atom(i, atom);
                self.transposed.correlate(0..stride, atom, &mut offline[..stride]);
                out[..stride].copy_from_slice(&offline[..stride]);
            }
        }
        if out.len() > stride {
            atoms.copy_atom(i, atom);
            online_products(atoms, atom, &mut out[stride..]);
        }
    }
}

/// `<row, d>` for every online atom.
fn online_products(atoms: Atoms<'_>, row: &[f32], out: &mut [f32]) {
    let Some(online) = atoms.online() else { return };
    for (i, out) in out.iter_mut().enumerate() {
        *out = row.iter().zip(online.atom(i)).map(|(x, d)| x * d.to_f32()).sum();
    }
}

/// Buffers for one block of rows.
struct Scratch {
    isa: Isa,
    /// Correlations of one row: the offline ones with their padding, then the online ones.
    all: usize,
    correlations: AlignedVec,
    /// Orthogonalised Gram rows, `(sparsity, all)`.
    basis: AlignedVec,
    /// Products of one vector with the offline atoms, aligned.
    offline: AlignedVec,
    atom: Vec<f32>,
    /// `F`, `(sparsity, sparsity)`, lower triangle.
    factor: Vec<f32>,
    weights: Vec<f32>,
    orthogonal: Vec<f32>,
}

impl Scratch {
    fn new(encoder: &Encoder, atoms: Atoms<'_>, sparsity: usize, rows: usize) -> Self {
        debug_assert!(matches!(encoder.path(), PursuitPath::Gram | PursuitPath::Residual));
        let stride = encoder.transposed.stride();
        let all = stride + atoms.online().map_or(0, crate::OnlineAtoms::len);
        Self {
            isa: Isa::detect(),
            all,
            correlations: AlignedVec::zeros(rows * all),
            basis: AlignedVec::zeros(sparsity * all),
            offline: AlignedVec::zeros(stride),
            atom: vec![0.0; encoder.dictionary().width()],
            factor: vec![0.0; sparsity * sparsity],
            weights: vec![0.0; sparsity],
            orthogonal: vec![0.0; sparsity],
        }
    }
}
