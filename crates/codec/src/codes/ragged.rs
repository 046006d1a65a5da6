//! Codes whose rows keep as many atoms as they need.

use std::ops::Range;

use half::f16;

use super::packed::RowFormat;
use crate::kernels::saturating_f16;
use crate::{CodeLayout, Footprint};

/// Rows by which lengths and scales grow, and rows of full length by which codes do.
const PAGE_ROWS: usize = 256;

/// Rows between two stored starts: finding a row adds up the lengths of fewer than these.
const BLOCK_ROWS: usize = 64;

/// Codes of up to `sparsity` atoms per row, in either layout, one row directly after the other. A
/// row's length takes a byte, and the start of every 64th row four.
#[derive(Clone, Debug)]
pub struct RaggedCodes {
    sparsity: usize,
    lengths: Vec<u8>,
    /// Where every 64th row starts: an entry in the paper's layout, a byte in the packed one.
    starts: Vec<u32>,
    entries: Entries,
}

#[derive(Clone, Debug)]
enum Entries {
    Paper { indices: Vec<u16>, coefficients: Vec<f16> },
    Packed { format: RowFormat, bytes: Vec<u8>, scales: Vec<f16> },
}

impl Entries {
    /// What a row of `length` entries takes, in the unit of the starts.
    fn size(&self, length: usize) -> usize {
        match self {
            Self::Paper { .. } => length,
            Self::Packed { format, .. } => format.bytes(length),
        }
    }

    fn end(&self) -> usize {
        match self {
            Self::Paper { indices, .. } => indices.len(),
            Self::Packed { bytes, .. } => bytes.len(),
        }
    }
}

impl RaggedCodes {
    /// No rows yet, and nothing allocated; rows will name `atoms` atoms at most.
    ///
    /// # Panics
    /// If `sparsity` is not in `1..=255` or `atoms` not in `1..=65536`.
    #[must_use]
    pub fn new(layout: CodeLayout, sparsity: usize, atoms: usize) -> Self {
        assert!((1..=255).contains(&sparsity), "a row's length is stored in a byte");
        let entries = match layout {
            CodeLayout::Paper => Entries::Paper { indices: Vec::new(), coefficients: Vec::new() },
            CodeLayout::Packed(format) => {
                Entries::Packed { format: RowFormat::new(atoms, format), bytes: Vec::new(), scales: Vec::new() }
            }
        };
        Self { sparsity, lengths: Vec::new(), starts: Vec::new(), entries }
    }

