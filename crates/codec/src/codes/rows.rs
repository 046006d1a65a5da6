//! Entries of sparse codes in one layout. Rows are stored one directly after the other.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::e4m3::{from_e4m3, to_e4m3};
use super::format::RowFormat;
use super::{CodeLayout, PAGE_ROWS};
use crate::Footprint;
use crate::kernels::saturating_f16;

/// A coefficient in the format that a column stores.
pub(super) trait Coefficient: Copy {
    fn round(x: f32) -> Self;
    fn widen(from: &[Self], to: &mut [f32]);
}

impl Coefficient for f16 {
    fn round(x: f32) -> Self {
        saturating_f16(x)
    }

    fn widen(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}

/// An e4m3 number.
#[derive(Clone, Copy, Debug)]
pub(super) struct E4m3(u8);

impl Coefficient for E4m3 {
    fn round(x: f32) -> Self {
        Self(to_e4m3(x))
    }

    fn widen(from: &[Self], to: &mut [f32]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = from_e4m3(from.0));
    }
}

/// u16 indices and coefficients in separate arrays.
#[derive(Clone, Debug)]
pub(super) struct Columns<C> {
    pub(super) indices: Vec<u16>,
    pub(super) coefficients: Vec<C>,
}

impl<C: Coefficient> Columns<C> {
    pub(super) const fn new() -> Self {
        Self { indices: Vec::new(), coefficients: Vec::new() }
    }

    pub(super) fn reserve(&mut self, entries: usize, grow: usize) {
        if self.indices.capacity() - self.indices.len() < entries {
            self.indices.reserve_exact(grow);
            self.coefficients.reserve_exact(grow);
        }
    }

    pub(super) fn push(&mut self, indices: &[u16], coefficients: &[f32]) {
        self.indices.extend_from_slice(indices);
        self.coefficients.extend(coefficients.iter().map(|&c| C::round(c)));
    }

    /// Reads entries from `at`, as many as the slices hold.
    pub(super) fn read(&self, at: usize, indices: &mut [u16], coefficients: &mut [f32]) {
        let entries = at..at + indices.len();
        indices.copy_from_slice(&self.indices[entries.clone()]);
        C::widen(&self.coefficients[entries], coefficients);
    }

    /// Drops the first entries and frees their memory.
    fn drop_first(&mut self, entries: usize) {
        self.indices.drain(..entries);
        self.coefficients.drain(..entries);
        self.indices.shrink_to_fit();
        self.coefficients.shrink_to_fit();
    }

    pub(super) fn footprint(&self) -> Footprint {
        Self::footprint_of([self.indices.capacity(), self.coefficients.capacity()])
    }

    fn footprint_of([indices, coefficients]: [usize; 2]) -> Footprint {
        Footprint {
            indices: indices * size_of::<u16>(),
            coefficients: coefficients * size_of::<C>(),
            ..Footprint::default()
        }
    }
}

/// Rows in one layout. Positions and sizes are counted in entries for columns, and in bytes for a bit stream.
#[derive(Clone, Debug)]
pub(super) enum Rows {
    Halves(Columns<f16>),
    Bytes(Columns<E4m3>),
    Packed { format: RowFormat, bytes: Vec<u8>, scales: Vec<f16> },
}

impl Rows {
    /// # Panics
    /// If `atoms` is not in `1..=65536`.
    pub(super) fn new(layout: CodeLayout, atoms: usize) -> Self {
        assert!((1..=crate::MAX_ATOMS).contains(&atoms), "a dictionary holds 1 to 65536 atoms");
        match layout {
            CodeLayout::Paper => Self::Halves(Columns::new()),
            CodeLayout::Bytes => Self::Bytes(Columns::new()),
            CodeLayout::Packed(coefficients) => {
                let format = RowFormat::new(atoms, coefficients);
                Self::Packed { format, bytes: Vec::new(), scales: Vec::new() }
            }
        }
    }

    /// Whether several rows can be read in one call.
    pub(super) fn in_columns(&self) -> bool {
        !matches!(self, Self::Packed { .. })
    }

