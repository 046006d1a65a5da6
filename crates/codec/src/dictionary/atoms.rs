//! The atoms in use: the shared offline atoms and the online atoms of one prompt (paper section 4).

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::kernels::Isa;
use crate::{CodecError, Dictionary, Footprint, MAX_ATOMS};

/// Atoms taken from one prompt, f16 `(N, width)`: first the sampled ones, then those of the Guard.
///
/// Each atom is a prompt vector scaled to unit l2 norm and rounded to f16, the precision that the paper
/// stores. Encoding and decoding both use the rounded atom.
#[derive(Clone, Debug)]
pub struct OnlineAtoms {
    width: usize,
    sampled: usize,
    atoms: Vec<f16>,
}

impl OnlineAtoms {
    /// Holds no atoms and allocates nothing.
    ///
    /// # Panics
    /// If `width` is 0.
    #[must_use]
    pub fn new(width: usize) -> Self {
        assert!(width > 0, "atoms have a width");
        Self { width, sampled: 0, atoms: Vec::new() }
    }

    /// Adds the directions of `vectors`, each `(width,)`, to the sampled part. A zero vector has no direction and is
    /// skipped.
    ///
    /// # Panics
    /// If the Guard already holds atoms, or a vector is not finite or has another width.
    pub fn sample<'a>(&mut self, vectors: impl ExactSizeIterator<Item = &'a [f32]>) {
        assert_eq!(self.sampled, self.len(), "sampled atoms come before the guard");
        self.extend(vectors);
        self.sampled = self.len();
    }

    /// Adds the directions of `vectors`, each `(width,)`, to the Guard, in the same way as [`OnlineAtoms::sample`].
    ///
    /// # Panics
    /// If a vector is not finite or has another width.
    pub fn guard<'a>(&mut self, vectors: impl ExactSizeIterator<Item = &'a [f32]>) {
        self.extend(vectors);
    }

    fn extend<'a>(&mut self, vectors: impl ExactSizeIterator<Item = &'a [f32]>) {
        self.atoms.reserve_exact(vectors.len() * self.width);
        for vector in vectors {
            assert_eq!(vector.len(), self.width);
            let norm = vector.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            assert!(norm.is_finite(), "online atoms come from vectors that were coded");
            if norm > 0.0 {
                self.atoms.extend(vector.iter().map(|&x| f16::from_f64(f64::from(x) / norm)));
            }
        }
        self.atoms.shrink_to_fit();
    }

    /// Elements per atom.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of atoms, sampled and Guard together.
    #[must_use]
    pub fn len(&self) -> usize {
        self.atoms.len() / self.width
    }

    /// True if there are no atoms.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.atoms.is_empty()
    }

    /// Atom `i`, `(width,)`.
    ///
    /// # Panics
    /// If `i >= self.len()`.
    #[must_use]
    pub fn atom(&self, i: usize) -> &[f16] {
        &self.atoms[i * self.width..(i + 1) * self.width]
    }

    /// Allocated bytes. Sampled atoms and Guard are counted separately.
    #[must_use]
    pub fn footprint(&self) -> Footprint {
        let sampled = self.sampled * self.width * size_of::<f16>();
        Footprint {
            online_atoms: sampled,
            guard: self.atoms.capacity() * size_of::<f16>() - sampled,
            ..Footprint::default()
        }
    }

    /// Writes the atoms from `from` on to `out`, `(n, width)` f32, until `out` is full.
    pub(crate) fn expand(&self, from: usize, out: &mut [f32]) {
        self.atoms[from * self.width..][..out.len()].convert_to_f32_slice(out);
    }
}

/// Offline atoms followed by online atoms. An index `i` below the number `N` of offline atoms is offline atom `i`.
/// Otherwise it is online atom `i - N`.
#[derive(Clone, Copy, Debug)]
pub struct Atoms<'a> {
    offline: &'a Dictionary,
    online: Option<&'a OnlineAtoms>,
}

impl<'a> From<&'a Dictionary> for Atoms<'a> {
    fn from(offline: &'a Dictionary) -> Self {
        Self { offline, online: None }
    }
}

impl<'a> Atoms<'a> {
    /// Joins both parts.
    ///
    /// # Errors
    /// If the widths differ, or there are more atoms than a `u16` can index.
    pub fn new(offline: &'a Dictionary, online: &'a OnlineAtoms) -> Result<Self, CodecError> {
        if online.is_empty() {
            return Ok(offline.into());
        }
        CodecError::length("online atoms", offline.width(), online.width())?;
        let found = offline.len() + online.len();
        if found > MAX_ATOMS {
            Err(CodecError::AtomCount { found })
        } else {
            Ok(Self { offline, online: Some(online) })
        }
    }

