//! Estimates the products with all atoms in 8 bits, four times as fast as in f32. This leaves a few candidates for exact
//! products.
//!
//! Let the atoms be `d = q + e` and the residual `R = Q + E`, where `q` and `Q` are the values held in 8 bits. Then
//! `|<R, d> - <Q, q>| <= |R| |e| + |E| |q|`. The largest `|e|` and `|q|` are stored, and `|R|` and `|E|` are measured for
//! every row. The bound is a few hundredths of `|R|`, and about one atom in a thousand remains a candidate.

use super::BLOCK_ROWS;
use super::candidates::{Candidates, norm, rounding};
use crate::Dictionary;
use crate::kernels::{Bytes, Estimates, GROUP, Group, Isa, OFFSET, QUAD, TILE_ROWS};

/// The largest magnitude of the 8-bit numbers.
const LARGEST: f32 = 127.0;
/// The largest width of atoms whose sums fit 32 bits.
const WIDEST: usize = 1 << 15;
/// Margin for the rounding of the bound and of the estimates.
const ROOM: f32 = 1.0 + 1e-4;

/// The atoms of a dictionary in 8 bits.
#[derive(Debug)]
pub(super) struct Screen {
    bytes: Bytes,
    atoms: usize,
    /// Elements of an atom, and that number rounded up to whole quads (the rest is zeros).
    width: usize,
    padded: usize,
    /// `(groups, padded / QUAD, GROUP, QUAD)`.
    numbers: Vec<i8>,
    corrections: Vec<[i32; GROUP]>,
    scales: Vec<[f32; GROUP]>,
    /// The largest `|e|` and `|q|`.
    error: f32,
    longest: f32,
}

/// Buffers for a block of rows.
#[derive(Debug)]
pub(super) struct ScreenScratch {
    /// The residuals in 8 bits, `(rows, padded)`.
    rows: Vec<u8>,
    estimates: Box<Estimates>,
}

impl Screen {
    /// Returns None if 8 bits are not faster on this CPU, or the atoms are too wide.
    pub(super) fn new(dictionary: &Dictionary) -> Option<Self> {
        Self::on(Bytes::detect()?, dictionary)
    }

    /// Does the same with the implementation `bytes`.
    pub(super) fn on(bytes: Bytes, dictionary: &Dictionary) -> Option<Self> {
        let width = dictionary.width();
        if width > WIDEST {
            return None;
        }
        let (padded, groups) = (width.next_multiple_of(QUAD), dictionary.len().div_ceil(GROUP));
        let mut numbers = vec![0i8; groups * padded * GROUP];
        let (mut corrections, mut scales) = (vec![[0; GROUP]; groups], vec![[0.0; GROUP]; groups]);
        let (mut error, mut longest) = (0f64, 0f64);
        for (n, atom) in dictionary.atoms().chunks_exact(width).enumerate() {
            let (group, lane) = (n / GROUP, n % GROUP);
            let scale = largest(atom) / LARGEST;
            let numbers = &mut numbers[group * padded * GROUP..(group + 1) * padded * GROUP];
            let (mut sum, mut missed, mut length) = (0, 0f64, 0f64);
            for (k, &x) in atom.iter().enumerate() {
                let number = (x / scale).round();
                numbers[(k / QUAD * GROUP + lane) * QUAD + k % QUAD] = number as i8;
                sum += number as i32;
                let held = f64::from(number) * f64::from(scale);
                missed += (f64::from(x) - held).powi(2);
                length += held.powi(2);
            }
            (corrections[group][lane], scales[group][lane]) = (-OFFSET * sum, scale);
            (error, longest) = (error.max(missed.sqrt()), longest.max(length.sqrt()));
        }
        let (error, longest) = (error as f32 * ROOM, longest as f32 * ROOM);
        Some(Self { bytes, atoms: dictionary.len(), width, padded, numbers, corrections, scales, error, longest })
    }

    pub(super) fn bytes(&self) -> usize {
        self.numbers.capacity()
            + self.corrections.capacity() * size_of::<[i32; GROUP]>()
            + self.scales.capacity() * size_of::<[f32; GROUP]>()
    }

    /// The value of [`Screen::bytes`] for `atoms` atoms of `width` elements on this machine.
    pub(super) fn bytes_of(atoms: usize, width: usize) -> usize {
        if Bytes::detect().is_none() || width > WIDEST {
            return 0;
        }
        atoms.next_multiple_of(GROUP) * (width.next_multiple_of(QUAD) + size_of::<i32>() + size_of::<f32>())
    }

