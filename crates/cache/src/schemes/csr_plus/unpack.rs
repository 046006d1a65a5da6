//! Tokens of a tile. They are unpacked once for all heads of a layer.

use std::cell::RefCell;
use std::sync::OnceLock;

use half::bf16;
use kvcsr_codec::kernels::Bf16Rows;
use kvcsr_codec::{WIDEST, lloyd_max};

/// The largest number of coordinates that one table look-up gives.
const TOGETHER: usize = 4;
/// Bytes after a row that may be read.
const BEHIND: usize = 8;

/// A run of coordinates with equal bits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) count: usize,
    pub(super) bits: usize,
    looks: &'static Looks,
}

/// A table that maps the next bits of a row to levels: as many levels as fit an index of 8 bits, at most [`TOGETHER`].
#[derive(Debug)]
struct Looks {
    codes: usize,
    levels: Vec<[f32; TOGETHER]>,
}

impl Run {
    pub(super) fn new(count: usize, bits: usize) -> Self {
        Self { count, bits, looks: looks(bits) }
    }

    /// Reads the run's levels, beginning at bit `at` of `row`. It may read [`BEHIND`] bytes after the row.
    fn read(&self, row: &[u8], at: usize, out: &mut [f32]) {
        match self.looks.codes {
            4 => self.read_by::<4>(row, at, out),
            2 => self.read_by::<2>(row, at, out),
            _ => self.read_by::<1>(row, at, out),
        }
    }

    #[inline(always)]
    fn read_by<const CODES: usize>(&self, row: &[u8], mut at: usize, out: &mut [f32]) {
        let (bits, levels) = (CODES * self.bits, &self.looks.levels[..]);
        let mask = (1 << bits) - 1;
        let (whole, rest) = out.as_chunks_mut::<CODES>();
        for out in whole {
            out.copy_from_slice(&levels[window(row, at) & mask][..CODES]);
            at += bits;
        }
        let length = rest.len();
        rest.copy_from_slice(&levels[window(row, at) & mask][..length]);
    }
}

/// At least 57 bits, beginning at bit `at`.
#[inline(always)]
fn window(row: &[u8], at: usize) -> usize {
    let bytes = &row[at / 8..at / 8 + 8];
    (u64::from_le_bytes(std::array::from_fn(|i| bytes[i])) >> (at % 8)) as usize
}

fn looks(bits: usize) -> &'static Looks {
    static TABLES: [OnceLock<Looks>; WIDEST] = [const { OnceLock::new() }; WIDEST];
    TABLES[bits - 1].get_or_init(|| {
        let codes = [TOGETHER, TOGETHER, 2, 2].get(bits - 1).copied().unwrap_or(1);
        let level = |index: usize, code: usize| levels(bits)[index >> (code * bits) & ((1 << bits) - 1)];
        let look = |index| std::array::from_fn(|code| if code < codes { level(index, code) } else { 0.0 });
        Looks { codes, levels: (0..1 << (codes * bits)).map(look).collect() }
    })
}

/// The levels of `bits` bits, rounded to bf16. A code restores to its level.
pub(super) fn levels(bits: usize) -> &'static [f32] {
    static TABLES: [OnceLock<Vec<f32>>; WIDEST] = [const { OnceLock::new() }; WIDEST];
    let rounded = |x: &f32| bf16::from_f32(*x).to_f32();
    TABLES[bits - 1].get_or_init(|| lloyd_max(bits).levels.iter().map(rounded).collect())
}

/// Unpacked tokens. A token is its atom, plus its gain times its levels in the basis.
#[derive(Default)]
pub(super) struct Unpacked {
    pub(super) atoms: Vec<usize>,
    pub(super) gains: Vec<f32>,
    /// `(tokens, width)`: levels, all exact in bf16, with zeros beyond `r`.
    pub(super) levels: Vec<f32>,
    /// The same levels, in the layout for products.
    pub(super) rows: Bf16Rows,
    /// A row of codes, and the bytes after it.
    row: Vec<u8>,
}

impl Unpacked {
    /// Replaces the content with the tokens of `bytes`, `row_bytes` each, whose codes have `width` coordinates. `head`
    /// reads the atom and gain of a row. The first of the `runs` begins at bit `first` of a row.
    pub(super) fn fill(
        &mut self,
        bytes: &[u8],
        row_bytes: usize,
        width: usize,
        (first, runs): (usize, &[Run]),
        head: impl Fn(&[u8]) -> (usize, f32),
    ) {
        let n = bytes.len() / row_bytes;
        self.atoms.clear();
        self.gains.clear();
        self.levels.resize(n * width, 0.0);
        self.rows.resize(n, width);
        self.row.clear();
        self.row.resize(row_bytes + BEHIND, 0);
        for (token, bytes) in bytes.chunks_exact(row_bytes).enumerate() {
            self.row[..row_bytes].copy_from_slice(bytes);
            let (atom, gain) = head(bytes);
            self.atoms.push(atom);
            self.gains.push(gain);
            let levels = &mut self.levels[token * width..(token + 1) * width];
            let (mut at, mut from) = (first, 0);
            for run in runs {
                run.read(&self.row, at, &mut levels[from..from + run.count]);
                (at, from) = (at + run.count * run.bits, from + run.count);
            }
            levels[from..].fill(0.0);
            self.rows.set(token, levels);
        }
    }
}

/// The number of tiles that a thread keeps unpacked. Heads use the same tiles in turn.
const TILES: usize = 2;

/// The tiles that this thread unpacked last, each with its key: a store, the state of the store, and the tile's index.
#[derive(Default)]
struct Kept([(Option<Tile>, Unpacked); TILES]);

/// The key of a tile: the number of its store, how many times the store changed, and the tile's index.
pub(super) type Tile = (u64, u64, usize);

thread_local! {
    static KEPT: RefCell<Kept> = RefCell::default();
}

/// Calls `f` with the unpacked `tile`. If this thread no longer has it, `fill` unpacks it first.
pub(super) fn with<R>(tile: Tile, fill: impl FnOnce(&mut Unpacked), f: impl FnOnce(&Unpacked) -> R) -> R {
    KEPT.with_borrow_mut(|kept| {
        let (held, unpacked) = &mut kept.0[tile.2 % TILES];
        if *held != Some(tile) {
            *held = None;
            fill(unpacked);
            *held = Some(tile);
        }
        f(unpacked)
    })
}

#[cfg(test)]
mod tests {
    use kvcsr_codec::BitWriter;

    use super::*;

    #[test]
    fn runs_are_read_as_they_were_written() {
        for bits in 1..=WIDEST {
            for (first, count) in [(0, 1), (3, 17), (18, 250), (7, 64)] {
                let codes: Vec<u32> =
                    (0..count as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 7) & ((1 << bits) - 1)).collect();
                let mut bytes = Vec::new();
                let mut writer = BitWriter::new(&mut bytes);
                (0..first).for_each(|_| writer.write(1, 1));
                codes.iter().for_each(|&code| writer.write(code, bits));
                writer.finish();
                bytes.resize(bytes.len() + BEHIND, 0xff);
                let mut out = vec![f32::NAN; count];
                Run::new(count, bits).read(&bytes, first, &mut out);
                let expected: Vec<f32> = codes.iter().map(|&code| levels(bits)[code as usize]).collect();
                assert_eq!(out, expected, "{bits} bits, {count} from {first}");
            }
        }
    }
}
