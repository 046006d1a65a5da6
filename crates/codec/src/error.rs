//! The error type of this crate.

use std::io;
use std::path::{Path, PathBuf};

/// All errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// A dictionary, set or shard was given a vector width of zero.
    #[error("the vector width is 0; it must be at least 1")]
    ZeroWidth,
    /// The atom count of a dictionary is zero or too large for `u16` indices.
    #[error("a dictionary holds 1 to 65536 atoms, found {found}")]
    AtomCount {
        /// Atoms found.
        found: usize,
    },
    /// An atom has a NaN or infinite element.
    #[error("atom {atom} has a NaN or infinite element")]
    AtomNotFinite {
        /// Index of the first such atom.
        atom: usize,
    },
    /// An atom is not of unit length.
    #[error("atom {atom} has l2 norm {norm}, expected 1 within 1e-3; `Dictionary::normalised` rescales atoms")]
    AtomNorm {
        /// Index of the first such atom.
        atom: usize,
        /// Its l2 norm.
        norm: f64,
    },
    /// A vector to encode has a NaN or infinite element, or its l1 norm overflows `f32`.
    #[error("row {row} has a NaN, infinite or overflowing element")]
    NonFiniteRow {
        /// Index of the first such row.
        row: usize,
    },
    /// A slice has the wrong length.
    #[error("{what}: expected {expected} elements, found {found}")]
    Length {
        /// Which slice.
        what: &'static str,
        /// Elements expected.
        expected: usize,
        /// Elements found.
        found: usize,
    },
    /// A slice is not a whole number of rows.
    #[error("{what}: {found} elements are not a multiple of {unit}")]
    NotAMultiple {
        /// Which slice.
        what: &'static str,
        /// Elements per row.
        unit: usize,
        /// Elements found.
        found: usize,
    },
    /// The name of an instruction set is unknown.
    #[error("`{found}` are no instructions: portable, avx2 or avx512 was expected")]
    Instructions {
        /// The name.
        found: String,
    },
    /// The requested rows do not exist.
    #[error("rows {start}..{end} asked for, {rows} held")]
    RowRange {
        /// First row asked for.
        start: usize,
        /// One past the last row asked for.
        end: usize,
        /// Rows held.
        rows: usize,
    },
    /// A code names an atom that the given dictionary does not have.
    #[error("row {row} names atom {index}, but the dictionary holds {atoms} atoms")]
    UnknownAtom {
        /// The row.
        row: usize,
        /// The atom named.
        index: usize,
        /// Atoms in the dictionary.
        atoms: usize,
    },
    /// A chunk width does not divide the head width.
    #[error("chunks of width {width} do not divide head_dim {head_dim}")]
    ChunkWidth {
        /// The chunk width asked for.
        width: usize,
        /// Channels per head.
        head_dim: usize,
    },
    /// A dictionary set does not match the given model.
    #[error("dictionary set: {subject}: expected {expected}, found {found}")]
    Mismatch {
        /// What is compared, for example `head_dim` or `layer 3, keys`.
        subject: String,
        /// What the model needs.
        expected: String,
        /// What the set has.
        found: String,
    },
    /// The operating system refused a file operation.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A file is not written on after the operating system refused an operation on it, since its content is then unknown.
    #[error("{}: not written on after an error of the disk; write it anew, or continue it with a new writer", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
    },
    /// The content of a file is not valid.
    #[error("{}: {subject}: expected {expected}, found {found}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The tensor, metadata key or header field that is not valid.
        subject: String,
        /// What a valid file contains there.
        expected: String,
        /// What this file contains.
        found: String,
    },
    /// A tensor of atoms in a file is not a valid dictionary.
    #[error("{}: tensor {tensor}: {source}", path.display())]
    Atoms {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What is wrong with its atoms.
        source: Box<CodecError>,
    },
}

impl CodecError {
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn file(
        path: &Path,
        subject: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self::File { path: path.to_owned(), subject: subject.into(), expected: expected.into(), found: found.into() }
    }

    pub(crate) fn length(what: &'static str, expected: usize, found: usize) -> Result<(), Self> {
        if expected == found { Ok(()) } else { Err(Self::Length { what, expected, found }) }
    }

    pub(crate) fn multiple(what: &'static str, unit: usize, found: usize) -> Result<usize, Self> {
        if unit == 0 {
            return Err(Self::ZeroWidth);
        }
        if found.is_multiple_of(unit) { Ok(found / unit) } else { Err(Self::NotAMultiple { what, unit, found }) }
    }
}
