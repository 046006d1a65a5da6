//! Matching pursuit (paper section 3.1; Mallat and Zhang 1993).
//!
//! From the residual `R_1 = x`, each of `s` steps picks the atom with the largest
//! `|<R_g, d_n>|`, the lowest index among equals, keeps the signed inner product as its
//! coefficient and subtracts: `R_{g+1} = R_g - c_g d_{i_g}`.
//!
//! Two ways to the same codes:
//! - [`PursuitPath::Gram`] never forms the residual. With `p = D x` and `G = D Dᵀ`
//!   a step is `p -= c G[i]`, `N` multiply-adds instead of `N d`, fused with the
//!   search for the next largest `|p|`. `G` takes `4 N²` bytes.
//! - [`PursuitPath::Residual`] looks at all atoms anew at every step, a block of rows at a time: for `N` so large that
//!   `G` does not fit. The look is quick and inexact, in 8 bits where the machine is good at that and as a product in
//!   f32 elsewhere; the atoms that it leaves are looked at exactly. The codes are the same to the bit on any machine.

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

/// Rows coded together. Fixed, so that the codes never depend on the thread count.
pub(crate) const BLOCK_ROWS: usize = 64;

/// Largest Gram matrix that [`Encoder::new`] builds, in bytes: N = 4096 just fits.
pub const GRAM_BUDGET: usize = 64 << 20;

/// How an [`Encoder`] follows the residual; both give the same codes up to rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PursuitPath {
    /// Update correlations with rows of the Gram matrix: fast, `4 N²` bytes.
    Gram,
    /// Look at all atoms anew at every step: slower, and no table is larger than the atoms. The same bits on any machine.
    Residual,
}

/// Matching pursuit against one dictionary.
///
/// Building one costs `N² d` multiply-adds on the Gram path and next to nothing on the other.
#[derive(Debug)]
pub struct Encoder {
    dictionary: Arc<Dictionary>,
    transposed: Transposed,
    gram: Option<Gram>,
    /// Only on the residual path.
    screen: Option<Screen>,
}

impl Encoder {
    /// Takes the Gram path if its matrix fits [`GRAM_BUDGET`] (`N <= 4096`), else the
    /// residual path.
    #[must_use]
    pub fn new(dictionary: Arc<Dictionary>) -> Self {
        let gram_bytes = dictionary.len().pow(2) * size_of::<f32>();
        let path = if gram_bytes <= GRAM_BUDGET { PursuitPath::Gram } else { PursuitPath::Residual };
        Self::with_path(dictionary, path)
    }

    /// Takes the path asked for, whatever its memory.
    #[must_use]
    pub fn with_path(dictionary: Arc<Dictionary>, path: PursuitPath) -> Self {
        let transposed = Transposed::new(&dictionary);
        let (gram, screen) = match path {
            PursuitPath::Gram => (Some(Gram::new(&dictionary, &transposed)), None),
            PursuitPath::Residual => (None, Screen::new(&dictionary)),
        };
        Self { dictionary, transposed, gram, screen }
    }

    /// The dictionary coded against.
    #[must_use]
    pub fn dictionary(&self) -> &Arc<Dictionary> {
        &self.dictionary
    }

    /// The path taken.
    #[must_use]
    pub fn path(&self) -> PursuitPath {
        match self.gram {
            Some(_) => PursuitPath::Gram,
            None => PursuitPath::Residual,
        }
    }

    /// Heap bytes of the tables: transposed atoms and, where held, the Gram matrix or the atoms in 8 bits.
    /// The dictionary itself is not included; it may be shared.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.transposed.bytes()
            + self.gram.as_ref().map_or(0, Gram::bytes)
            + self.screen.as_ref().map_or(0, Screen::bytes)
    }

    /// What [`Encoder::bytes`] is for `atoms` atoms of `width` elements on this machine, without making one.
    #[must_use]
    pub fn bytes_of(atoms: usize, width: usize) -> usize {
        let small = atoms.pow(2) * size_of::<f32>() <= GRAM_BUDGET;
        let table = if small { Gram::bytes_of(atoms) } else { Screen::bytes_of(atoms, width) };
        Transposed::bytes_of(atoms, width) + table
    }

    /// Codes `rows` `(n, width)` into `indices` and `coefficients`, both `(n, sparsity)`:
    /// exactly `sparsity` steps per row, in the order taken. An atom may be picked again;
    /// its coefficients add up on decoding. Once the residual has no correlation left the
    /// remaining entries are index 0 with coefficient 0.
    ///
    /// Runs on the current rayon pool. A row's code depends on that row alone: not
    /// on the thread count, nor on which rows it is coded with.
    ///
    /// # Errors
    /// If a slice has the wrong length, or a row holds a NaN, an infinity or elements whose
    /// absolute values overflow `f32` when summed. The outputs are then untouched.
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

    /// Checks that `rows` can be coded, and counts them.
    pub(crate) fn check_rows(&self, rows: &[f32]) -> Result<usize, CodecError> {
        let width = self.dictionary.width();
        let n = CodecError::multiple("rows", width, rows.len())?;
        // |<x, d>| <= sum |x_k| for a unit atom: while this sum is finite, and with room for
        // rounding, no correlation can overflow.
        let codable = |row: &[f32]| absolute_sum(row) < f32::MAX / 2.0;
        match rows.chunks_exact(width).position(|row| !codable(row)) {
            None => Ok(n),
            Some(row) => Err(CodecError::NonFiniteRow { row }),
        }
    }

    /// [`Encoder::encode`] after all checks.
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

    /// The dictionary without online atoms.
    fn atoms(&self) -> Atoms<'_> {
        self.dictionary.as_ref().into()
    }

    /// The residual path over `atoms`, whose offline part is this encoder's dictionary.
    fn residual<'a>(&'a self, atoms: Atoms<'a>) -> Residual<'a> {
        Residual { atoms, transposed: &self.transposed, screen: self.screen.as_ref() }
    }

    /// Codes block after block, on the current rayon pool if there are several.
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

/// Where the codes of a block go: `(rows, sparsity)` each.
struct Codes<'a> {
    sparsity: usize,
    indices: &'a mut [u16],
    coefficients: &'a mut [f32],
}

/// Sum of absolute values in eight lanes, which vectorises where a plain fold would not.
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

/// An index below `N <= 65536` as stored.
fn index_u16(index: usize) -> u16 {
    u16::try_from(index).expect("a dictionary has at most 65536 atoms")
}
