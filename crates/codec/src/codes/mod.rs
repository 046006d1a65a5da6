//! Storage of sparse codes: rows in one layout, with a fixed length or one length per row.

mod bits;
mod decode;
mod e4m3;
mod early;
mod format;
mod on_codes;
mod paper;
mod range;
mod rows;
#[cfg(test)]
mod tests;

use std::ops::Range;

use serde::{Deserialize, Serialize};

use self::early::used;
use self::format::RowFormat;
use self::rows::Rows;
use crate::kernels::Isa;
use crate::{Atoms, BitsPerChannel, CodecError, Footprint};

pub use self::bits::{
    BitReader, BitWriter, EIGHT, pack_bits, pack_small, packed_bytes, unpack_bits, unpack_small, unpack_wide,
};
pub use self::e4m3::{from_e4m3, to_e4m3};
pub use self::early::stop_early;
pub use self::format::{CoefficientFormat, index_bits};
pub use self::on_codes::{add_atom_sums, add_weighted_codes, atom_products, score_codes};
pub use self::paper::SparseCodes;
pub use self::range::{Coder, Odds, RangeDecoder, RangeEncoder};

/// Rows by which vectors grow. Doubling would leave up to half of the allocated cache empty, and the ledger counts
/// capacity.
const PAGE_ROWS: usize = 256;

/// Rows between two stored start positions. To find a row, fewer than this many row lengths are added up.
pub const START_ROWS: usize = 64;

/// How codes are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CodeLayout {
    /// f16 coefficients and u16 indices (paper section 4).
    #[default]
    Paper,
    /// e4m3 coefficients and u16 indices (Lexico).
    Bytes,
    /// Indices of `ceil(log2 N)` bits and coefficients in the given format.
    Packed(CoefficientFormat),
}

impl CodeLayout {
    /// Bits per channel of the codes of one kind. A head of `head_dim` channels has `chunks` codes of `sparsity` atoms.
    /// In the paper's layout this is `32 s s_n / d_h`.
    #[must_use]
    pub fn bits(self, sparsity: usize, chunks: usize, head_dim: usize, atoms: usize) -> BitsPerChannel {
        let row = match self {
            Self::Paper => return crate::nominal_bits(sparsity, chunks, head_dim),
            Self::Bytes => 24 * sparsity,
            Self::Packed(format) => RowFormat::new(atoms, format).bytes(sparsity) * 8 + format.scale_bits(),
        };
        BitsPerChannel((row * chunks) as f64 / head_dim as f64)
    }
}

/// Sparse codes: each row has up to `s` atoms and their coefficients, in a [`CodeLayout`].
///
/// Rows are stored one directly after the other. Either all rows have `s` entries ([`Codes::new`]), or each row has as
/// many as it uses ([`Codes::ragged`]). Ragged codes take one more byte per row for its length, and 4 bytes for the
/// start of every 64th row.
#[derive(Clone, Debug)]
pub struct Codes {
    sparsity: usize,
    held: usize,
    rows: Rows,
    lengths: Option<Lengths>,
}

/// The lengths of rows, and the start positions of some of them.
#[derive(Clone, Debug, Default)]
struct Lengths {
    of_rows: Vec<u8>,
    /// Start position of every 64th row, in the unit of [`Rows::size`].
    starts: Vec<u32>,
}

impl Codes {
    /// Empty codes without allocations. Rows will name at most `atoms` atoms and have `sparsity` entries each.
    ///
    /// # Panics
    /// If `sparsity` is 0 or `atoms` is not in `1..=65536`.
    #[must_use]
    pub fn new(layout: CodeLayout, sparsity: usize, atoms: usize) -> Self {
        assert!(sparsity > 0, "a code keeps at least one atom per row");
        Self { sparsity, held: 0, rows: Rows::new(layout, atoms), lengths: None }
    }

    /// Does the same as [`Codes::new`], for rows without the zero coefficients at their end.
    ///
    /// # Panics
    /// If `sparsity` is not in `1..=255` or `atoms` not in `1..=65536`.
    #[must_use]
    pub fn ragged(layout: CodeLayout, sparsity: usize, atoms: usize) -> Self {
        assert!((1..=255).contains(&sparsity), "a row's length is stored in a byte");
        Self { lengths: Some(Lengths::default()), ..Self::new(layout, sparsity, atoms) }
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.held
    }