    pub(super) fn scratch(&self, rows: usize) -> ScreenScratch {
        ScreenScratch {
            rows: vec![OFFSET as u8; rows.next_multiple_of(TILE_ROWS) * self.padded],
            estimates: Box::new([[0.0; GROUP]; TILE_ROWS]),
        }
    }

    /// Adds the atoms that may be the best for each row of `residuals` `(n, width)` to `candidates`, `n <= BLOCK_ROWS`.
    pub(super) fn search(
        &self,
        isa: Isa,
        residuals: &[f32],
        scratch: &mut ScreenScratch,
        candidates: &mut [Candidates],
    ) {
        // For each row: the value of one unit of its numbers, and the bound on the error of its estimates.
        let mut units = [(0f32, 0f32); BLOCK_ROWS];
        let rows = residuals.chunks_exact(self.width).zip(scratch.rows.chunks_exact_mut(self.padded));
        for ((unit, (row, numbers)), candidates) in units.iter_mut().zip(rows).zip(candidates.iter_mut()) {
            match norm(isa, row) {
                Some(norm) => *unit = self.quantise(row, norm, numbers),
                None => candidates.take_all(row, 0..self.atoms),
            }
        }
        for (group, (numbers, corrections)) in
            self.numbers.chunks_exact(self.padded * GROUP).zip(&self.corrections).enumerate()
        {
            let atoms = Group { atoms: numbers, corrections, scales: &self.scales[group] };
            let first = group * GROUP;
            let real = u64::MAX >> (GROUP - GROUP.min(self.atoms - first));
            for tile in (0..candidates.len()).step_by(TILE_ROWS) {
                let rows =
                    std::array::from_fn(|r| &scratch.rows[(tile + r) * self.padded..(tile + r + 1) * self.padded]);
                let floors = std::array::from_fn(|r| match (candidates.get(tile + r), units.get(tile + r)) {
                    (Some(candidates), Some(&(unit, error))) if unit > 0.0 => candidates.floor(error) / unit,
                    _ => f32::INFINITY,
                });
                let masks = self.bytes.multiply(rows, atoms, &floors, &mut scratch.estimates);
                for (r, mask) in masks.into_iter().enumerate() {
                    let mut mask = mask & real;
                    while mask != 0 {
                        let lane = mask.trailing_zeros() as usize;
                        let (unit, error) = units[tile + r];
                        candidates[tile + r].take(first + lane, scratch.estimates[r][lane] * unit, error);
                        mask &= mask - 1;
                    }
                }
            }
        }
    }

    /// Writes a row in 8 bits. Returns the value of one unit and the bound on the error of the estimates.
    fn quantise(&self, row: &[f32], norm: f32, numbers: &mut [u8]) -> (f32, f32) {
        /// Adding this to a number of magnitude below 2^22 leaves the rounded number in the lowest bits.
        const ROUND: f32 = 12_582_912.0;
        let unit = largest(row) / LARGEST;
        let factor = unit.recip();
        let mut missed = [0f32; 8];
        for (row, numbers) in row.chunks(8).zip(numbers.chunks_mut(8)) {
            for ((&x, number), missed) in row.iter().zip(numbers).zip(&mut missed) {
                let rounded = (x * factor) + ROUND;
                *number = (rounded.to_bits() as u8).wrapping_add(OFFSET as u8);
                let held = (rounded - ROUND) * unit;
                *missed += (x - held) * (x - held);
            }
        }
        let missed = missed.iter().sum::<f32>().sqrt();
        let error = (norm * self.error + missed * self.longest) * ROOM + rounding(self.width, norm);
        (unit, error)
    }
}

