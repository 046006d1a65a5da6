//! Matching pursuit (paper section 3.1; Mallat and Zhang 1993).
//!
//! The pursuit starts from the residual `R_1 = x`. Each of `s` steps picks the atom with the largest `|<R_g, d_n>|`, the
//! lowest index among equals. The signed inner product is its coefficient. The step then subtracts:
//! `R_{g+1} = R_g - c_g d_{i_g}`.
//!
//! Two methods compute the same codes:
//! - [`PursuitPath::Gram`] never computes the residual. With `p = D x` and `G = D Dᵀ` a step is `p -= c G[i]`. This takes
//!   `N` multiply-adds instead of `N d`, and the same pass finds the next largest `|p|`. `G` takes `4 N²` bytes.
//! - [`PursuitPath::Residual`] compares the residual with all atoms in every step, for a block of rows at a time. It is for
//!   an `N` so large that `G` does not fit. A quick and inexact comparison leaves a few candidates, for which exact products
//!   are computed. The quick comparison uses 8-bit numbers if the CPU is fast at them, and otherwise a product in f32. The
//!   codes are the same to the bit on any CPU.

mod candidates;
mod gram;
mod orthogonal;
mod reconstruct;
mod residual;
mod screen;
mod transposed;
mod union;

use std::sync::Arc;

use rayon::prelude::*;

use self::gram::Gram;
use self::residual::Residual;
use self::screen::Screen;
use self::transposed::Transposed;
use crate::kernels::AlignedVec;
use crate::kernels::Isa;
use crate::{Atoms, CodecError, Dictionary};

pub use self::orthogonal::OrthogonalCodes;
pub use self::reconstruct::{ReconstructionError, reconstruction_error};
pub use self::union::relative_residuals;

/// Rows encoded together. The number is fixed, so that the codes never depend on the number of threads.
pub(crate) const BLOCK_ROWS: usize = 64;

/// The largest Gram matrix that [`Encoder::new`] builds, in bytes. N = 4096 just fits.
pub const GRAM_BUDGET: usize = 64 << 20;

/// How an [`Encoder`] tracks the residual. Both paths give the same codes, up to rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PursuitPath {
    /// Update correlations with rows of the Gram matrix. Fast, but takes `4 N²` bytes.
    Gram,
    /// Compare with all atoms in every step. Slower, but no table is larger than the atoms. Gives the same bits on any CPU.
    Residual,
}

/// Encodes vectors by matching pursuit over one dictionary.
///
/// Building an encoder costs `N² d` multiply-adds on the Gram path and very little on the other path.
#[derive(Debug)]
pub struct Encoder {
    dictionary: Arc<Dictionary>,
    transposed: Transposed,
    gram: Option<Gram>,
    /// Present on the residual path only, if the CPU supports it.
    screen: Option<Screen>,
}

impl Encoder {
    /// Uses the Gram path if its matrix fits [`GRAM_BUDGET`] (`N <= 4096`), otherwise the residual path.
    #[must_use]
    pub fn new(dictionary: Arc<Dictionary>) -> Self {
        let gram_bytes = dictionary.len().pow(2) * size_of::<f32>();
        let path = if gram_bytes <= GRAM_BUDGET { PursuitPath::Gram } else { PursuitPath::Residual };
        Self::with_path(dictionary, path)
    }

    /// Uses the given path, whatever memory it needs.
    #[must_use]
    pub fn with_path(dictionary: Arc<Dictionary>, path: PursuitPath) -> Self {
        let transposed = Transposed::new(&dictionary);
        let (gram, screen) = match path {
            PursuitPath::Gram => (Some(Gram::new(&dictionary, &transposed)), None),
            PursuitPath::Residual => (None, Screen::new(&dictionary)),
        };
        Self { dictionary, transposed, gram, screen }
    }

    /// The dictionary of this encoder.
    #[must_use]
    pub fn dictionary(&self) -> &Arc<Dictionary> {
        &self.dictionary
    }

    /// The path that this encoder uses.
    #[must_use]
    pub fn path(&self) -> PursuitPath {
        match self.gram {
            Some(_) => PursuitPath::Gram,
            None => PursuitPath::Residual,
        }
    }