    /// Atoms per row, the paper's `s`. For ragged codes, the most atoms of a row.
    #[must_use]
    pub fn sparsity(&self) -> usize {
        self.sparsity
    }

    /// Number of atoms stored, over all rows.
    #[must_use]
    pub fn atoms_kept(&self) -> usize {
        match &self.lengths {
            None => self.held * self.sparsity,
            Some(lengths) => lengths.of_rows.iter().map(|&n| usize::from(n)).sum(),
        }
    }

    /// Appends rows `(n, sparsity)`. Coefficients are rounded to the nearest value of the layout. They saturate at its
    /// largest value, because an infinite coefficient would decode to NaN. Ragged rows leave out the zeros at their end.
    ///
    /// # Panics
    /// - If the slices have different lengths or are not a whole number of rows.
    /// - For packed codes: if an index needs more bits than the dictionary uses.
    /// - For ragged codes: if the codes grow beyond 4 GiB.
    pub fn append(&mut self, indices: &[u16], coefficients: &[f32]) {
        assert_eq!(indices.len(), coefficients.len(), "one coefficient per index");
        assert_eq!(indices.len() % self.sparsity, 0, "whole rows");
        let (s, n) = (self.sparsity, indices.len() / self.sparsity);
        let size = match &self.lengths {
            None => n * self.rows.size(s),
            Some(_) => coefficients.chunks_exact(s).map(|row| self.rows.size(used(row))).sum(),
        };
        self.rows.reserve(n, size, s);
        if let Some(lengths) = &mut self.lengths {
            lengths.reserve(n);
        }
        for (indices, coefficients) in indices.chunks_exact(s).zip(coefficients.chunks_exact(s)) {
            let length = match &mut self.lengths {
                None => s,
                Some(lengths) => lengths.push(used(coefficients), self.rows.end()),
            };
            self.rows.push(&indices[..length], &coefficients[..length]);
        }
        self.held += n;
    }

    /// Writes the indices and coefficients of `rows`, `(rows.len(), sparsity)` each. Entries that a row does not use are
    /// index 0 with coefficient 0.
    ///
    /// # Panics
    /// If the codes do not hold these rows or a slice has another size.
    pub fn unpack(&self, rows: Range<usize>, indices: &mut [u16], coefficients: &mut [f32]) {
        assert_eq!(indices.len(), rows.len() * self.sparsity);
        assert_eq!(coefficients.len(), indices.len());
        assert!(rows.end <= self.held, "rows {rows:?} of {}", self.held);
        let (s, first) = (self.sparsity, rows.start);
        let Some(lengths) = &self.lengths else {
            let row_size = self.rows.size(s);
            if self.rows.in_columns() {
                return self.rows.read(first, first * row_size, indices, coefficients);
            }
            let codes = indices.chunks_exact_mut(s).zip(coefficients.chunks_exact_mut(s));
            for (row, (indices, coefficients)) in rows.zip(codes) {
                self.rows.read(row, row * row_size, indices, coefficients);
            }
            return;
        };
        if rows.is_empty() {
            return;
        }
        indices.fill(0);
        coefficients.fill(0.0);
        let mut at = lengths.start(first, &self.rows);
        let codes = indices.chunks_exact_mut(s).zip(coefficients.chunks_exact_mut(s));
        for ((row, &length), (indices, coefficients)) in rows.clone().zip(&lengths.of_rows[rows]).zip(codes) {
            let length = usize::from(length);
            self.rows.read(row, at, &mut indices[..length], &mut coefficients[..length]);
            at += self.rows.size(length);
        }
    }

    /// Decodes `rows` over `atoms` to `out`, `(rows.len(), width)`: the paper's de-sparse (section 4). Runs on the current
    /// rayon pool.
    ///
    /// # Errors
    /// The same as [`SparseCodes::decode_into`].
    pub fn decode_into(&self, atoms: Atoms<'_>, rows: Range<usize>, out: &mut [f32]) -> Result<(), CodecError> {
        decode::decode(atoms, [self.rows(), self.sparsity], rows, out, |rows, indices, coefficients| {
            self.unpack(rows, indices, coefficients);
        })
    }

