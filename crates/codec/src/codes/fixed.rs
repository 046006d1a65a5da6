//! Sparse codes in the paper's layout, and their expansion back to vectors.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use crate::kernels::{Isa, saturating_f16};
use crate::{CodecError, Dictionary, Encoder, Footprint};

/// Rows by which the vectors grow: doubling would leave up to half of a cache
/// allocated and empty, and the ledger counts capacity.
const PAGE_ROWS: usize = 256;

/// Rows coded at a time by [`SparseCodes::encode_append`], to bound its scratch.
const ENCODE_ROWS: usize = 4096;

/// Rows expanded as one unit of parallel work.
const DECODE_BLOCK: usize = 64;

/// Multiply-adds below which a thread pool costs more than it saves.
const PARALLEL_FLOOR: usize = 1 << 17;

/// Codes of fixed sparsity `s`: per row `s` atom indices (u16) and `s` signed
/// coefficients (f16), the storage of paper section 4.
///
/// A row stands for `sum_j coefficient[j] * atom[index[j]]`; an index may repeat.
#[derive(Clone, Debug)]
pub struct SparseCodes {
    sparsity: usize,
    indices: Vec<u16>,
    coefficients: Vec<f16>,
}

impl SparseCodes {
    /// No rows yet, and nothing allocated.
    ///
    /// # Panics
    /// If `sparsity` is 0.
    #[must_use]
    pub fn new(sparsity: usize) -> Self {
        assert!(sparsity > 0, "a code keeps at least one atom per row");
        Self { sparsity, indices: Vec::new(), coefficients: Vec::new() }
    }