    /// Elements per atom.
    #[must_use]
    pub fn width(&self) -> usize {
        self.offline.width()
    }

    /// Number of atoms, offline and online.
    #[expect(clippy::len_without_is_empty, reason = "a dictionary is never empty")]
    #[must_use]
    pub fn len(&self) -> usize {
        self.offline.len() + self.online.map_or(0, OnlineAtoms::len)
    }

    /// The offline part.
    #[must_use]
    pub fn offline(&self) -> &'a Dictionary {
        self.offline
    }

    /// The online part, if it holds any atoms.
    #[must_use]
    pub fn online(&self) -> Option<&'a OnlineAtoms> {
        self.online
    }

    /// Decodes one vector: `out = sum_j coefficients[j] d_{indices[j]}`.
    ///
    /// # Panics
    /// If an index is beyond the atoms, or the sizes of the slices do not match.
    pub fn restore(&self, indices: &[u16], coefficients: &[f32], out: &mut [f32]) {
        self.combine(Isa::detect(), indices, coefficients, out);
    }

    /// Computes `out = sum_j coefficients[j] atom[indices[j]]`, out `(width,)`.
    #[inline]
    pub(crate) fn combine(&self, isa: Isa, indices: &[u16], coefficients: &[f32], out: &mut [f32]) {
        let online = self.online.map_or(&[][..], |online| &online.atoms);
        isa.combine(out, self.offline.atoms(), online, indices, coefficients);
    }

    /// Copies all atoms into one dictionary.
    pub(crate) fn joined(&self) -> Result<Dictionary, CodecError> {
        let mut all = vec![0.0; self.len() * self.width()];
        let (offline, rest) = all.split_at_mut(self.offline.atoms().len());
        offline.copy_from_slice(self.offline.atoms());
        if let Some(online) = self.online {
            online.expand(0, rest);
        }
        Dictionary::new(self.width(), all)
    }

    /// Atom `i`, `(width,)`. An offline atom is borrowed in place; an online atom is written to `buffer`.
    pub(crate) fn atom<'b>(&self, i: usize, buffer: &'b mut [f32]) -> &'b [f32]
    where
        'a: 'b,
    {
        match (i.checked_sub(self.offline.len()), self.online) {
            (Some(i), Some(online)) => {
                online.expand(i, buffer);
                buffer
            }
            _ => self.offline.atom(i),
        }
    }

    /// Writes atom `i` to `out`, `(width,)`.
    pub(crate) fn copy_atom(&self, i: usize, out: &mut [f32]) {
        match (i.checked_sub(self.offline.len()), self.online) {
            (Some(i), Some(online)) => online.expand(i, out),
            _ => out.copy_from_slice(self.offline.atom(i)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn atoms_are_directions_in_order_and_counted_by_part() {
        let mut online = OnlineAtoms::new(2);
        online.sample([&[3.0, 4.0][..], &[0.0, 0.0], &[0.0, -2.0]].into_iter());
        online.guard([&[1e-20f32, 0.0][..]].into_iter());
        assert_eq!(online.len(), 3);
        assert_eq!(online.atom(1), [f16::ZERO, f16::NEG_ONE]);
        assert_eq!(online.atom(2), [f16::ONE, f16::ZERO]);
        let held = online.footprint();
        assert_eq!((held.online_atoms, held.guard, held.total()), (8, 4, 12));

        let offline = Dictionary::new(2, vec![1.0, 0.0]).unwrap();
        let atoms = Atoms::new(&offline, &online).unwrap();
        let mut out = [9.0; 2];
        atoms.combine(Isa::detect(), &[0, 2, 3], &[2.0, 3.0, 0.5], &mut out);
        assert_eq!((atoms.len(), out), (4, [2.5, -3.0]));
    }

    #[test]
    fn unions_that_cannot_be_named_are_refused() {
        let offline = Dictionary::new(1, vec![1.0; MAX_ATOMS]).unwrap();
        assert_eq!(Atoms::new(&offline, &OnlineAtoms::new(3)).unwrap().len(), MAX_ATOMS);
        let mut online = OnlineAtoms::new(1);
        online.guard([&[1.0f32][..]].into_iter());
        assert!(matches!(Atoms::new(&offline, &online), Err(CodecError::AtomCount { found: 65537 })));
        let wide = Dictionary::new(2, vec![1.0, 0.0]).unwrap();
        assert!(matches!(Atoms::new(&wide, &online), Err(CodecError::Length { .. })));
    }
}