    /// Rows held.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.lengths.len()
    }

    /// Most atoms of a row.
    #[must_use]
    pub fn sparsity(&self) -> usize {
        self.sparsity
    }

    /// Atoms kept, over all rows.
    #[must_use]
    pub fn atoms_kept(&self) -> usize {
        self.lengths.iter().map(|&n| usize::from(n)).sum()
    }

    /// Appends rows `(n, sparsity)`, each without the zero coefficients at its end.
    ///
    /// # Panics
    /// If the slices differ in length or are not a whole number of rows, an index needs more bits
    /// than the dictionary, or the codes outgrow 4 GiB.
    pub fn append(&mut self, indices: &[u16], coefficients: &[f32]) {
        assert_eq!(indices.len(), coefficients.len(), "one coefficient per index");
        assert_eq!(indices.len() % self.sparsity, 0, "whole rows");
        self.reserve(coefficients);
        for (indices, row) in indices.chunks_exact(self.sparsity).zip(coefficients.chunks_exact(self.sparsity)) {
            if self.lengths.len().is_multiple_of(BLOCK_ROWS) {
                self.starts.push(u32::try_from(self.entries.end()).expect("less than 4 GiB of codes per head"));
            }
            let length = used(row);
            self.lengths.push(length as u8);
            match &mut self.entries {
                Entries::Paper { indices: held, coefficients } => {
                    held.extend_from_slice(&indices[..length]);
                    coefficients.extend(row[..length].iter().map(|&c| saturating_f16(c)));
                }
                Entries::Packed { format, bytes, scales } => {
                    scales.extend(format.write(&indices[..length], &row[..length], bytes));
                }
            }
        }
    }

    fn reserve(&mut self, coefficients: &[f32]) {
        let rows = coefficients.len() / self.sparsity;
        if self.lengths.capacity() - self.lengths.len() < rows {
            let grow = rows.max(PAGE_ROWS);
            self.lengths.reserve_exact(grow);
            self.starts.reserve_exact((self.lengths.len() + grow).div_ceil(BLOCK_ROWS) - self.starts.len());
            if let Entries::Packed { format, scales, .. } = &mut self.entries
                && format.coefficients.scale_bits() > 0
            {
                scales.reserve_exact(grow);
            }
        }
        let needed: usize = coefficients.chunks_exact(self.sparsity).map(|row| self.entries.size(used(row))).sum();
        let page = PAGE_ROWS * self.entries.size(self.sparsity);
        let grow = if rows < PAGE_ROWS { needed.max(page) } else { needed };
        match &mut self.entries {
            Entries::Paper { indices, coefficients } if indices.capacity() - indices.len() < needed => {
                indices.reserve_exact(grow);
                coefficients.reserve_exact(grow);
            }
            Entries::Packed { bytes, .. } if bytes.capacity() - bytes.len() < needed => bytes.reserve_exact(grow),
            _ => {}
        }
    }

    /// Indices and coefficients of `rows`, `(rows.len(), sparsity)` each; what a row does not use
    /// is index 0 with coefficient 0.
    ///
    /// # Panics
    /// If the rows are not held or a slice has another size.
    pub fn unpack(&self, rows: Range<usize>, indices: &mut [u16], coefficients: &mut [f32]) {
        assert_eq!(indices.len(), rows.len() * self.sparsity);
        assert_eq!(coefficients.len(), indices.len());
        if rows.is_empty() {
            return;
        }
        let block = rows.start / BLOCK_ROWS;
        let before = &self.lengths[block * BLOCK_ROWS..rows.start];
        let mut at = self.starts[block] as usize + before.iter().map(|&n| self.entries.size(n.into())).sum::<usize>();
        indices.fill(0);
        coefficients.fill(0.0);
        let codes = indices.chunks_exact_mut(self.sparsity).zip(coefficients.chunks_exact_mut(self.sparsity));
        for ((row, &length), (indices, coefficients)) in rows.clone().zip(&self.lengths[rows]).zip(codes) {
            let length = usize::from(length);
            let next = at + self.entries.size(length);
            let (to_indices, to_coefficients) = (&mut indices[..length], &mut coefficients[..length]);
            match &self.entries {
                Entries::Paper { indices, coefficients } => {
                    to_indices.copy_from_slice(&indices[at..next]);
                    to_coefficients.iter_mut().zip(&coefficients[at..next]).for_each(|(to, c)| *to = c.to_f32());
                }
                Entries::Packed { format, bytes, scales } => {
                    let scale = scales.get(row).copied().unwrap_or(f16::ZERO);
                    format.read(&bytes[at..next], scale, to_indices, to_coefficients);
                }
            }
            at = next;
        }
    }

    /// The most that [`RaggedCodes::footprint`] of empty codes becomes with `rows` rows in one call.
    #[must_use]
    pub fn most_of(&self, rows: usize) -> Footprint {
        let room = if rows == 0 { 0 } else { rows.max(PAGE_ROWS) };
        let units = room * self.entries.size(self.sparsity);
        let row_lengths = room + room.div_ceil(BLOCK_ROWS) * size_of::<u32>();
        match &self.entries {
            Entries::Paper { .. } => Footprint {
                indices: units * size_of::<u16>(),
                coefficients: units * size_of::<f16>(),
                row_lengths,
                ..Footprint::default()
            },
            Entries::Packed { format, .. } => Footprint {
                packed: units,
                scales: room * format.coefficients.scale_bits() / 8,
                row_lengths,
                ..Footprint::default()
            },
        }
    }

    /// Forgets all rows and gives the memory back.
    pub fn clear(&mut self) {
        self.lengths = Vec::new();
        self.starts = Vec::new();
        match &mut self.entries {
            Entries::Paper { indices, coefficients } => {
                *indices = Vec::new();
                *coefficients = Vec::new();
            }
            Entries::Packed { bytes, scales, .. } => {
                *bytes = Vec::new();
                *scales = Vec::new();
            }
        }
    }

    /// Bytes allocated, by part.
    #[must_use]
    pub fn footprint(&self) -> Footprint {
        let row_lengths = self.lengths.capacity() + self.starts.capacity() * size_of::<u32>();
        match &self.entries {
            Entries::Paper { indices, coefficients } => Footprint {
                indices: indices.capacity() * size_of::<u16>(),
                coefficients: coefficients.capacity() * size_of::<f16>(),
                row_lengths,
                ..Footprint::default()
            },
            Entries::Packed { bytes, scales, .. } => Footprint {
                packed: bytes.capacity(),
                scales: scales.capacity() * size_of::<f16>(),
                row_lengths,
                ..Footprint::default()
            },
        }
    }
}

