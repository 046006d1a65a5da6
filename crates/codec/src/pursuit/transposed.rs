//! Correlations of a block of rows with all atoms: one matrix product.

use std::ops::Range;

use crate::Dictionary;
use crate::kernels::{AlignedVec, LINE, Matrix, MatrixMut, multiply};

/// The transposed atoms, `(width, pitch)`, padded with zero atoms to whole cache lines. The matrix product reads them in
/// place. It would have to repack row-major atoms for every block of rows.
///
/// The pitch is an odd number of cache lines. Dictionary sizes are usually powers of two. With a power of two as the pitch,
/// all elements of a column would compete for the same few places in the cache.
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

    /// Number of atoms, rounded up to whole cache lines. This is the stride of rows of correlations.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    fn pitch(stride: usize) -> usize {
        ((stride / LINE) | 1) * LINE
    }

    /// The value of [`Transposed::bytes`] for `atoms` atoms of `width` elements.
    pub(super) fn bytes_of(atoms: usize, width: usize) -> usize {
        AlignedVec::bytes_of(width * Self::pitch(atoms.next_multiple_of(LINE)))
    }

    pub(super) fn bytes(&self) -> usize {
        self.atoms.bytes()
    }

    /// Computes `out[r][a] = <rows[r], atom[a]>` for the atoms of `tile`: rows `(n, width)`, out `(n, tile.len())`. Runs on
    /// the calling thread only.
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