fn largest(x: &[f32]) -> f32 {
    let mut lanes = [0f32; 8];
    for x in x.chunks(8) {
        for (lane, x) in lanes.iter_mut().zip(x) {
            *lane = if x.abs() > *lane { x.abs() } else { *lane };
        }
    }
    lanes.into_iter().fold(0.0, f32::max)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::pursuit::residual::Residual;
    use crate::pursuit::transposed::Transposed;
    use crate::pursuit::{Codes, PursuitPath};
    use crate::{Encoder, kernels::Isa};

    /// Numbers of which some are much larger than the others, as in keys.
    fn uneven(count: usize, seed: u64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut one = || {
            let x = (0..4).map(|_| rng.random::<f32>() - 0.5).sum::<f32>();
            if rng.random::<f32>() < 0.02 { 30.0 * x } else { x }
        };
        (0..count).map(|_| one()).collect()
    }

    /// The codes by definition. The order of the sums is that of [`Isa::dot`].
    fn by_definition(dictionary: &Dictionary, rows: &[f32], sparsity: usize) -> (Vec<u16>, Vec<u32>) {
        let isa = Isa::detect();
        let (mut indices, mut coefficients) = (vec![], vec![]);
        for row in rows.chunks(dictionary.width()) {
            let mut residual = row.to_vec();
            for _ in 0..sparsity {
                let mut best = (0.0f32, 0);
                for index in 0..dictionary.len() {
                    let product = isa.dot(dictionary.atom(index), &residual);
                    if product.abs() > best.0.abs() {
                        best = (product, index);
                    }
                }
                indices.push(best.1 as u16);
                coefficients.push(best.0.to_bits());
                if best.0 != 0.0 {
                    isa.axpy(&mut residual, -best.0, dictionary.atom(best.1));
                }
            }
        }
        (indices, coefficients)
    }

    fn by_screen(
        dictionary: &Dictionary,
        screen: Option<&Screen>,
        rows: &[f32],
        sparsity: usize,
    ) -> (Vec<u16>, Vec<u32>) {
        let transposed = Transposed::new(dictionary);
        let residual = Residual { atoms: dictionary.into(), transposed: &transposed, screen };
        let n = rows.len() / dictionary.width();
        let (mut indices, mut coefficients) = (vec![9; n * sparsity], vec![f32::NAN; n * sparsity]);
        let mut scratch = residual.scratch(n);
        let codes = Codes { sparsity, indices: &mut indices, coefficients: &mut coefficients };
        residual.encode(Isa::detect(), rows, codes, &mut scratch);
        (indices, coefficients.into_iter().map(f32::to_bits).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// With 8-bit estimates, with their portable reference and with f32 estimates, the codes have the same bits as those of
        /// exact products with every atom. This holds for all sizes, and ties go to the lowest index.
        #[test]
        fn every_quick_look_gives_the_codes_of_the_definition(
            atoms in 1usize..1300, width in 1usize..150, rows in 1usize..40, sparsity in 1usize..6,
            scale in -25i32..25, repeats in 0usize..3, seed in 0u64..1_000_000
        ) {
            let mut values = uneven(atoms * width, seed);
            // Some atoms occur twice or more, which gives ties.
            let distinct = atoms.div_ceil(repeats + 1) * width;
            for at in distinct..values.len() {
                values[at] = values[at - distinct];
            }
            let Ok(dictionary) = Dictionary::normalised(width, values) else { return Ok(()) };
            let mut x = uneven(rows * width, seed + 1);
            x.iter_mut().for_each(|x| *x *= 10f32.powi(scale));
            x[..width].fill(0.0);
            let expected = by_definition(&dictionary, &x, sparsity);
            for bytes in [Some(Bytes::Portable), Bytes::detect()].into_iter().flatten() {
                let screen = Screen::on(bytes, &dictionary).unwrap();
                prop_assert_eq!(&by_screen(&dictionary, Some(&screen), &x, sparsity), &expected);
            }
            prop_assert_eq!(&by_screen(&dictionary, None, &x, sparsity), &expected);
        }
    }

    #[test]
    fn few_atoms_are_left_for_the_exact_look() {
        let (width, atoms, rows) = (128, 8192, 32);
        let dictionary = Dictionary::normalised(width, uneven(atoms * width, 3)).unwrap();
        let x = uneven(rows * width, 4);
        let screen = Screen::on(Bytes::detect().unwrap_or(Bytes::Portable), &dictionary).unwrap();
        let mut scratch = screen.scratch(rows);
        let mut candidates: Vec<Candidates> = (0..rows).map(|_| Candidates::default()).collect();
        screen.search(Isa::detect(), &x, &mut scratch, &mut candidates);
        let left: usize = candidates.iter().map(Candidates::left).sum();
        assert!((rows..rows * atoms / 50).contains(&left), "{left} of {}", rows * atoms);
    }

    #[test]
    fn the_bytes_are_those_that_are_foretold() {
        for (atoms, width) in [(1, 1), (64, 8), (65, 130)] {
            let dictionary = Dictionary::normalised(width, uneven(atoms * width, 1)).unwrap();
            let held = Encoder::with_path(Arc::new(dictionary), PursuitPath::Residual);
            let held = held.screen.as_ref().map_or(0, Screen::bytes);
            assert_eq!(held, Screen::bytes_of(atoms, width));
        }
    }
}
