//! Sparse codes in either layout, behind one type.

mod fixed;
mod on_codes;
mod packed;
mod ragged;

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use self::ragged::used;
use crate::kernels::Isa;
use crate::{Atoms, BitsPerChannel, CodecError, Footprint};

pub use self::fixed::SparseCodes;
pub use self::on_codes::{add_atom_sums, add_weighted_codes, atom_products, score_codes};
pub use self::packed::{CoefficientFormat, PackedCodes, from_e4m3, index_bits, to_e4m3};
pub use self::ragged::{RaggedCodes, stop_early};

/// Rows expanded as one unit of parallel work.
const BLOCK: usize = 64;

/// How codes are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CodeLayout {
    /// f16 coefficients and u16 indices (paper section 4).
    #[default]
    Paper,
    /// Indices of `ceil(log2 N)` bits and coefficients of the format given.
    Packed(CoefficientFormat),
}

impl CodeLayout {
    /// Bits per channel of one kind's codes, with `chunks` codes of `sparsity` atoms over a head
    /// of `head_dim` channels: `32 s s_n / d_h` in the paper's layout.
    #[must_use]
    pub fn bits(self, sparsity: usize, chunks: usize, head_dim: usize, atoms: usize) -> BitsPerChannel {
        match self {
            Self::Paper => crate::nominal_bits(sparsity, chunks, head_dim),
            Self::Packed(format) => {
                let row = PackedCodes::new(sparsity, atoms, format).row_bytes() * 8 + format.scale_bits();
                BitsPerChannel((row * chunks) as f64 / head_dim as f64)
            }
        }
    }
}

/// Codes in one of the layouts.
#[derive(Clone, Debug)]
pub enum Codes {
    /// See [`SparseCodes`].
    Paper(SparseCodes),
    /// See [`PackedCodes`].
    Packed(PackedCodes),
    /// Rows of different lengths, see [`RaggedCodes`].
    Ragged(RaggedCodes),
}

impl Codes {
    /// No rows yet, and nothing allocated; rows will name `atoms` atoms at most.
    ///
    /// # Panics
    /// If `sparsity` is 0 or `atoms` is not in `1..=65536`.
    #[must_use]
    pub fn new(layout: CodeLayout, sparsity: usize, atoms: usize) -> Self {
        match layout {
            CodeLayout::Paper => {
                debug_assert!(index_bits(atoms) <= 16);
                Self::Paper(SparseCodes::new(sparsity))
            }
            CodeLayout::Packed(format) => Self::Packed(PackedCodes::new(sparsity, atoms, format)),
        }
    }

    /// Rows held.
    #[must_use]
    pub fn rows(&self) -> usize {
        match self {
            Self::Paper(codes) => codes.rows(),
            Self::Packed(codes) => codes.rows(),
            Self::Ragged(codes) => codes.rows(),
        }
    }

    /// Atoms per row, the paper's `s`, or the most there are.
    #[must_use]
    pub fn sparsity(&self) -> usize {
        match self {
            Self::Paper(codes) => codes.sparsity(),
            Self::Packed(codes) => codes.sparsity(),
            Self::Ragged(codes) => codes.sparsity(),
        }
    }

    /// As [`Codes::new`] for rows that leave out the zero coefficients at their end.
    ///
    /// # Panics
    /// As [`RaggedCodes::new`].
    #[must_use]
    pub fn ragged(layout: CodeLayout, sparsity: usize, atoms: usize) -> Self {
        Self::Ragged(RaggedCodes::new(layout, sparsity, atoms))
    }

    /// Appends rows `(n, sparsity)`, rounding the coefficients to what the layout stores.
    ///
    /// # Panics
    /// As [`SparseCodes::append`], [`PackedCodes::append`] and [`RaggedCodes::append`].
    pub fn append(&mut self, indices: &[u16], coefficients: &[f32]) {
        match self {
            Self::Paper(codes) => codes.append(indices, coefficients),
            Self::Packed(codes) => codes.append(indices, coefficients),
            Self::Ragged(codes) => codes.append(indices, coefficients),
        }
    }

    /// Indices and coefficients of `rows`, `(rows.len(), sparsity)` each.
    ///
    /// # Panics
    /// If the rows are not held or a slice has another size.
    pub fn unpack(&self, rows: Range<usize>, indices: &mut [u16], coefficients: &mut [f32]) {
        match self {
            Self::Paper(codes) => {
                let at = rows.start * codes.sparsity()..rows.end * codes.sparsity();
                indices.copy_from_slice(&codes.indices()[at.clone()]);
                codes.coefficients()[at].convert_to_f32_slice(coefficients);
            }
            Self::Packed(codes) => codes.unpack(rows, indices, coefficients),
            Self::Ragged(codes) => codes.unpack(rows, indices, coefficients),
        }
    }

