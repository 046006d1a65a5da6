//! Products block by block: what the ways to multiply have in common.

use std::time::Instant;

use half::bf16;
use rayon::prelude::*;

/// Rows of x that a tile covers.
pub const PANEL_ROWS: usize = 32;
/// Rows of w that a tile covers. With [`PANEL_ROWS`], 26 of the 32 registers of AVX-512 hold sums, and heads of 64 or 128 channels leave
/// hardly a row over.
pub const OUTPUTS: usize = 13;
/// Panels of x, and tiles of w, of one turn: their sums take 53 KiB, in a second-level cache.
pub const PANELS: usize = 4;
pub const TILES: usize = 8;

/// The sums of a tile: a row of w each.
pub type Tile = [[f32; PANEL_ROWS]; OUTPUTS];

/// A way to multiply.
pub trait Blocks: Copy + Send + Sync {
    /// What a panel holds of a row for every [`Blocks::INPUTS`] inputs.
    type Number: Copy + Default + Send + Sync;
    /// Inputs of a number.
    const INPUTS: usize;

    /// The numbers of a row.
    fn numbers(x: &[bf16]) -> impl Iterator<Item = Self::Number>;

    /// The sums of `w`, at most [`OUTPUTS`] times [`TILES`] rows, with at most [`PANELS`] panels: tile by tile, and in it a panel each.
    fn block(self, sums: &mut [Tile], panels: &[Self::Number], w: &[bf16], inputs: usize);
}

/// Numbers of a panel.
fn panel_length<B: Blocks>(inputs: usize) -> usize {
    inputs.div_ceil(B::INPUTS) * PANEL_ROWS
}

/// As [`super::multiply_bf16`], whose checks have been made.
pub fn multiply<B: Blocks>(way: B, out: &mut [f32], x: &[bf16], w: &[bf16], inputs: usize) {
    let (rows, outputs) = (x.len() / inputs, w.len() / inputs);
    let panels = packed::<B>(x, inputs);
    let length = panel_length::<B>(inputs);
    let (across, down) = (outputs.div_ceil(OUTPUTS * TILES), rows.div_ceil(PANEL_ROWS * PANELS));
    let out = Out(out.as_mut_ptr());
    (0..across * down).into_par_iter().for_each_init(sums, |sums, block| {
        // Blocks of the same rows of w stand side by side.
        let (stripe, group) = (block / down, block % down);
        let first = stripe * OUTPUTS * TILES;
        let count = (outputs - first).min(OUTPUTS * TILES);
        let top = group * PANELS * PANEL_ROWS;
        let panels = &panels[group * PANELS * length..];
        let w = &w[first * inputs..(first + count) * inputs];
        way.block(sums, &panels[..panels.len().min(PANELS * length)], w, inputs);
        for row in top..rows.min(top + PANELS * PANEL_ROWS) {
            for column in 0..count {
                // SAFETY: row and column lie inside the result, and no other block has both.
                unsafe { out.at(row * outputs + first + column).write(sum(sums, row - top, column)) };
            }
        }
    });
}

/// `out = x wᵀ` on the calling thread, x being rows `from` to `from + rows` of the panels `x`.
pub fn multiply_rows<B: Blocks>(
    way: B,
    out: &mut [f32],
    x: &[B::Number],
    [from, rows]: [usize; 2],
    w: &[bf16],
    inputs: usize,
) {
    let (outputs, length) = (w.len() / inputs, panel_length::<B>(inputs));
    let panels = from / PANEL_ROWS..(from + rows).div_ceil(PANEL_ROWS);
    SUMS.with_borrow_mut(|sums| {
        for (stripe, w) in w.chunks(OUTPUTS * TILES * inputs).enumerate() {
            let (first, count) = (stripe * OUTPUTS * TILES, w.len() / inputs);
            for group in panels.clone().step_by(PANELS) {
                let last = panels.end.min(group + PANELS);
                way.block(sums, &x[group * length..last * length], w, inputs);
                let top = group * PANEL_ROWS;
                for row in from.max(top)..(from + rows).min(last * PANEL_ROWS) {
                    let out = &mut out[(row - from) * outputs + first..][..count];
                    out.iter_mut().enumerate().for_each(|(column, out)| *out = sum(sums, row - top, column));
                }
            }
        }
    });
}

thread_local! {
    /// Sums of this thread.
    static SUMS: std::cell::RefCell<Vec<Tile>> = std::cell::RefCell::new(sums());
}

/// Room for the sums of a block.
fn sums() -> Vec<Tile> {
    vec![[[0.0; PANEL_ROWS]; OUTPUTS]; TILES * PANELS]
}

/// One of the sums of a block.
#[inline(always)]
fn sum(sums: &[Tile], row: usize, column: usize) -> f32 {
    sums[column / OUTPUTS * PANELS + row / PANEL_ROWS][column % OUTPUTS][row % PANEL_ROWS]
}

/// Rows of x by panels; rows that are not there are zero.
fn packed<B: Blocks>(x: &[bf16], inputs: usize) -> Vec<B::Number> {
    let length = panel_length::<B>(inputs);
    let mut packed = vec![B::Number::default(); (x.len() / inputs).div_ceil(PANEL_ROWS) * length];
    packed.par_chunks_exact_mut(length).zip(x.par_chunks(PANEL_ROWS * inputs)).for_each(|(panel, x)| {
        for (row, x) in x.chunks_exact(inputs).enumerate() {
            for (panel, number) in panel.chunks_exact_mut(PANEL_ROWS).zip(B::numbers(x)) {
                panel[row] = number;
            }
        }
    });
    packed
}

/// Where a block writes its part of the result.
#[derive(Clone, Copy)]
struct Out(*mut f32);

// SAFETY: every block writes rows and columns of its own, see `multiply`.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

impl Out {
    fn at(self, index: usize) -> *mut f32 {
        self.0.wrapping_add(index)
    }
}

/// Multiply-adds per second of this thread, on a small block. It takes well below a millisecond.
pub fn rate<B: Blocks>(way: B) -> f64 {
    const INPUTS: usize = 256;
    let (mut sums, panels) = (sums(), vec![B::Number::default(); PANELS * panel_length::<B>(INPUTS)]);
    let w = vec![bf16::ZERO; OUTPUTS * INPUTS];
    let time = |_| {
        let start = Instant::now();
        way.block(&mut sums, &panels, std::hint::black_box(&w), INPUTS);
        start.elapsed().as_secs_f64()
    };
    // The fastest turn: nothing else ran beside it.
    let fastest = (0..16).map(time).fold(f64::INFINITY, f64::min);
    (PANELS * PANEL_ROWS * OUTPUTS * INPUTS) as f64 / fastest
}
