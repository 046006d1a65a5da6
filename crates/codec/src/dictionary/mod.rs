//! Dictionaries: `N` atoms of unit norm and equal width.

mod atoms;
mod refit;

use crate::CodecError;

pub use self::atoms::{Atoms, OnlineAtoms};
pub use self::refit::refit;

/// The largest number of atoms that a `u16` can index.
pub const MAX_ATOMS: usize = 1 << 16;

/// How much an atom's l2 norm may differ from 1. The f32 rounding of a normalised atom is far below this limit. The norm
/// of an atom that was not normalised is usually far above it.
const NORM_TOLERANCE: f64 = 1e-3;

/// `N` atoms of unit l2 norm and width `d`: the paper's `D` (section 3.1),
/// f32, row-major `(N, d)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Dictionary {
    width: usize,
    atoms: Vec<f32>,
}

impl Dictionary {
    /// Takes atoms `(N, width)` that already have unit norm.
    ///
    /// # Errors
    /// If `width` is 0, `atoms` is not a whole number of rows, `N` is not in `1..=65536`, an element is not finite, or a
    /// norm differs from 1 by more than 1e-3.
    pub fn new(width: usize, mut atoms: Vec<f32>) -> Result<Self, CodecError> {
        check_shape(width, &atoms)?;
        for (atom, row) in atoms.chunks_exact(width).enumerate() {
            let norm = finite_norm(atom, row)?;
            if (norm - 1.0).abs() > NORM_TOLERANCE {
                return Err(CodecError::AtomNorm { atom, norm });
            }
        }
        atoms.shrink_to_fit();
        Ok(Self { width, atoms })
    }

    /// Scales each of the atoms `(N, width)` to unit l2 norm: the paper's ReNorm
    /// (Algorithm 1).
    ///
    /// # Errors
    /// The same as [`Dictionary::new`]. An atom of norm 0 has no direction and is an error too.
    pub fn normalised(width: usize, mut atoms: Vec<f32>) -> Result<Self, CodecError> {
        check_shape(width, &atoms)?;
        for (atom, row) in atoms.chunks_exact_mut(width).enumerate() {
            let norm = finite_norm(atom, row)?;
            if norm == 0.0 {
                return Err(CodecError::AtomNorm { atom, norm });
            }
            for x in row {
                *x = (f64::from(*x) / norm) as f32;
            }
        }
        atoms.shrink_to_fit();
        Ok(Self { width, atoms })
    }

    /// Elements per atom, the paper's `d`.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of atoms, the paper's `N`.
    #[expect(clippy::len_without_is_empty, reason = "a dictionary is never empty")]
    #[must_use]
    pub fn len(&self) -> usize {
        self.atoms.len() / self.width
    }

    /// Atom `i`, `(width,)`.
    ///
    /// # Panics
    /// If `i >= self.len()`.
    #[must_use]
    pub fn atom(&self, i: usize) -> &[f32] {
        &self.atoms[i * self.width..(i + 1) * self.width]
    }

    /// All atoms, `(N, width)` row-major.
    #[must_use]
    pub fn atoms(&self) -> &[f32] {
        &self.atoms
    }

    /// Bytes on the heap: the capacity, not the length.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.atoms.capacity() * size_of::<f32>()
    }
}

fn check_shape(width: usize, atoms: &[f32]) -> Result<(), CodecError> {
    let found = CodecError::multiple("atoms", width, atoms.len())?;
    if (1..=MAX_ATOMS).contains(&found) { Ok(()) } else { Err(CodecError::AtomCount { found }) }
}

fn finite_norm(atom: usize, row: &[f32]) -> Result<f64, CodecError> {
    let norm = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    if norm.is_finite() { Ok(norm) } else { Err(CodecError::AtomNotFinite { atom }) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn bounds_are_checked() {
        use CodecError as E;
        assert!(matches!(Dictionary::new(0, vec![]), Err(E::ZeroWidth)));
        assert!(matches!(Dictionary::new(2, vec![]), Err(E::AtomCount { found: 0 })));
        assert!(matches!(Dictionary::new(2, vec![1.0; 3]), Err(E::NotAMultiple { .. })));
        assert!(matches!(Dictionary::new(1, vec![1.0; MAX_ATOMS + 1]), Err(E::AtomCount { found: 65537 })));
        assert!(Dictionary::new(1, vec![1.0; MAX_ATOMS]).is_ok());
        assert!(matches!(Dictionary::new(2, vec![1.0, 0.0, f32::NAN, 0.0]), Err(E::AtomNotFinite { atom: 1 })));
        assert!(matches!(Dictionary::new(2, vec![1.0, 0.0, 0.0, 1.002]), Err(E::AtomNorm { atom: 1, .. })));
        assert!(matches!(Dictionary::normalised(2, vec![0.0; 2]), Err(E::AtomNorm { atom: 0, .. })));
    }

    #[test]
    fn normalising_keeps_the_direction() {
        let d = Dictionary::normalised(2, vec![3.0, 4.0, 1e-30, 0.0]).unwrap();
        assert_eq!(d.atom(0), [0.6, 0.8]);
        assert_eq!(d.atom(1), [1.0, 0.0]);
        assert_eq!((d.len(), d.width(), d.bytes()), (2, 2, 16));
    }
}
