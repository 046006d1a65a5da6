//! The tables that code and restore the tokens of a layer.

use std::sync::Arc;

use half::{bf16, f16};
use kvcsr_codec::kernels::{Isa, LANES, Matrix, MatrixMut, multiply, multiply_add};
use kvcsr_codec::{BitReader, BitWriter, CodebookSet, CodecError, Kind, MAX_ATOMS, Table, index_bits, lloyd_max};
use rayon::prelude::*;

use super::unpack::{Run, Unpacked};
use super::{ATOMS, BASIS, DEVIATIONS, METRIC};
use crate::{CacheError, Geometry};

/// Bits of a token's gain.
const GAIN_BITS: usize = 8;
/// Gains are powers of two. These are the smallest and the largest exponent.
pub(super) const GAINS: (f32, f32) = (-4.0, 4.0);
/// Rows of a table that one thread multiplies with a decoded token at a time.
const SEARCHED: usize = 64;
/// Deviations below this count as zero: dividing by them would overflow.
const LEAST: f32 = 1e-12;

/// The tables of one layer, as calibration wrote them.
pub(super) struct Tables<'a> {
    atoms: &'a Table,
    metric: &'a Table,
    basis: &'a Table,
    deviations: &'a Table,
}

impl<'a> Tables<'a> {
    /// The tables of `layer`.
    pub(super) fn read(set: &'a CodebookSet, layer: usize, geometry: Geometry) -> Result<Self, CodecError> {
        let n = 2 * geometry.kv_heads * geometry.head_dim;
        let table = |name: &str, shape: &[usize]| set.table(layer, Kind::Key, name, shape);
        let count = set.get(layer, Kind::Key, ATOMS).and_then(|table| table.shape().first().copied()).unwrap_or(1);
        let tables = Self {
            atoms: table(ATOMS, &[count, n])?,
            metric: table(METRIC, &[n])?,
            basis: table(BASIS, &[n, n])?,
            deviations: table(DEVIATIONS, &[n])?,
        };
        let bad = |what: &str, expected: &str| CodecError::Mismatch {
            subject: format!("{}, layer {layer}, `{what}`", set.method),
            expected: expected.to_owned(),
            found: "another number".to_owned(),
        };
        if !(1..=MAX_ATOMS).contains(&count) {
            return Err(bad(ATOMS, "1 to 65536 rows"));
        }
        if !tables.metric.values().iter().all(|weight| *weight > f16::ZERO) {
            return Err(bad(METRIC, "weights above 0"));
        }
        let deviations = tables.deviations.values();
        if !deviations.is_sorted_by(|a, b| a >= b) || deviations.iter().any(|d| *d < f16::ZERO) {
            return Err(bad(DEVIATIONS, "falling numbers, none below 0"));
        }
        Ok(tables)
    }

    /// The tables of every layer.
    ///
    /// # Errors
    /// [`CacheError::Codec`], naming the layer.
    pub(super) fn all(set: &'a CodebookSet, geometry: Geometry) -> Result<Vec<Self>, CacheError> {
        let table = |layer| {
            let codec = |source| CacheError::Codec { layer, kind: Kind::Key, source };
            Self::read(set, layer, geometry).map_err(codec)
        };
        (0..geometry.layers).map(table).collect()
    }

    /// Identifies the tables: several layers may share them.
    pub(super) fn identity(&self) -> *const f16 {
        self.basis.values().as_ptr()
    }

    /// Deviations in the metric, in falling order.
    pub(super) fn deviations(&self) -> Vec<f64> {
        self.deviations.values().iter().map(|deviation| deviation.to_f64()).collect()
    }

    /// Number of atoms, `N`.
    pub(super) fn atoms(&self) -> usize {
        self.atoms.shape()[0]
    }

    /// Bits of a token in addition to its coordinates.
    pub(super) fn overhead_bits(&self) -> usize {
        index_bits(self.atoms.shape()[0]) + GAIN_BITS
    }
}

