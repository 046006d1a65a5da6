//! Orthogonal matching pursuit with an inverse Cholesky factor, the encoder of Lexico (Kim et al., ICML 2025).
//!
//! Each step picks the atom with the largest correlation among the atoms not picked yet, the lowest index among equals.
//! It then solves for all coefficients again by least squares. `p = D y` are the correlations. With rows of the Gram
//! matrix, a step costs `k N` multiply-adds for `k` atoms picked so far. The step makes the new Gram row orthogonal to the
//! previous ones and subtracts it from `p`. The small triangular factor `F` converts the coefficients of the orthogonal
//! atoms to those of the picked atoms (Zhu et al., Efficient Implementations for Orthogonal Matching Pursuit, 2020,
//! version 0).
//!
//! Without a Gram matrix, the orthogonal atoms themselves are kept and subtracted from the row ([`by_residual`]). The best
//! atom of a residual is then found as in matching pursuit, with a quick look at all atoms in 8 bits.

mod by_residual;

use std::sync::Arc;

use rayon::prelude::*;

use super::{BLOCK_ROWS, Encoder, index_u16};
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
        let codes = OrthogonalCodes { indices, coefficients, lengths, residuals };
        if self.gram.is_none() {
            let residual = self.residual(atoms);
            let init = || by_residual::Scratch::new(&residual, sparsity, block_rows);
            by_blocks(rows, width, sparsity, codes, init, |scratch, rows, codes| {
                by_residual::encode(&residual, rows, sparsity, tolerance, codes, scratch);
            });
            return Ok(());
        }
        let init = || Scratch::new(self, atoms, sparsity, block_rows);
        by_blocks(rows, width, sparsity, codes, init, |scratch, rows, codes| {
            self.correlate_block(atoms, rows, scratch);
            for (r, row) in rows.chunks_exact(width).enumerate() {
                let at = r * sparsity..(r + 1) * sparsity;
                let into = (&mut codes.indices[at.clone()], &mut codes.coefficients[at]);
                let (length, left) = self.pursue_orthogonal(atoms, row, r, tolerance, into, scratch);
                (codes.lengths[r], codes.residuals[r]) = (length as u8, left);
            }
        });
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
        let Scratch { isa, all, correlations, basis, offline, atom, triangle } = scratch;
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
            let Some(gain) = triangle.weigh(done.chunks_exact(all).map(|done| done[best])) else { break };
            self.gram_row(atoms, self.atom_of(best), fresh, atom, offline);
            for (&weight, done) in triangle.weights.iter().zip(done.chunks_exact(all)) {
                isa.axpy(fresh, -weight, done);
            }
            fresh.iter_mut().for_each(|x| *x *= gain);
            let step = gain * p[best];
            triangle.extend(length, gain, step);
            isa.axpy(p, -step, fresh);
            left -= step * step;
            indices[length] = index_u16(self.atom_of(best));
            length += 1;
            for &picked in &indices[..length] {
                p[self.place_of(usize::from(picked))] = 0.0;
            }
        }
        triangle.coefficients(&mut coefficients[..length]);
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
    triangle: Triangle,
}

impl Scratch {
    fn new(encoder: &Encoder, atoms: Atoms<'_>, sparsity: usize, rows: usize) -> Self {
        let stride = encoder.transposed.stride();
        let all = stride + atoms.online().map_or(0, crate::OnlineAtoms::len);
        Self {
            isa: Isa::detect(),
            all,
            correlations: AlignedVec::zeros(rows * all),
            basis: AlignedVec::zeros(sparsity * all),
            offline: AlignedVec::zeros(stride),
            atom: vec![0.0; encoder.dictionary().width()],
            triangle: Triangle::new(sparsity),
        }
    }
}

/// What converts the coefficients of one row's orthogonal atoms to those of its picked atoms.
struct Triangle {
    sparsity: usize,
    /// `F`, `(sparsity, sparsity)`, lower triangle.
    factor: Vec<f32>,
    /// Products of the new atom with the orthogonal ones.
    weights: Vec<f32>,
    /// Coefficients of the orthogonal atoms.
    orthogonal: Vec<f32>,
}

impl Triangle {
    fn new(sparsity: usize) -> Self {
        let numbers = |n| vec![0.0; n];
        Self {
            sparsity,
            factor: numbers(sparsity * sparsity),
            weights: numbers(sparsity),
            orthogonal: numbers(sparsity),
        }
    }

    /// Takes the products of the new atom with the orthogonal ones. Returns the factor that scales the part of the atom outside of
    /// their span to unit length, or none if there is no such part.
    fn weigh(&mut self, products: impl Iterator<Item = f32>) -> Option<f32> {
        let mut outside = 1.0;
        for (weight, product) in self.weights.iter_mut().zip(products) {
            *weight = product;
            outside -= product * product;
        }
        (outside >= DEPENDENT).then(|| 1.0 / outside.sqrt())
    }

    /// Adds the atom that was weighed, with the factor `gain` and the coefficient `step` of its orthogonal part, after `length` others.
    fn extend(&mut self, length: usize, gain: f32, step: f32) {
        let Self { sparsity: s, factor, weights, orthogonal } = self;
        for j in 0..length {
            let sum: f32 = (j..length).map(|l| weights[l] * factor[l * *s + j]).sum();
            factor[length * *s + j] = -gain * sum;
        }
        factor[length * *s + length] = gain;
        orthogonal[length] = step;
    }

    /// The coefficients of the picked atoms.
    fn coefficients(&self, out: &mut [f32]) {
        let length = out.len();
        for (j, out) in out.iter_mut().enumerate() {
            *out = (j..length).map(|k| self.orthogonal[k] * self.factor[k * self.sparsity + j]).sum();
        }
    }
}

/// Encodes rows in blocks, on the current rayon pool if there are several blocks.
fn by_blocks<S>(
    rows: &[f32],
    width: usize,
    sparsity: usize,
    codes: OrthogonalCodes<'_>,
    init: impl Fn() -> S + Sync + Send,
    block: impl Fn(&mut S, &[f32], OrthogonalCodes<'_>) + Sync + Send,
) {
    if rows.len() <= BLOCK_ROWS * width {
        return block(&mut init(), rows, codes);
    }
    let OrthogonalCodes { indices, coefficients, lengths, residuals } = codes;
    let values = coefficients
        .par_chunks_mut(BLOCK_ROWS * sparsity)
        .zip(lengths.par_chunks_mut(BLOCK_ROWS))
        .zip(residuals.par_chunks_mut(BLOCK_ROWS));
    rows.par_chunks(BLOCK_ROWS * width).zip(indices.par_chunks_mut(BLOCK_ROWS * sparsity)).zip(values).for_each_init(
        init,
        |scratch, ((rows, indices), ((coefficients, lengths), residuals))| {
            block(scratch, rows, OrthogonalCodes { indices, coefficients, lengths, residuals });
        },
    );
}
