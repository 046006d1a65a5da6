//! Decodes sparse codes to vectors.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::early::used;
use crate::kernels::Isa;
use crate::{Atoms, CodecError};

/// Rows decoded as one unit of parallel work.
const BLOCK: usize = 64;

/// Below this number of multiply-adds a thread pool costs more than it saves.
const PARALLEL_FLOOR: usize = 1 << 17;

/// Writes `X^ = r D` of `rows` to `out`, `(rows.len(), width)`. There are `held` rows of `s` entries each. `unpack` gives
/// the indices and coefficients of a range of rows, `(n, s)` each. Large calls run in parallel over blocks of rows.
pub(super) fn decode(
    atoms: Atoms<'_>,
    [held, s]: [usize; 2],
    rows: Range<usize>,
    out: &mut [f32],
    unpack: impl Fn(Range<usize>, &mut [u16], &mut [f32]) + Sync,
) -> Result<(), CodecError> {
    if rows.start > rows.end || rows.end > held {
        return Err(CodecError::RowRange { start: rows.start, end: rows.end, rows: held });
    }
    let width = atoms.width();
    CodecError::length("decoded rows", rows.len() * width, out.len())?;
    // The first row with an unknown atom, so that the error is the same for any number of threads.
    let unknown = AtomicUsize::new(usize::MAX);
    let isa = Isa::detect();
    let scratch_rows = BLOCK.min(rows.len());
    let init = || (vec![0; scratch_rows * s], vec![0.0; scratch_rows * s]);
    let block = |(indices, coefficients): &mut (Vec<u16>, Vec<f32>), (block, out): (usize, &mut [f32])| {
        let (first, n) = (rows.start + block * BLOCK, out.len() / width);
        let (indices, coefficients) = (&mut indices[..n * s], &mut coefficients[..n * s]);
        unpack(first..first + n, indices, coefficients);
        if let Some(at) = beyond(indices, atoms.len()) {
            unknown.fetch_min(first + at / s, Ordering::Relaxed);
            return;
        }
        let codes = indices.chunks_exact(s).zip(coefficients.chunks_exact(s));
        for (out, (indices, coefficients)) in out.chunks_exact_mut(width).zip(codes) {
            let used = used(coefficients);
            atoms.combine(isa, &indices[..used], &coefficients[..used], out);
        }
    };
    if rows.len() * s * width < PARALLEL_FLOOR {
        let mut scratch = init();
        out.chunks_mut(BLOCK * width).enumerate().for_each(|work| block(&mut scratch, work));
    } else {
        out.par_chunks_mut(BLOCK * width).enumerate().for_each_init(init, block);
    }
    match unknown.into_inner() {
        usize::MAX => Ok(()),
        row => {
            let (mut indices, mut coefficients) = init();
            unpack(row..row + 1, &mut indices[..s], &mut coefficients[..s]);
            let at = beyond(&indices[..s], atoms.len()).unwrap_or(0);
            Err(CodecError::UnknownAtom { row, index: indices[at].into(), atoms: atoms.len() })
        }
    }
}

/// Position of the first index that is not an atom.
pub(super) fn beyond(indices: &[u16], atoms: usize) -> Option<usize> {
    indices.iter().position(|&index| usize::from(index) >= atoms)
}