    /// Size of a row of `length` entries.
    pub(super) fn size(&self, length: usize) -> usize {
        match self {
            Self::Packed { format, .. } => format.bytes(length),
            _ => length,
        }
    }

    /// Position of the next row.
    pub(super) fn end(&self) -> usize {
        match self {
            Self::Halves(columns) => columns.indices.len(),
            Self::Bytes(columns) => columns.indices.len(),
            Self::Packed { bytes, .. } => bytes.len(),
        }
    }

    /// Makes room for `rows` rows of total size `size`, or for a page of rows of up to `most` entries.
    pub(super) fn reserve(&mut self, rows: usize, size: usize, most: usize) {
        let grow = if rows < PAGE_ROWS { size.max(PAGE_ROWS * self.size(most)) } else { size };
        match self {
            Self::Halves(columns) => columns.reserve(size, grow),
            Self::Bytes(columns) => columns.reserve(size, grow),
            Self::Packed { format, bytes, scales } => {
                if bytes.capacity() - bytes.len() < size {
                    bytes.reserve_exact(grow);
                }
                if format.coefficients.scale_bits() > 0 && scales.capacity() - scales.len() < rows {
                    scales.reserve_exact(rows.max(PAGE_ROWS));
                }
            }
        }
    }

    /// Appends a row and rounds its coefficients.
    ///
    /// # Panics
    /// If the layout is a bit stream and an index needs more bits than the dictionary uses.
    pub(super) fn push(&mut self, indices: &[u16], coefficients: &[f32]) {
        match self {
            Self::Halves(columns) => columns.push(indices, coefficients),
            Self::Bytes(columns) => columns.push(indices, coefficients),
            Self::Packed { format, bytes, scales } => scales.extend(format.write(indices, coefficients, bytes)),
        }
    }

    /// Reads the row at position `at`: as many entries as the slices hold.
    pub(super) fn read(&self, row: usize, at: usize, indices: &mut [u16], coefficients: &mut [f32]) {
        match self {
            Self::Halves(columns) => columns.read(at, indices, coefficients),
            Self::Bytes(columns) => columns.read(at, indices, coefficients),
            Self::Packed { format, bytes, scales } => {
                let scale = scales.get(row).copied().unwrap_or(f16::ZERO);
                format.read(&bytes[at..at + format.bytes(indices.len())], scale, indices, coefficients);
            }
        }
    }

    /// Drops the first `rows` rows, of total size `size`, and frees their memory.
    pub(super) fn drop_first(&mut self, rows: usize, size: usize) {
        match self {
            Self::Halves(columns) => columns.drop_first(size),
            Self::Bytes(columns) => columns.drop_first(size),
            Self::Packed { bytes, scales, .. } => {
                bytes.drain(..size);
                bytes.shrink_to_fit();
                scales.drain(..rows.min(scales.len()));
                scales.shrink_to_fit();
            }
        }
    }

    pub(super) fn clear(&mut self) {
        match self {
            Self::Halves(columns) => *columns = Columns::new(),
            Self::Bytes(columns) => *columns = Columns::new(),
            Self::Packed { bytes, scales, .. } => (*bytes, *scales) = (Vec::new(), Vec::new()),
        }
    }

    /// Allocated bytes, by part.
    pub(super) fn footprint(&self) -> Footprint {
        match self {
            Self::Halves(columns) => columns.footprint(),
            Self::Bytes(columns) => columns.footprint(),
            Self::Packed { bytes, scales, .. } => Footprint {
                packed: bytes.capacity(),
                scales: scales.capacity() * size_of::<f16>(),
                ..Footprint::default()
            },
        }
    }

    /// The value of [`Rows::footprint`] for a capacity of `rows` rows of `length` entries.
    pub(super) fn footprint_of(&self, rows: usize, length: usize) -> Footprint {
        let size = rows * self.size(length);
        match self {
            Self::Halves(_) => Columns::<f16>::footprint_of([size; 2]),
            Self::Bytes(_) => Columns::<E4m3>::footprint_of([size; 2]),
            Self::Packed { format, .. } => {
                Footprint { packed: size, scales: rows * format.coefficients.scale_bits() / 8, ..Footprint::default() }
            }
        }
    }
}
