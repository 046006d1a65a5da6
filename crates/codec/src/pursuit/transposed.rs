//! Correlations of a block of rows with all atoms: one matrix product.

use std::ops::Range;

use crate::Dictionary;
use crate::kernels::{AlignedVec, LINE, Matrix, MatrixMut, multiply};

/// The atoms transposed, `(width, pitch)`, padded with zero atoms to whole cache lines: the
/// product then reads them in place, where the row-major atoms would be repacked for every
/// block of rows.
///
/// The pitch is an odd number of lines. With the powers of two that dictionaries come in, a
/// column's elements would otherwise all compete for the same few places in the cache.
#[derive(Debug)]
pub(super) struct Transposed {
    atoms: AlignedVec,
    width: usize,
    stride: usize,
    pitch: usize,
}

impl Transposed {
    pub(super) fn new(dictionary: &Dictionary) -> Self {
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
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Atoms padded to whole cache lines: the stride of rows of correlations.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    fn pitch(stride: usize) -> usize {
        ((stride / LINE) | 1) * LINE
    }

    /// What [`Transposed::bytes`] is for `atoms` atoms of `width` elements.
    pub(super) fn bytes_of(atoms: usize, width: usize) -> usize {
        AlignedVec::bytes_of(width * Self::pitch(atoms.next_multiple_of(LINE)))
    }

    pub(super) fn bytes(&self) -> usize {
        self.atoms.bytes()
    }

    /// `out[r][a] = <rows[r], atom[a]>` for the atoms of `tile`: rows `(n, width)`,
    /// out `(n, tile.len())`. On the calling thread alone.
    ///
    /// # Panics
    /// If the tile is out of range or a slice has the wrong length.
    pub(super) fn correlate(&self, tile: Range<usize>, rows: &[f32], out: &mut [f32]) {
        let n = rows.len() / self.width;
        assert!(tile.start <= tile.end && tile.end <= self.stride);
        assert_eq!((rows.len(), out.len()), (n * self.width, n * tile.len()));
        let atoms = Matrix::spaced(&self.atoms[tile.start..], self.width, tile.len(), self.pitch);
        multiply(MatrixMut::new(out, n, tile.len()), Matrix::new(rows, n, self.width), atoms);
    }
}