    /// Does the same as [`Codes::decode_into`] on the calling thread only, with buffers that later calls reuse. `out` is
    /// `(rows.len(), width)`; its size is not checked.
    ///
    /// # Panics
    /// If the codes do not hold these rows or a code names an unknown atom.
    pub fn restore(&self, atoms: Atoms<'_>, rows: Range<usize>, buffers: &mut CodeBuffers, out: &mut [f32]) {
        let (s, isa) = (self.sparsity(), Isa::detect());
        let (indices, coefficients) = buffers.unpacked(self, rows);
        let codes = indices.chunks_exact(s).zip(coefficients.chunks_exact(s));
        for (out, (indices, coefficients)) in out.chunks_exact_mut(atoms.width()).zip(codes) {
            let used = used(coefficients);
            atoms.combine(isa, &indices[..used], &coefficients[..used], out);
        }
    }

    /// Drops the first `rows` rows and frees their memory. The next row becomes row 0.
    ///
    /// # Panics
    /// If the codes hold fewer rows, or `rows` is not a multiple of 64.
    pub fn drop_first(&mut self, rows: usize) {
        assert!(rows <= self.held && rows.is_multiple_of(START_ROWS), "{rows} of {} rows", self.held);
        let size = match &mut self.lengths {
            None => rows * self.rows.size(self.sparsity),
            Some(lengths) => lengths.drop_first(rows, &self.rows),
        };
        self.rows.drop_first(rows, size);
        self.held -= rows;
    }

    /// Removes all rows and frees the memory.
    pub fn clear(&mut self) {
        self.held = 0;
        self.rows.clear();
        self.lengths = self.lengths.take().map(|_| Lengths::default());
    }

    /// Allocated bytes, by part.
    #[must_use]
    pub fn footprint(&self) -> Footprint {
        let mut all = self.rows.footprint();
        if let Some(lengths) = &self.lengths {
            all.row_lengths = lengths.of_rows.capacity() + lengths.starts.capacity() * size_of::<u32>();
        }
        all
    }

    /// The value of [`Codes::footprint`] after one call appends `rows` rows to empty codes. For ragged codes, the maximum.
    #[must_use]
    pub fn footprint_of(&self, rows: usize) -> Footprint {
        self.footprint_of_exactly(if rows == 0 { 0 } else { rows.max(PAGE_ROWS) })
    }

    /// The value of [`Codes::footprint`] for `rows` rows after earlier rows were [dropped](Codes::drop_first). For ragged
    /// codes, the maximum.
    #[must_use]
    pub fn footprint_of_exactly(&self, rows: usize) -> Footprint {
        let mut all = self.rows.footprint_of(rows, self.sparsity);
        if self.lengths.is_some() {
            all.row_lengths = rows + rows.div_ceil(START_ROWS) * size_of::<u32>();
        }
        all
    }
}

impl Lengths {
    fn reserve(&mut self, rows: usize) {
        if self.of_rows.capacity() - self.of_rows.len() < rows {
            let grow = rows.max(PAGE_ROWS);
            self.of_rows.reserve_exact(grow);
            self.starts.reserve_exact((self.of_rows.len() + grow).div_ceil(START_ROWS) - self.starts.len());
        }
    }

    /// Stores the length of a row that will start at `at`, and returns the length.
    fn push(&mut self, length: usize, at: usize) -> usize {
        if self.of_rows.len().is_multiple_of(START_ROWS) {
            self.starts.push(u32::try_from(at).expect("less than 4 GiB of codes per head"));
        }
        self.of_rows.push(length as u8);
        length
    }

    /// Drops the first rows, a multiple of [`START_ROWS`], and returns their size.
    fn drop_first(&mut self, dropped: usize, rows: &Rows) -> usize {
        let size = if dropped == self.of_rows.len() { rows.end() } else { self.start(dropped, rows) };
        self.of_rows.drain(..dropped);
        self.of_rows.shrink_to_fit();
        self.starts.drain(..dropped / START_ROWS);
        self.starts.shrink_to_fit();
        self.starts.iter_mut().for_each(|start| *start -= size as u32);
        size
    }

    fn start(&self, row: usize, rows: &Rows) -> usize {
        let block = row / START_ROWS;
        let before = &self.of_rows[block * START_ROWS..row];
        self.starts[block] as usize + before.iter().map(|&n| rows.size(n.into())).sum::<usize>()
    }
}

/// Reusable buffers for unpacked codes.
#[derive(Debug, Default)]
pub struct CodeBuffers {
    indices: Vec<u16>,
    coefficients: Vec<f32>,
}

impl CodeBuffers {
    /// Unpacks `rows` of `codes` and returns their indices and coefficients, `(rows.len(), sparsity)` each.
    ///
    /// # Panics
    /// If the codes do not hold these rows.
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
