//! Products of bf16 by f32 multiply-adds, in the order of the products of pairs.

use std::cell::RefCell;

use half::bf16;

use super::super::Isa;
use super::super::simd::{Kernel, LANES, Simd};
use super::blocks::{Blocks, OUTPUTS, PANEL_ROWS, PANELS, TILES, Tile};

/// Inputs that are added up before the next tile, an even number: a panel of x takes 16 KiB, a third of a first-level cache, and
/// a tile of w takes 6.5 KiB.
const DEPTH: usize = 128;

/// A tile of w, widened.
type Wide = [[f32; DEPTH]; OUTPUTS];

/// Multiplies by the f32 instructions of a set.
#[derive(Clone, Copy, Debug)]
pub struct Fused(Isa);

impl Fused {
    /// With the widest instructions.
    pub fn detect() -> Self {
        Self(Isa::detect())
    }

    /// With these instructions.
    #[cfg(test)]
    pub fn of(isa: Isa) -> Self {
        Self(isa)
    }
}

thread_local! {
    /// The tiles of w that this thread multiplies by.
    static TILES_OF_W: RefCell<Vec<Wide>> = RefCell::new(vec![[[0.0; DEPTH]; OUTPUTS]; TILES]);
}

impl Blocks for Fused {
    type Number = f32;
    const INPUTS: usize = 1;

    fn numbers(x: &[bf16]) -> impl Iterator<Item = f32> {
        x.iter().map(|x| x.to_f32())
    }

    fn block(self, sums: &mut [Tile], panels: &[f32], w: &[bf16], inputs: usize) {
        let tiles = w.len().div_ceil(OUTPUTS * inputs);
        sums[..tiles * PANELS].fill([[0.0; PANEL_ROWS]; OUTPUTS]);
        TILES_OF_W.with_borrow_mut(|wide| {
            for from in (0..inputs).step_by(DEPTH) {
                let depth = DEPTH.min(inputs - from);
                let wide = &mut wide[..tiles];
                self.0.run(Widen { w, inputs, from, depth, wide });
                for (panel, x) in panels.chunks_exact(inputs * PANEL_ROWS).enumerate() {
                    let x = x[from * PANEL_ROWS..(from + depth) * PANEL_ROWS].as_chunks::<LANES>().0;
                    for (wide, sums) in wide.iter().zip(sums.chunks_exact_mut(PANELS)) {
                        self.0.run(Add { sums: &mut sums[panel], x: x.as_chunks::<2>().0, w: wide });
                    }
                }
            }
        });
    }
}

/// Widens inputs `from` to `from + depth` of the rows of w, tile by tile.
struct Widen<'a> {
    w: &'a [bf16],
    inputs: usize,
    from: usize,
    depth: usize,
    wide: &'a mut [Wide],
}

impl Kernel for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (w, wide) in self.w.chunks_exact(self.inputs).zip(self.wide.as_flattened_mut()) {
            let w = &w[self.from..self.from + self.depth];
            let (registers, rest) = w.as_chunks::<LANES>();
            for (to, w) in wide.as_chunks_mut::<LANES>().0.iter_mut().zip(registers) {
                simd.store(simd.load_bf16(w), to);
            }
            let tail = &mut wide[registers.len() * LANES..];
            for (to, w) in tail.iter_mut().zip(rest) {
                *to = w.to_f32();
            }
        }
    }
}

/// `sums[o][r] +=` the products of row `o` of w with row `r` of x, the second number of each pair before the first.
struct Add<'a> {
    sums: &'a mut Tile,
    /// `(depth, PANEL_ROWS)`, a row in two registers.
    x: &'a [[[f32; LANES]; 2]],
    w: &'a Wide,
}

impl Kernel for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // As many sums as registers hold.
        if S::SUMS >= 2 * OUTPUTS {
            return add::<S, OUTPUTS>(simd, self.sums, self.x, self.w);
        }
        let ((sums, sums_left), (w, w_left)) = (self.sums.as_chunks_mut::<3>(), self.w.as_chunks::<3>());
        for (sums, w) in sums.iter_mut().zip(w) {
            add::<S, 3>(simd, sums, self.x, w);
        }
        for (sums, w) in sums_left.as_chunks_mut::<1>().0.iter_mut().zip(w_left.as_chunks::<1>().0) {
            add::<S, 1>(simd, sums, self.x, w);
        }
    }
}

#[inline(always)]
fn add<S: Simd, const N: usize>(
    simd: S,
    sums: &mut [[f32; PANEL_ROWS]; N],
    x: &[[[f32; LANES]; 2]],
    w: &[[f32; DEPTH]; N],
) {
    let mut registers = [[simd.splat(0.0); 2]; N];
    for (registers, sums) in registers.iter_mut().zip(&*sums) {
        let [low, high] = halves(sums);
        *registers = [simd.load(low), simd.load(high)];
    }
    let (pairs, last) = x[..x.len().min(DEPTH)].as_chunks::<2>();
    for (pair, x) in pairs.iter().enumerate() {
        for second in [1, 0] {
            let (low, high) = (simd.load(&x[second][0]), simd.load(&x[second][1]));
            for (registers, w) in registers.iter_mut().zip(w) {
                let w = simd.splat(w[(2 * pair + second) % DEPTH]);
                registers[0] = simd.mul_add(low, w, registers[0]);
                registers[1] = simd.mul_add(high, w, registers[1]);
            }
        }
    }
    for x in last {
        let (low, high) = (simd.load(&x[0]), simd.load(&x[1]));
        for (registers, w) in registers.iter_mut().zip(w) {
            let w = simd.splat(w[2 * pairs.len() % DEPTH]);
            registers[0] = simd.mul_add(low, w, registers[0]);
            registers[1] = simd.mul_add(high, w, registers[1]);
        }
    }
    for (registers, sums) in registers.iter().zip(sums) {
        let (low, high) = sums.split_at_mut(LANES);
        simd.store(registers[0], low.first_chunk_mut().expect("a row of a tile is two registers"));
        simd.store(registers[1], high.first_chunk_mut().expect("a row of a tile is two registers"));
    }
}

/// A row of a tile as two registers.
#[inline(always)]
fn halves(row: &[f32; PANEL_ROWS]) -> [&[f32; LANES]; 2] {
    let (low, high) = row.split_at(LANES);
    [low, high].map(|half| half.first_chunk().expect("a row of a tile is two registers"))
}