    /// Rows held.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.indices.len() / self.sparsity
    }

    /// Atoms per row, the paper's `s`.
    #[must_use]
    pub fn sparsity(&self) -> usize {
        self.sparsity
    }

    /// Appends rows `(n, sparsity)`; coefficients are rounded to the nearest f16 and
    /// saturate at ±65504, since an infinite coefficient would decode to NaN.
    ///
    /// # Panics
    /// If the slices differ in length or are not a whole number of rows.
    pub fn append(&mut self, indices: &[u16], coefficients: &[f32]) {
        assert_eq!(indices.len(), coefficients.len(), "one coefficient per index");
        assert_eq!(indices.len() % self.sparsity, 0, "whole rows");
        self.reserve(indices.len() / self.sparsity);
        self.indices.extend_from_slice(indices);
        self.coefficients.extend(coefficients.iter().map(|&c| saturating_f16(c)));
    }

    /// Codes `rows` `(n, width)` and appends them.
    ///
    /// # Errors
    /// As [`Encoder::encode`]; the codes are then as they were.
    pub fn encode_append(&mut self, encoder: &Encoder, rows: &[f32]) -> Result<(), CodecError> {
        let n = encoder.check_rows(rows)?;
        self.reserve(n);
        let scratch = n.min(ENCODE_ROWS) * self.sparsity;
        let (mut indices, mut coefficients) = (vec![0; scratch], vec![0.0; scratch]);
        for rows in rows.chunks(ENCODE_ROWS * encoder.dictionary().width()) {
            let used = rows.len() / encoder.dictionary().width() * self.sparsity;
            let (indices, coefficients) = (&mut indices[..used], &mut coefficients[..used]);
            encoder.encode_checked(rows, self.sparsity, indices, coefficients);
            self.append(indices, coefficients);
        }
        Ok(())
    }

    /// Atom indices, `(rows, sparsity)`.
    #[must_use]
    pub fn indices(&self) -> &[u16] {
        &self.indices
    }

    /// Coefficients, `(rows, sparsity)`.
    #[must_use]
    pub fn coefficients(&self) -> &[f16] {
        &self.coefficients
    }

    /// Row `i`: its indices and coefficients, `(sparsity,)` each.
    ///
    /// # Panics
    /// If `i >= self.rows()`.
    #[must_use]
    pub fn row(&self, i: usize) -> (&[u16], &[f16]) {
        let at = i * self.sparsity..(i + 1) * self.sparsity;
        (&self.indices[at.clone()], &self.coefficients[at])
    }

    /// De-sparse (paper section 4): writes `X^ = r D` of `rows` to `out`,
    /// `(rows.len(), width)`. Parallel over blocks of rows when that pays.
    ///
    /// # Errors
    /// If `rows` is out of range, `out` has another size, or a code names an atom
    /// that `dictionary` lacks; `out` is then partly written.
    pub fn decode_into(&self, dictionary: &Dictionary, rows: Range<usize>, out: &mut [f32]) -> Result<(), CodecError> {
        if rows.start > rows.end || rows.end > self.rows() {
            return Err(CodecError::RowRange { start: rows.start, end: rows.end, rows: self.rows() });
        }
        let (s, width) = (self.sparsity, dictionary.width());
        CodecError::length("decoded rows", rows.len() * width, out.len())?;
        let indices = &self.indices[rows.start * s..rows.end * s];
        let coefficients = &self.coefficients[rows.start * s..rows.end * s];

        // The lowest offending position, so that the error is the same for any thread count.
        let unknown = AtomicUsize::new(usize::MAX);
        let isa = Isa::detect();
        let block = |scratch: &mut Vec<f32>, (b, ((indices, coefficients), out)): (usize, Block<'_>)| {
            if let Some(at) = indices.iter().position(|&i| usize::from(i) >= dictionary.len()) {
                unknown.fetch_min(b * DECODE_BLOCK * s + at, Ordering::Relaxed);
                return;
            }
            scratch.resize(coefficients.len(), 0.0);
            coefficients.convert_to_f32_slice(scratch);
            let codes = indices.chunks_exact(s).zip(scratch.chunks_exact(s));
            for (out, (indices, coefficients)) in out.chunks_exact_mut(width).zip(codes) {
                isa.combine(out, dictionary.atoms(), &[], indices, coefficients);
            }
        };
        if rows.len() * s * width < PARALLEL_FLOOR {
            let mut scratch = Vec::with_capacity(DECODE_BLOCK.min(rows.len()) * s);
            indices
                .chunks(DECODE_BLOCK * s)
                .zip(coefficients.chunks(DECODE_BLOCK * s))
                .zip(out.chunks_mut(DECODE_BLOCK * width))
                .enumerate()
                .for_each(|work| block(&mut scratch, work));
        } else {
            indices
                .par_chunks(DECODE_BLOCK * s)
                .zip(coefficients.par_chunks(DECODE_BLOCK * s))
                .zip(out.par_chunks_mut(DECODE_BLOCK * width))
                .enumerate()
                .for_each_init(|| Vec::with_capacity(DECODE_BLOCK * s), block);
        }
        match unknown.into_inner() {
            usize::MAX => Ok(()),
            at => Err(CodecError::UnknownAtom {
                row: rows.start + at / s,
                index: usize::from(indices[at]),
                atoms: dictionary.len(),
            }),
        }
    }

    /// Forgets all rows and gives the memory back.
    pub fn clear(&mut self) {
        *self = Self::new(self.sparsity);
    }

    /// Bytes allocated for indices and coefficients.
    #[must_use]
    pub fn footprint(&self) -> Footprint {
        Footprint {
            indices: self.indices.capacity() * size_of::<u16>(),
            coefficients: self.coefficients.capacity() * size_of::<f16>(),
            ..Footprint::default()
        }
    }

    /// What [`SparseCodes::footprint`] is after `rows` rows in one call.
    #[must_use]
    pub fn footprint_of(sparsity: usize, rows: usize) -> Footprint {
        let room = if rows == 0 { 0 } else { rows.max(PAGE_ROWS) * sparsity };
        Footprint { indices: room * size_of::<u16>(), coefficients: room * size_of::<f16>(), ..Footprint::default() }
    }

    fn reserve(&mut self, rows: usize) {
        let needed = rows * self.sparsity;
        if self.indices.capacity() - self.indices.len() < needed {
            let grow = rows.max(PAGE_ROWS) * self.sparsity;
            self.indices.reserve_exact(grow);
            self.coefficients.reserve_exact(grow);
        }
    }
}

type Block<'a> = ((&'a [u16], &'a [f16]), &'a mut [f32]);
