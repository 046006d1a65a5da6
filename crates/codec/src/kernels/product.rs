//! Correlations of a block of rows with all atoms: one matrix product.

use std::ops::Range;

use gemm::{Parallelism, gemm};

use super::aligned::{AlignedVec, LINE};
use crate::Dictionary;

/// The atoms transposed, `(width, pitch)`, padded with zero atoms to whole cache lines: the
/// product then reads them in place, where the row-major atoms would be repacked for every
/// block of rows.
///
/// The pitch is an odd number of lines. With the powers of two that dictionaries come in, a
/// column's elements would otherwise all compete for the same few places in the cache.
#[derive(Debug)]
pub(crate) struct Transposed {
    atoms: AlignedVec,
    width: usize,
    stride: usize,
    pitch: usize,
}

impl Transposed {
    pub(crate) fn new(dictionary: &Dictionary) -> Self {
        let width = dictionary.width();
        let stride = dictionary.len().next_multiple_of(LINE);
        let pitch = Self::pitch(stride);
        let mut atoms = AlignedVec::zeros(width * pitch);
        for (n, atom) in dictionary.atoms().chunks_exact(width).enumerate() {
            for (k, &x) in atom.iter().enumerate() {
                atoms[k * pitch + n] = x;
            }
        }
        Self { atoms, width, stride, pitch }
    }

    /// Elements per atom.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Atoms padded to whole cache lines: the stride of rows of correlations.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    fn pitch(stride: usize) -> usize {
        ((stride / LINE) | 1) * LINE
    }

    /// What [`Transposed::bytes`] is for `atoms` atoms of `width` elements.
    pub(crate) fn bytes_of(atoms: usize, width: usize) -> usize {
        AlignedVec::bytes_of(width * Self::pitch(atoms.next_multiple_of(LINE)))
    }

    pub(crate) fn bytes(&self) -> usize {
        self.atoms.bytes()
    }

    /// `out[r][a] = <rows[r], atom[a]>` for the atoms of `tile`: rows `(n, width)`,
    /// out `(n, tile.len())`. On the calling thread alone.
    ///
    /// # Panics
    /// If the tile is out of range or a slice has the wrong length.
    pub(crate) fn correlate(&self, tile: Range<usize>, rows: &[f32], out: &mut [f32]) {
        let n = rows.len() / self.width;
        assert!(tile.start <= tile.end && tile.end <= self.stride);
        assert_eq!(rows.len(), n * self.width);
        assert_eq!(out.len(), n * tile.len());
        // SAFETY: `out` is written as a column-major (tile.len(), n) matrix, `atoms` read as
        // columns of (width, pitch) from tile.start on and `rows` as (width, n): the
        // assertions above keep all three inside their slices, and `out` is borrowed
        // exclusively so it overlaps neither input.
        unsafe {
            gemm(
                tile.len(),
                n,
                self.width,
                out.as_mut_ptr(),
                tile.len() as isize,
                1,
                false,
                self.atoms.as_ptr().add(tile.start),
                self.pitch as isize,
                1,
                rows.as_ptr(),
                self.width as isize,
                1,
                0.0,
                1.0,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }
}

/// `out[r][a] = <rows[r], atoms[a]>`: atoms `(m, width)`, rows `(n, width)`, out `(n, m)`.
/// On the calling thread alone.
///
/// # Panics
/// If a slice has the wrong length.
pub(crate) fn correlate(atoms: &[f32], rows: &[f32], width: usize, out: &mut [f32]) {
    let (m, n) = (atoms.len() / width, rows.len() / width);
    assert_eq!((atoms.len(), rows.len(), out.len()), (m * width, n * width, n * m));
    // SAFETY: `out` is written as a column-major (m, n) matrix, `atoms` read as (m, width) and
    // `rows` as (width, n); the assertion keeps all three inside their slices, and `out` is
    // borrowed exclusively so it overlaps neither input.
    unsafe {
        gemm(
            m,
            n,
            width,
            out.as_mut_ptr(),
            m as isize,
            1,
            false,
            atoms.as_ptr(),
            1,
            width as isize,
            rows.as_ptr(),
            width as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