/// Entries of a row before the zeros at its end.
pub(crate) fn used(coefficients: &[f32]) -> usize {
    coefficients.iter().rposition(|&c| c != 0.0).map_or(0, |last| last + 1)
}

/// Keeps of every row of codes `(n, s)` only the atoms that matching pursuit needed to come within
/// `tolerance`, in `‖x - x̂‖² / ‖x‖²`, and sets the rest to index 0 with coefficient 0. A row that
/// does not come that close keeps all.
///
/// Each step of pursuit takes the square of its coefficient off the squared residual, so nothing
/// is restored to find out. The coefficients must be those of pursuit itself: refit afterwards.
///
/// # Panics
/// If `rows` `(n, width)` and the codes differ in rows.
pub fn stop_early(rows: &[f32], width: usize, tolerance: f32, indices: &mut [u16], coefficients: &mut [f32]) {
    let n = rows.len() / width.max(1);
    if n == 0 || indices.is_empty() {
        return;
    }
    let s = indices.len() / n;
    assert_eq!((indices.len(), coefficients.len()), (n * s, n * s), "codes of every row");
    let codes = indices.chunks_exact_mut(s).zip(coefficients.chunks_exact_mut(s));
    for (row, (indices, coefficients)) in rows.chunks_exact(width).zip(codes) {
        let energy: f64 = row.iter().map(|&x| f64::from(x).powi(2)).sum();
        let enough = f64::from(tolerance) * energy;
        let mut left = energy;
        let mut kept = 0;
        while kept < s && left > enough {
            left -= f64::from(coefficients[kept]).powi(2);
            kept += 1;
        }
        indices[kept..].fill(0);
        coefficients[kept..].fill(0.0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::{Codes, CoefficientFormat};

    fn layouts() -> impl Iterator<Item = CodeLayout> {
        std::iter::once(CodeLayout::Paper).chain(CoefficientFormat::ALL.map(CodeLayout::Packed))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// In every layout rows come back as the fixed codes of the same layout give them, in any
        /// split into calls, from any row on, and take what their lengths say.
        #[test]
        fn rows_come_back_and_take_their_length(
            s in 1usize..9, lengths in proptest::collection::vec(0usize..9, 0..400), atoms in 1usize..=65536,
            split in 0.0f64..1.0, from in 0.0f64..1.0, seed in any::<u64>()
        ) {
            let mut state = seed | 1;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as usize
            };
            let n = lengths.len();
            let lengths: Vec<usize> = lengths.into_iter().map(|l| l.min(s)).collect();
            let (mut indices, mut coefficients) = (vec![0u16; n * s], vec![0.0f32; n * s]);
            for (row, &length) in lengths.iter().enumerate() {
                for at in row * s..row * s + length {
                    indices[at] = (next() % atoms) as u16;
                    coefficients[at] = (next() % 20_000) as f32 / 1000.0 + 1.0;
                }
            }
            let (cut, from) = ((split * n as f64) as usize * s, (from * n as f64) as usize);
            for layout in layouts() {
                let mut ragged = RaggedCodes::new(layout, s, atoms);
                ragged.append(&indices[..cut], &coefficients[..cut]);
                ragged.append(&indices[cut..], &coefficients[cut..]);
                prop_assert_eq!(ragged.rows(), n);
                let kept: usize = lengths.iter().sum();
                prop_assert_eq!(ragged.atoms_kept(), kept);
                let mut found = (vec![9u16; (n - from) * s], vec![9.0f32; (n - from) * s]);
                ragged.unpack(from..n, &mut found.0, &mut found.1);
                prop_assert_eq!(&found.0, &indices[from * s..]);
                // Rounding is that of rows as long as they are.
                for row in from..n {
                    let at = (row - from) * s;
                    let length = lengths[row];
                    prop_assert!(found.1[at + length..at + s].iter().all(|&c| c == 0.0));
                    if length > 0 {
                        let mut fixed = Codes::new(layout, length, atoms);
                        fixed.append(&indices[row * s..row * s + length], &coefficients[row * s..row * s + length]);
                        let (mut i, mut c) = (vec![0; length], vec![0.0; length]);
                        fixed.unpack(0..1, &mut i, &mut c);
                        prop_assert_eq!(&found.1[at..at + length], &c[..]);
                    }
                }
                let held = ragged.footprint();
                let units: usize = lengths.iter().map(|&l| ragged.entries.size(l)).sum();
                let room = 2 * PAGE_ROWS * ragged.entries.size(s);
                let (codes, scale) = match layout {
                    CodeLayout::Paper => (held.indices / 2, 0),
                    CodeLayout::Packed(format) => (held.packed, format.scale_bits() / 8),
                };
                prop_assert!(codes >= units && codes <= units + room, "{codes} {units}");
                prop_assert!(held.row_lengths >= n + n.div_ceil(64) * 4);
                prop_assert!(held.row_lengths <= n + 2 * PAGE_ROWS + (n.div_ceil(64) + 8) * 4);
                prop_assert!(held.scales >= n * scale && held.scales <= (n + 2 * PAGE_ROWS) * scale);
            }
        }
    }

    #[test]
    fn pursuit_stops_where_enough_is_represented() {
        // Energies 25, of which steps take 16 and 9; then 1, all in the first; then nothing at all.
        let rows = [4.0, 3.0, 1.0, 0.0, 0.0, 0.0];
        let run = |tolerance: f32| {
            let (mut indices, mut coefficients) = ([5, 6, 7, 0, 0, 0], [4.0, 3.0, 1.0, 0.0, 0.0, 0.0]);
            stop_early(&rows, 2, tolerance, &mut indices, &mut coefficients);
            (indices, coefficients)
        };
        assert_eq!(run(0.35), ([5, 6, 7, 0, 0, 0], [4.0, 3.0, 1.0, 0.0, 0.0, 0.0]));
        assert_eq!(run(0.36), ([5, 0, 7, 0, 0, 0], [4.0, 0.0, 1.0, 0.0, 0.0, 0.0]));
        assert_eq!(run(1.0), ([0; 6], [0.0; 6]));
    }

    #[test]
    fn clearing_gives_the_memory_back() {
        for layout in layouts() {
            let mut codes = RaggedCodes::new(layout, 3, 100);
            codes.append(&[1, 2, 0], &[1.0, 2.0, 0.0]);
            assert!(codes.footprint().row_lengths > 0);
            codes.clear();
            assert_eq!((codes.rows(), codes.footprint().total()), (0, 0));
        }
    }
}