/// The tables that code and restore a layer's tokens with given bits. The channels are the keys of all heads, then the
/// values of all heads.
pub(super) struct Transform {
    geometry: Geometry,
    /// `(N, 2 Hkv D)` in natural units.
    atoms: Vec<f32>,
    /// Finds the nearest atom, `(N, 2 Hkv D)`: with the metric `w`, the nearest atom has the largest
    /// `<x, w² a> - ||w a||² / 2`.
    search: Vec<f32>,
    /// `||w a||² / 2`, `(N)`.
    offsets: Vec<f32>,
    /// What all atoms have in common, for keys and for values, `(Hkv, D)` each.
    centres: [Arc<[f32]>; 2],
    /// `(r, 2 Hkv D)`: from natural units to coordinates with deviation 1.
    encode: Vec<f32>,
    /// `(2 Hkv, D, width)`: from coordinates with deviation 1 to the keys of each head, then to the values of each
    /// head.
    decode: Vec<bf16>,
    /// `r`, rounded up to whole SIMD registers.
    width: usize,
    runs: Vec<Run>,
    kept: usize,
    index_bits: usize,
    row_bytes: usize,
}

impl Transform {
    pub(super) fn new(tables: &Tables<'_>, bits: &[u8], geometry: Geometry) -> Self {
        let n = 2 * geometry.kv_heads * geometry.head_dim;
        let (atoms, metric, deviations) = (tables.atoms.to_f32(), tables.metric.to_f32(), tables.deviations.to_f32());
        let kept =
            bits.iter().zip(&deviations).take_while(|(bits, deviation)| **bits > 0 && **deviation > LEAST).count();
        let basis = tables.basis.to_f32();
        let width = kept.next_multiple_of(LANES);
        let (mut encode, mut decode) = (vec![0.0; n * kept], vec![bf16::ZERO; n * width]);
        for (at, (row, deviation)) in basis.chunks_exact(n).zip(&deviations).take(kept).enumerate() {
            for (channel, (&x, &weight)) in row.iter().zip(&metric).enumerate() {
                encode[at * n + channel] = x * weight / deviation;
                decode[channel * width + at] = bf16::from_f32(x * deviation / weight);
            }
        }
        let runs = bits[..kept].chunk_by(|a, b| a == b).map(|run| Run::new(run.len(), run[0].into())).collect();
        let count = atoms.len() / n;
        let (mut search, mut offsets) = (vec![0.0; n * count], vec![0.0; count]);
        for (at, (atom, offset)) in atoms.chunks_exact(n).zip(&mut offsets).enumerate() {
            for (channel, (x, w)) in atom.iter().zip(&metric).enumerate() {
                search[at * n + channel] = w * w * x;
                *offset += 0.5 * (w * x) * (w * x);
            }
        }
        let index_bits = index_bits(count);
        let common = medians(&atoms, n);
        let centres = [Arc::from(&common[..n / 2]), Arc::from(&common[n / 2..])];
        let coordinates: usize = bits[..kept].iter().map(|&bits| usize::from(bits)).sum();
        Self {
            geometry,
            atoms,
            search,
            offsets,
            centres,
            encode,
            decode,
            width,
            runs,
            kept,
            index_bits,
            row_bytes: (index_bits + GAIN_BITS + coordinates).div_ceil(8),
        }
    }