    /// Bytes of the tables on the heap: the transposed atoms and, if present, the Gram matrix or the atoms in 8 bits. The
    /// dictionary itself is not included, because it may be shared.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.transposed.bytes()
            + self.gram.as_ref().map_or(0, Gram::bytes)
            + self.screen.as_ref().map_or(0, Screen::bytes)
    }

    /// The value of [`Encoder::bytes`] for `atoms` atoms of `width` elements on this machine. It does not build an encoder.
    #[must_use]
    pub fn bytes_of(atoms: usize, width: usize) -> usize {
        let small = atoms.pow(2) * size_of::<f32>() <= GRAM_BUDGET;
        let table = if small { Gram::bytes_of(atoms) } else { Screen::bytes_of(atoms, width) };
        Transposed::bytes_of(atoms, width) + table
    }

    /// Encodes `rows` `(n, width)` into `indices` and `coefficients`, both `(n, sparsity)`. Each row takes exactly
    /// `sparsity` steps, and the entries are in the order of the steps. An atom may be picked again; decoding adds up its
    /// coefficients. When all correlations of the residual are zero, the remaining entries are index 0 with coefficient 0.
    ///
    /// Runs on the current rayon pool. The code of a row does not depend on the number of threads or on the other rows of the
    /// call.
    ///
    /// # Errors
    /// If a slice has the wrong length, or a row contains a NaN, an infinity, or elements whose absolute values overflow
    /// `f32` when they are summed. The outputs are then unchanged.
    pub fn encode(
        &self,
        rows: &[f32],
        sparsity: usize,
        indices: &mut [u16],
        coefficients: &mut [f32],
    ) -> Result<(), CodecError> {
        let n = CodecError::multiple("rows", self.dictionary.width(), rows.len())?;
        CodecError::length("indices", n * sparsity, indices.len())?;
        CodecError::length("coefficients", n * sparsity, coefficients.len())?;
        self.check_rows(rows)?;
        self.encode_checked(rows, sparsity, indices, coefficients);
        Ok(())
    }

    /// Checks that `rows` can be encoded, and returns their number.
    pub(crate) fn check_rows(&self, rows: &[f32]) -> Result<usize, CodecError> {
        let width = self.dictionary.width();
        let n = CodecError::multiple("rows", width, rows.len())?;
        // |<x, d>| <= sum |x_k| for a unit atom. While this sum is finite, with a margin for rounding, no correlation can
        // overflow.
        let codable = |row: &[f32]| absolute_sum(row) < f32::MAX / 2.0;
        match rows.chunks_exact(width).position(|row| !codable(row)) {
            None => Ok(n),
            Some(row) => Err(CodecError::NonFiniteRow { row }),
        }
    }

    /// [`Encoder::encode`] without its checks.
    pub(crate) fn encode_checked(&self, rows: &[f32], sparsity: usize, indices: &mut [u16], coefficients: &mut [f32]) {
        if sparsity == 0 || rows.is_empty() {
            return;
        }
        let isa = Isa::detect();
        let block_rows = BLOCK_ROWS.min(rows.len() / self.dictionary.width());
        match &self.gram {
            Some(gram) => self.by_blocks(
                rows,
                Codes { sparsity, indices, coefficients },
                || AlignedVec::zeros(block_rows * self.transposed.stride()),
                |scratch, rows, codes| gram.encode(isa, &self.transposed, rows, codes, scratch),
            ),
            None => self.by_blocks(
                rows,
                Codes { sparsity, indices, coefficients },
                || self.residual(self.atoms()).scratch(block_rows),
                |scratch, rows, codes| self.residual(self.atoms()).encode(isa, rows, codes, scratch),
            ),
        }
    }

    /// The atoms of the dictionary, without online atoms.
    fn atoms(&self) -> Atoms<'_> {
        self.dictionary.as_ref().into()
    }

    /// The residual path over `atoms`. Their offline part must be this encoder's dictionary.
    fn residual<'a>(&'a self, atoms: Atoms<'a>) -> Residual<'a> {
        Residual { atoms, transposed: &self.transposed, screen: self.screen.as_ref() }
    }

    /// Encodes the rows in blocks, on the current rayon pool if there are several blocks.
    fn by_blocks<S>(
        &self,
        rows: &[f32],
        codes: Codes<'_>,
        init: impl Fn() -> S + Sync + Send,
        block: impl Fn(&mut S, &[f32], Codes<'_>) + Sync + Send,
    ) {
        let (width, sparsity) = (self.dictionary.width(), codes.sparsity);
        if rows.len() <= BLOCK_ROWS * width {
            return block(&mut init(), rows, codes);
        }
        rows.par_chunks(BLOCK_ROWS * width)
            .zip(codes.indices.par_chunks_mut(BLOCK_ROWS * sparsity))
            .zip(codes.coefficients.par_chunks_mut(BLOCK_ROWS * sparsity))
            .for_each_init(init, |scratch, ((rows, indices), coefficients)| {
                block(scratch, rows, Codes { sparsity, indices, coefficients });
            });
    }
}

/// Where to write the codes of a block: `(rows, sparsity)` each.
struct Codes<'a> {
    sparsity: usize,
    indices: &'a mut [u16],
    coefficients: &'a mut [f32],
}

/// Sums absolute values in eight lanes, which the compiler vectorises. It would not vectorise a plain fold.
fn absolute_sum(row: &[f32]) -> f32 {
    let (chunks, tail) = row.as_chunks::<8>();
    let mut lanes = [0.0f32; 8];
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += x.abs();
        }
    }
    lanes.iter().sum::<f32>() + tail.iter().map(|x| x.abs()).sum::<f32>()
}

/// Converts an index below `N <= 65536` to its stored type.
fn index_u16(index: usize) -> u16 {
    u16::try_from(index).expect("a dictionary has at most 65536 atoms")
}