    /// De-sparse (paper section 4): writes `rows` restored over `atoms` to `out`,
    /// `(rows.len(), width)`. Runs on the current rayon pool.
    ///
    /// # Errors
    /// As [`SparseCodes::decode_into`].
    pub fn decode_into(&self, atoms: Atoms<'_>, rows: Range<usize>, out: &mut [f32]) -> Result<(), CodecError> {
        if let (Self::Paper(codes), None) = (self, atoms.online()) {
            return codes.decode_into(atoms.offline(), rows, out);
        }
        if rows.start > rows.end || rows.end > self.rows() {
            return Err(CodecError::RowRange { start: rows.start, end: rows.end, rows: self.rows() });
        }
        let (s, width) = (self.sparsity(), atoms.width());
        CodecError::length("decoded rows", rows.len() * width, out.len())?;
        let isa = Isa::detect();
        out.par_chunks_mut(BLOCK * width).enumerate().try_for_each_init(
            || (vec![0; BLOCK * s], vec![0.0; BLOCK * s]),
            |(indices, coefficients), (block, out)| {
                let first = rows.start + block * BLOCK;
                let n = out.len() / width;
                let (indices, coefficients) = (&mut indices[..n * s], &mut coefficients[..n * s]);
                self.unpack(first..first + n, indices, coefficients);
                if let Some(at) = indices.iter().position(|&i| usize::from(i) >= atoms.len()) {
                    let (row, index) = (first + at / s, indices[at].into());
                    return Err(CodecError::UnknownAtom { row, index, atoms: atoms.len() });
                }
                let codes = indices.chunks_exact(s).zip(coefficients.chunks_exact(s));
                for (out, (indices, coefficients)) in out.chunks_exact_mut(width).zip(codes) {
                    let used = used(coefficients);
                    atoms.combine(isa, &indices[..used], &coefficients[..used], out);
                }
                Ok(())
            },
        )
    }

    /// As [`Codes::decode_into`] on the calling thread alone, with buffers that are reused from call to call.
    ///
    /// # Panics
    /// If the rows are not held, a code names an atom that is not there, or `out` has another size.
    pub fn restore(&self, atoms: Atoms<'_>, rows: Range<usize>, buffers: &mut CodeBuffers, out: &mut [f32]) {
        let (s, isa) = (self.sparsity(), Isa::detect());
        let (indices, coefficients) = buffers.unpacked(self, rows);
        let codes = indices.chunks_exact(s).zip(coefficients.chunks_exact(s));
        for (out, (indices, coefficients)) in out.chunks_exact_mut(atoms.width()).zip(codes) {
            let used = used(coefficients);
            atoms.combine(isa, &indices[..used], &coefficients[..used], out);
        }
    }

    /// Forgets all rows and gives the memory back.
    pub fn clear(&mut self) {
        match self {
            Self::Paper(codes) => codes.clear(),
            Self::Packed(codes) => codes.clear(),
            Self::Ragged(codes) => codes.clear(),
        }
    }

    /// Bytes allocated, by part.
    #[must_use]
    pub fn footprint(&self) -> Footprint {
        match self {
            Self::Paper(codes) => codes.footprint(),
            Self::Packed(codes) => codes.footprint(),
            Self::Ragged(codes) => codes.footprint(),
        }
    }
}

/// Room for unpacked codes.
#[derive(Debug, Default)]
pub struct CodeBuffers {
    indices: Vec<u16>,
    coefficients: Vec<f32>,
}

impl CodeBuffers {
    /// Indices and coefficients of `rows`, `(rows.len(), sparsity)` each.
    ///
    /// # Panics
    /// If the rows are not held.
    pub fn unpacked(&mut self, codes: &Codes, rows: Range<usize>) -> (&[u16], &[f32]) {
        let n = rows.len() * codes.sparsity();
        if self.indices.len() < n {
            self.indices.resize(n, 0);
            self.coefficients.resize(n, 0.0);
        }
        codes.unpack(rows, &mut self.indices[..n], &mut self.coefficients[..n]);
        (&self.indices[..n], &self.coefficients[..n])
    }
}