    /// Channels of a token, `2 Hkv D`.
    pub(super) fn channels(&self) -> usize {
        2 * self.geometry.kv_heads * self.geometry.head_dim
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Number of atoms, `N`.
    pub(super) fn atoms(&self) -> usize {
        self.offsets.len()
    }

    /// All atoms, `(N, 2 Hkv D)`.
    pub(super) fn all_atoms(&self) -> &[f32] {
        &self.atoms
    }

    /// The table that finds the nearest atom, `(N, 2 Hkv D)`.
    pub(super) fn search(&self) -> &[f32] {
        &self.search
    }

    /// What is subtracted from the products with this table, `(N)`.
    pub(super) fn offsets(&self) -> &[f32] {
        &self.offsets
    }

    /// What all atoms have in common, for keys and for values, `(Hkv, D)` each: the median of each channel. It contains
    /// the bias that all keys of a head share.
    pub(super) fn centres(&self) -> [Arc<[f32]>; 2] {
        self.centres.clone()
    }

    /// `(r, 2 Hkv D)`: from natural units to coordinates with deviation 1.
    pub(super) fn encoding(&self) -> &[f32] {
        &self.encode
    }

    /// Restores one channel of a token from coordinates, `(width,)`.
    pub(super) fn decode_channel(&self, channel: usize) -> &[bf16] {
        &self.decode[channel * self.width..(channel + 1) * self.width]
    }

    /// Runs of coordinates with equal bits: the number of coordinates, and their bits.
    pub(super) fn runs(&self) -> impl Iterator<Item = (usize, usize)> {
        self.runs.iter().map(|run| (run.count, run.bits))
    }

    /// Bits of the index of an atom.
    pub(super) fn index_bits(&self) -> usize {
        self.index_bits
    }

    /// The number of coordinates that have bits, `r`.
    pub(super) fn kept(&self) -> usize {
        self.kept
    }

    /// Bytes of a coded token.
    pub(super) fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// The part of atom `i` for half-head `at`: the keys of head `at`, or the values of head `at - Hkv`. Its shape is
    /// `(D,)`.
    pub(super) fn atom(&self, i: usize, at: usize) -> &[f32] {
        let d = self.geometry.head_dim;
        &self.atoms[i * self.channels() + at * d..][..d]
    }

    /// Restores half-head `at` from coordinates, `(D, width)`.
    pub(super) fn decode(&self, at: usize) -> &[bf16] {
        let each = self.width * self.geometry.head_dim;
        &self.decode[at * each..(at + 1) * each]
    }

    /// The number of coordinates of an unpacked token: `r`, rounded up to whole SIMD registers. Those beyond `r` are 0.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Restores half-head `at` of tokens into `out`, `(n, D)`, from their atoms and coordinates `(n, r)`. The
    /// coordinates may be any numbers.
    pub(super) fn restore(&self, at: usize, atoms: &[usize], coordinates: &[f32], out: &mut [f32]) {
        let (n, d, width) = (atoms.len(), self.geometry.head_dim, self.width);
        out.chunks_exact_mut(d).zip(atoms).for_each(|(row, &atom)| row.copy_from_slice(self.atom(atom, at)));
        if self.kept > 0 {
            let mut decode = vec![0.0; d * width];
            Isa::detect().widen(self.decode(at), &mut decode);
            let decode = Matrix::spaced(&decode, d, self.kept, width).transposed();
            multiply_add(MatrixMut::new(out, n, d), Matrix::new(coordinates, n, self.kept), decode);
        }
    }

    /// Restores half-head `at` of the unpacked tokens from token `from` on into `out`, `(n, D)`.
    pub(super) fn restore_unpacked(&self, at: usize, unpacked: &Unpacked, from: usize, out: &mut [f32]) {
        let d = self.geometry.head_dim;
        if self.kept > 0 {
            unpacked.rows.multiply(from, self.decode(at), out);
        } else {
            out.fill(0.0);
        }
        let tokens = unpacked.atoms[from..].iter().zip(&unpacked.gains[from..]);
        for (row, (&atom, &gain)) in out.chunks_exact_mut(d).zip(tokens) {
            row.iter_mut().zip(self.atom(atom, at)).for_each(|(x, atom)| *x = gain * *x + atom);
        }
    }

    /// Bytes on the heap.
    pub(super) fn bytes(&self) -> usize {
        let tables = [&self.atoms, &self.search, &self.offsets, &self.encode];
        let centres = self.channels() * size_of::<f32>();
        tables.map(Vec::capacity).iter().sum::<usize>() * size_of::<f32>()
            + self.decode.capacity() * size_of::<bf16>()
            + centres
    }

    /// Bytes as a file would store the tables: in f16, and only for the coordinates that have bits.
    pub(super) fn stored_bytes(&self) -> usize {
        (self.atoms.len() + self.channels() + self.kept * (self.channels() + 1)) * size_of::<f16>()
    }

    /// Finds the nearest atom of each of the tokens `(n, 2 Hkv D)`, and subtracts it from the token. Returns the atoms
    /// and the coordinates of the remainder, `(n, r)`.
    pub(super) fn coordinates(&self, rows: &mut [f32]) -> (Vec<usize>, Vec<f32>) {
        let channels = self.channels();
        let n = rows.len() / channels;
        let (isa, count) = (Isa::detect(), self.atoms());
        let mut scores = vec![0.0; n * count];
        products(rows, &self.search, channels, &mut scores);
        let mut found = Vec::with_capacity(n);
        for (row, scores) in rows.chunks_exact_mut(channels).zip(scores.chunks_exact_mut(count)) {
            scores.iter_mut().zip(&self.offsets).for_each(|(score, offset)| *score -= offset);
            let largest = isa.max(scores);
            let atom = scores.iter().position(|score| *score == largest).unwrap_or(0);
            row.iter_mut().zip(&self.atoms[atom * channels..]).for_each(|(x, atom)| *x -= atom);
            found.push(atom);
        }
        let mut coordinates = vec![0.0; n * self.kept];
        if self.kept > 0 {
            products(rows, &self.encode, channels, &mut coordinates);
        }
        (found, coordinates)
    }

    /// Codes tokens `(n, 2 Hkv D)` into `out`, `(n, row_bytes)`. Overwrites the tokens.
    pub(super) fn encode(&self, rows: &mut [f32], out: &mut Vec<u8>) {
        let (found, coordinates) = self.coordinates(rows);
        for (token, atom) in found.into_iter().enumerate() {
            let row = &coordinates[token * self.kept..(token + 1) * self.kept];
            let start = out.len();
            let mut writer = BitWriter::new(out);
            writer.write(atom as u32, self.index_bits);
            let squares = row.iter().map(|x| x * x).sum::<f32>() / self.kept.max(1) as f32;
            let code = gain_code(squares.sqrt());
            writer.write(code, GAIN_BITS);
            let inverse = 1.0 / gain(code);
            let mut at = 0;
            for run in &self.runs {
                let table = lloyd_max(run.bits);
                for x in &row[at..at + run.count] {
                    writer.write(table.code(x * inverse).into(), run.bits);
                }
                at += run.count;
            }
            writer.finish();
            debug_assert_eq!(out.len() - start, self.row_bytes);
        }
    }

    /// Unpacks tokens `bytes` `(n, row_bytes)`.
    pub(super) fn unpack(&self, bytes: &[u8], unpacked: &mut Unpacked) {
        let head = |row: &[u8]| {
            let mut reader = BitReader::new(row);
            // If a code is larger than the index of the last atom, it means the last atom.
            let atom = (reader.read(self.index_bits) as usize).min(self.atoms() - 1);
            (atom, gain(reader.read(GAIN_BITS)))
        };
        unpacked.fill(bytes, self.row_bytes, self.width, (self.index_bits + GAIN_BITS, &self.runs), head);
    }
}

/// `out = x yᵀ` for rows of `width` numbers each.
fn products(x: &[f32], y: &[f32], width: usize, out: &mut [f32]) {
    let (n, m) = (x.len() / width, y.len() / width);
    if n == 1 {
        // One decoded token: `y` is not copied in another order. `y` has megabytes, which a single thread reads slowly.
        let parts = out.par_chunks_mut(SEARCHED).zip(y.par_chunks(SEARCHED * width));
        return parts.for_each(|(out, y)| Isa::detect().scores(y, x, width, out));
    }
    multiply(MatrixMut::new(out, n, m), Matrix::new(x, n, width), Matrix::new(y, m, width).transposed());
}

/// The median of each channel of `rows`, `(n, width)`.
fn medians(rows: &[f32], width: usize) -> Vec<f32> {
    let mut column = Vec::with_capacity(rows.len() / width);
    let median = |channel: usize| {
        column.clear();
        column.extend(rows.iter().skip(channel).step_by(width));
        let middle = column.len() / 2;
        *column.select_nth_unstable_by(middle, f32::total_cmp).1
    };
    (0..width).map(median).collect()
}

/// The code of a gain: its logarithm, scaled and rounded.
fn gain_code(gain: f32) -> u32 {
    let (low, high) = GAINS;
    let most = (1 << GAIN_BITS) - 1;
    let place = (gain.max(f32::MIN_POSITIVE).log2() - low) / (high - low) * most as f32;
    (place.round().max(0.0) as u32).min(most)
}

/// The gain that belongs to a code.
fn gain(code: u32) -> f32 {
    let (low, high) = GAINS;
    (low + code as f32 * (high - low) / ((1 << GAIN_BITS) - 1) as f32).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_each_channel_is_the_middle_of_its_rows() {
        assert_eq!(medians(&[1.0, 90.0, 3.0, 70.0, 2.0, 80.0], 2), [2.0, 80.0]);
        assert_eq!(medians(&[5.0, 6.0], 2), [5.0, 6.0]);
    }

    #[test]
    fn gains_are_kept_within_a_percent_and_clamped() {
        for x in [0.07f32, 0.5, 1.0, 3.3, 15.0] {
            assert!((gain(gain_code(x)) / x - 1.0).abs() < 0.011, "{x}");
        }
        assert_eq!((gain(gain_code(0.0)), gain(gain_code(1e9))), (1.0 / 16.0, 16.0));
        assert_eq!(gain_code(f32::NAN), gain_code(f32::MIN_POSITIVE));
    }
}
