//! The matrix product of bf16 operands, with sums in f32. On CPUs that multiply pairs of bf16 (AVX512-BF16) it is twice as
//! fast as the f32 product. On other CPUs it is the f32 product of the same numbers.

use std::cell::Cell;

use half::bf16;
use rayon::prelude::*;

use super::{Isa, Matrix, MatrixMut, Stored, multiply, multiply_parallel};

/// How many numbers of `w` are widened at a time: 4 MiB as f32.
const PANEL: usize = 1 << 20;
/// How many numbers one thread widens at a time.
const TURN: usize = 1 << 15;

/// Computes `out = x wᵀ` on the current rayon pool: x `(rows, inputs)`, w `(outputs, inputs)`, out `(rows, outputs)`.
///
/// Every product of two bf16 is exact in f32. On one machine the order of the sums is fixed and does not depend on the
/// number of threads. The order differs between CPUs with and without AVX512-BF16.
///
/// # Panics
/// If the sizes of the slices do not match.
/// If the slices do not fit each other.
pub fn multiply_bf16(out: &mut [f32], x: &[bf16], w: &[bf16], inputs: usize) {
    assert!(inputs > 0 && x.len().is_multiple_of(inputs) && w.len().is_multiple_of(inputs));
    let (rows, outputs) = (x.len() / inputs, w.len() / inputs);
    assert_eq!(out.len(), rows * outputs);
    #[cfg(target_arch = "x86_64")]
    if let Some(pairs) = pairs::Pairs::detect()
        && inputs.is_multiple_of(2)
    {
        return pairs.multiply(out, x, w, inputs);
    }
    widened(out, x, w, inputs);
}

/// Rows for products on one thread, stored in the order in which the CPU takes pairs of bf16. The memory can be reused for
/// several products.
#[derive(Debug, Default)]
pub struct Bf16Rows {
    rows: usize,
    inputs: usize,
    /// Whether the CPU multiplies pairs of bf16.
    paired: bool,
    /// With pairs: panels of [`PANEL_ROWS`] rows, each `(inputs / 2, PANEL_ROWS)` of pairs.
    pairs: Vec<[bf16; 2]>,
    /// Without pairs: `(rows, inputs)`.
    wide: Vec<f32>,
}

/// Rows of a panel.
const PANEL_ROWS: usize = 32;

impl Bf16Rows {
    /// Makes room for `rows` rows of `inputs` numbers. The content of a row is undefined until [`Bf16Rows::set`].
    ///
    /// # Panics
    /// If `inputs` is odd.
    pub fn resize(&mut self, rows: usize, inputs: usize) {
        self.resize_for(rows, inputs, paired());
    }

    fn resize_for(&mut self, rows: usize, inputs: usize, paired: bool) {
        assert!(inputs.is_multiple_of(2));
        (self.rows, self.inputs, self.paired) = (rows, inputs, paired);
        let panels = rows.div_ceil(PANEL_ROWS) * PANEL_ROWS * inputs / 2;
        self.pairs.resize(if paired { panels } else { 0 }, [bf16::ZERO; 2]);
        self.wide.resize(if paired { 0 } else { rows * inputs }, 0.0);
    }

    /// Sets a row to `x`. The lower 16 bits of each number are dropped, so f32 numbers that are exact bf16 do not change.
    ///
    /// # Panics
    /// If the row does not exist, or `x` has another length.
    pub fn set(&mut self, row: usize, x: &[f32]) {
        assert!(row < self.rows && x.len() == self.inputs);
        if x.is_empty() {
            return;
        }
        if !self.paired {
            let to = self.wide[row * self.inputs..][..self.inputs].iter_mut();
            return to.zip(x).for_each(|(to, x)| *to = f32::from_bits(x.to_bits() & 0xffff_0000));
        }
        let panel = &mut self.pairs[row / PANEL_ROWS * PANEL_ROWS * self.inputs / 2..];
        let cut = |x: f32| bf16::from_bits((x.to_bits() >> 16) as u16);
        for (to, x) in panel[row % PANEL_ROWS..].iter_mut().step_by(PANEL_ROWS).zip(x.as_chunks::<2>().0) {
            *to = [cut(x[0]), cut(x[1])];
        }
    }

    /// Computes `out = x wᵀ` on the calling thread. x is the rows from `from` to `from + out.len() / outputs`, and w is
    /// `(outputs, inputs)`.
    ///
    /// # Panics
    /// If the sizes of the slices do not match.
    pub fn multiply(&self, from: usize, w: &[bf16], out: &mut [f32]) {
        if w.is_empty() || out.is_empty() {
            return out.fill(0.0);
        }
        assert!(w.len().is_multiple_of(self.inputs));
        let outputs = w.len() / self.inputs;
        let rows = out.len() / outputs;
        assert!(from + rows <= self.rows && out.len() == rows * outputs);
        #[cfg(target_arch = "x86_64")]
        if self.paired
            && let Some(machine) = pairs::Pairs::detect()
        {
            return machine.multiply_panels(out, &self.pairs, [from, rows], w, self.inputs);
        }
        self.widened(from, w, out);
    }

    /// The same product through f32 copies.
    fn widened(&self, from: usize, w: &[bf16], out: &mut [f32]) {
        let (inputs, outputs) = (self.inputs, w.len() / self.inputs);
        let rows = out.len() / outputs;
        let mut wide = WIDE.take();
        wide.resize(w.len(), 0.0);
        Isa::detect().widen(w, &mut wide);
        let own = &self.wide[from * inputs..(from + rows) * inputs];
        let (x, w) = (Matrix::new(own, rows, inputs), Matrix::new(&wide, outputs, inputs));
        multiply(MatrixMut::new(out, rows, outputs), x, w.transposed());
        WIDE.set(wide);
    }
}

thread_local! {
    /// This thread's buffer for widened rows of w.
    static WIDE: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Whether the CPU multiplies pairs of bf16.
fn paired() -> bool {
    #[cfg(target_arch = "x86_64")]
    let there = pairs::Pairs::detect().is_some();
    #[cfg(not(target_arch = "x86_64"))]
    let there = false;
    there
}

/// The product through f32 copies of both operands.
fn widened(out: &mut [f32], x: &[bf16], w: &[bf16], inputs: usize) {
    let mut wide = vec![0f32; x.len()];
    widen(x, &mut wide);
    multiply_widened(out, &wide, w, inputs);
}

/// Computes `out = x wᵀ` on the current rayon pool. w is widened exactly while it is used: x `(rows, inputs)`, w
/// `(outputs, inputs)`, out `(rows, outputs)`.
///
/// # Panics
/// If the sizes of the slices do not match.
pub fn multiply_widened<W: Stored>(out: &mut [f32], x: &[f32], w: &[W], inputs: usize) {
    let (rows, outputs) = (x.len() / inputs, w.len() / inputs);
    assert_eq!(out.len(), rows * outputs);
    let panel = (PANEL / inputs).clamp(1, outputs.max(1));
    let mut wide = vec![0f32; panel * inputs];
    for (at, w) in w.chunks(panel * inputs).enumerate() {
        let (wide, columns) = (&mut wide[..w.len()], w.len() / inputs);
        widen(w, wide);
        let out = MatrixMut::spaced(&mut out[at * panel..], rows, columns, outputs);
        multiply_parallel(out, Matrix::new(x, rows, inputs), Matrix::new(wide, columns, inputs).transposed());
    }
}

/// Converts to f32 on the current rayon pool.
fn widen<W: Stored>(from: &[W], to: &mut [f32]) {
    let isa = Isa::detect();
    to.par_chunks_mut(TURN).zip(from.par_chunks(TURN)).for_each(|(to, from)| isa.widen(from, to));
}

#[cfg(target_arch = "x86_64")]
mod pairs {
    use std::arch::is_x86_feature_detected;
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps,
        _mm512_storeu_ps,
    };

    use half::bf16;
    use rayon::prelude::*;

    use super::super::limit::{Width, allows};

    /// Rows of x in a tile: two registers.
    const ROWS: usize = super::PANEL_ROWS;
    /// Rows of w in a tile. With [`ROWS`], 26 of the 32 registers hold sums. If w has 64 or 128 rows, one per channel of a
    /// head, only 1 or 2 rows of the tiles are unused.
    const OUTPUTS: usize = 13;
    /// Pairs along the inputs that are added up before the next tile. A panel of x then takes 16 KiB, half of a
    /// first-level cache.
    const DEPTH: usize = 128;
    /// Panels of x, and tiles of w, per work item: 52 KiB of sums and as much of w fit in a second-level cache.
    const PANELS: usize = 4;
    const TILES: usize = 8;

    /// The sums of a tile, one row per row of w.
    type Tile = [[f32; ROWS]; OUTPUTS];

    /// Two numbers that one instruction multiplies and adds up.
    type Pair = [bf16; 2];

    /// Proof that this CPU multiplies pairs of bf16.
    #[derive(Clone, Copy)]
    pub(super) struct Pairs(());

    /// Pointer to the result, to which every block writes its part.
    #[derive(Clone, Copy)]
    struct Out(*mut f32);

    // SAFETY: every block writes only its own rows and columns, see `Pairs::multiply`.
    unsafe impl Send for Out {}
    // SAFETY: as above.
    unsafe impl Sync for Out {}

    impl Out {
        fn at(self, index: usize) -> *mut f32 {
            self.0.wrapping_add(index)
        }
    }

    impl Pairs {
        pub(super) fn detect() -> Option<Self> {
            let there = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
            (there && allows(Width::Avx512)).then_some(Self(()))
        }

        /// Does the same as [`super::multiply_bf16`]. The caller has made its checks, and `inputs` is even.
        pub(super) fn multiply(self, out: &mut [f32], x: &[bf16], w: &[bf16], inputs: usize) {
            let (rows, outputs, depth) = (x.len() / inputs, w.len() / inputs, inputs / 2);
            let panels = packed(x, inputs);
            let (across, down) = (outputs.div_ceil(OUTPUTS * TILES), rows.div_ceil(ROWS * PANELS));
            let out = Out(out.as_mut_ptr());
            (0..across * down).into_par_iter().for_each_init(
                || vec![[[0f32; ROWS]; OUTPUTS]; TILES * PANELS],
                |sums, block| {
                    // Blocks with the same rows of w are neighbours.
                    let (stripe, group) = (block / down, block % down);
                    let first = stripe * OUTPUTS * TILES;
                    let count = (outputs - first).min(OUTPUTS * TILES);
                    let from = group * PANELS;
                    let panels = &panels[from * depth * ROWS..];
                    let panels = &panels[..panels.len().min(PANELS * depth * ROWS)];
                    let w = &w[first * inputs..(first + count) * inputs];
                    self.block(sums, panels, w, depth);
                    for (tile, sums) in sums.chunks_exact(PANELS).take(count.div_ceil(OUTPUTS)).enumerate() {
                        let columns = (count - tile * OUTPUTS).min(OUTPUTS);
                        for (panel, sums) in sums.iter().enumerate() {
                            let top = (from + panel) * ROWS;
                            for row in 0..ROWS.min(rows.saturating_sub(top)) {
                                let at = out.at((top + row) * outputs + first + tile * OUTPUTS);
                                for (column, sums) in sums.iter().enumerate().take(columns) {
                                    // SAFETY: the row and the column are inside the result, and no other block writes this element.
                                    unsafe { at.add(column).write(sums[row]) };
                                }
                            }
                        }
                    }
                },
            );
        }

        /// Does the same as [`super::Bf16Rows::multiply`]. The caller has made its checks. The rows start at `from` in the
        /// panels `x`.
        pub(super) fn multiply_panels(
            self,
            out: &mut [f32],
            x: &[Pair],
            [from, rows]: [usize; 2],
            w: &[bf16],
            inputs: usize,
        ) {
            let (outputs, depth) = (w.len() / inputs, inputs / 2);
            let w: &[Pair] = w.as_chunks::<2>().0;
            for panel in from / ROWS..(from + rows).div_ceil(ROWS) {
                let x = &x[panel * depth * ROWS..(panel + 1) * depth * ROWS];
                let own = from.max(panel * ROWS)..(from + rows).min((panel + 1) * ROWS);
                for first in (0..outputs).step_by(OUTPUTS) {
                    let count = OUTPUTS.min(outputs - first);
                    let mut sums = [[0f32; ROWS]; OUTPUTS];
                    let w = std::array::from_fn(|at| {
                        let row = first + at.min(count - 1);
                        w[row * depth..(row + 1) * depth].as_flattened()
                    });
                    // SAFETY: a value of Pairs exists only if the CPU has the instructions.
                    unsafe { add(&mut sums, x, w) };
                    for row in own.clone() {
                        let out = &mut out[(row - from) * outputs + first..][..count];
                        out.iter_mut().zip(&sums).for_each(|(out, sums)| *out = sums[row % ROWS]);
                    }
                }
            }
        }

        /// The sums of some rows `w` with the `panels`, tile by tile. Each tile is multiplied with one panel at a time.
        fn block(self, sums: &mut [Tile], panels: &[Pair], w: &[bf16], depth: usize) {
            sums.fill([[0.0; ROWS]; OUTPUTS]);
            let rows = w.len() / (2 * depth);
            for from in (0..depth).step_by(DEPTH) {
                let pairs = DEPTH.min(depth - from);
                for (panel, x) in panels.chunks_exact(depth * ROWS).enumerate() {
                    let x = &x[from * ROWS..(from + pairs) * ROWS];
                    for (tile, sums) in sums.chunks_exact_mut(PANELS).take(rows.div_ceil(OUTPUTS)).enumerate() {
                        // A tile that reaches beyond w uses the last row again. Those sums are not read.
                        let w = std::array::from_fn(|row| {
                            let row = (tile * OUTPUTS + row).min(rows - 1);
                            &w[2 * (row * depth + from)..2 * (row * depth + from + pairs)]
                        });
                        // SAFETY: a value of Pairs exists only if the CPU has the instructions.
                        unsafe { add(&mut sums[panel], x, w) };
                    }
                }
            }
        }
    }

    /// The rows of x in panels of [`ROWS`], each `(inputs / 2, ROWS)` of pairs. Missing rows are zero.
    fn packed(x: &[bf16], inputs: usize) -> Vec<Pair> {
        let (rows, depth) = (x.len() / inputs, inputs / 2);
        let mut packed = vec![[bf16::ZERO; 2]; rows.div_ceil(ROWS) * depth * ROWS];
        packed.par_chunks_exact_mut(depth * ROWS).zip(x.par_chunks(ROWS * inputs)).for_each(|(panel, x)| {
            for (row, x) in x.chunks_exact(inputs).enumerate() {
                for (panel, pair) in panel.chunks_exact_mut(ROWS).zip(x.as_chunks::<2>().0) {
                    panel[row] = *pair;
                }
            }
        });
        packed
    }

    /// Adds to `sums[o][r]` the products of the pairs in row `o` of w with those in row `r` of x.
    ///
    /// # Safety
    /// The CPU must have AVX-512F and AVX512-BF16.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn add(sums: &mut Tile, x: &[Pair], w: [&[bf16]; OUTPUTS]) {
        let pairs = x.len() / ROWS;
        assert!(w.iter().all(|w| w.len() == 2 * pairs));
        let mut registers = [[_mm512_setzero_ps(); 2]; OUTPUTS];
        for (registers, sums) in registers.iter_mut().zip(&*sums) {
            // SAFETY: 32 numbers each.
            *registers = unsafe { [_mm512_loadu_ps(sums.as_ptr()), _mm512_loadu_ps(sums.as_ptr().add(16))] };
        }
        for pair in 0..pairs {
            // SAFETY: for every `pair`, x has ROWS pairs and each row of w has one. All bit patterns are valid pairs of bf16.
            unsafe {
                let x = x.as_ptr().add(pair * ROWS).cast::<__m512i>();
                let x = [_mm512_loadu_si512(x), _mm512_loadu_si512(x.add(1))].map(bits);
                for (registers, w) in registers.iter_mut().zip(&w) {
                    let w = bits(_mm512_set1_epi32(w.as_ptr().cast::<i32>().add(pair).read_unaligned()));
                    registers[0] = _mm512_dpbf16_ps(registers[0], x[0], w);
                    registers[1] = _mm512_dpbf16_ps(registers[1], x[1], w);
                }
            }
        }
        for (registers, sums) in registers.iter().zip(sums) {
            // SAFETY: as above.
            unsafe {
                _mm512_storeu_ps(sums.as_mut_ptr(), registers[0]);
                _mm512_storeu_ps(sums.as_mut_ptr().add(16), registers[1]);
            }
        }
    }

    /// The same bits as pairs of bf16.
    #[inline(always)]
    fn bits(x: __m512i) -> __m512bh {
        // SAFETY: both types have 64 bytes, and all bit patterns are valid.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(x) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    /// Small numbers with 8 bits of mantissa, so that no sum overflows.
    fn matrix(length: usize, seed: u64) -> Vec<bf16> {
        let mut state = seed | 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bf16::from_f32(((state >> 40) as f32 / (1u64 << 23) as f32) - 1.0)
        };
        (0..length).map(|_| next()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn pairs_and_widened_products_agree(
            rows in 1usize..300, outputs in 1usize..300, inputs in 1usize..600, seed in any::<u64>()
        ) {
            let (x, w) = (matrix(rows * inputs, seed), matrix(outputs * inputs, seed ^ 0x9e37));
            let (mut out, mut twin) = (vec![f32::NAN; rows * outputs], vec![f32::NAN; rows * outputs]);
            multiply_bf16(&mut out, &x, &w, inputs);
            widened(&mut twin, &x, &w, inputs);
            for (at, (a, b)) in out.iter().zip(&twin).enumerate() {
                prop_assert!((a - b).abs() <= 1e-6 * inputs as f32, "{at}: {a} {b}");
            }
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            pool.install(|| multiply_bf16(&mut twin, &x, &w, inputs));
            prop_assert_eq!(out, twin);
        }
    }

    #[test]
    fn packed_rows_multiply_from_any_panel_on() {
        for (rows, outputs, inputs) in [(1, 1, 2), (40, 64, 250), (128, 13, 600), (70, 12, 0)] {
            let (x, w) = (matrix(rows * inputs, 5), matrix(outputs * inputs, 6));
            let wide: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
            let mut packed = Bf16Rows::default();
            packed.resize(rows, inputs);
            (0..rows).for_each(|row| packed.set(row, &wide[row * inputs..(row + 1) * inputs]));
            let mut unpaired = Bf16Rows::default();
            unpaired.resize_for(rows, inputs, false);
            (0..rows).for_each(|row| unpaired.set(row, &wide[row * inputs..(row + 1) * inputs]));
            let mut whole = vec![0f32; rows * outputs];
            if inputs > 0 {
                widened(&mut whole, &x, &w, inputs);
            }
            for (from, to) in [(0, rows), (rows / 64 * 32, rows), (rows - 1, rows)] {
                let near = |out: &[f32]| {
                    let pairs = out.iter().zip(&whole[from * outputs..]);
                    pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-3)
                };
                let mut out = vec![f32::NAN; (to - from) * outputs];
                packed.multiply(from, &w, &mut out);
                assert!(near(&out), "{rows} {outputs} {inputs} from {from}");
                if inputs > 0 {
                    unpaired.multiply(from, &w, &mut out);
                    assert!(near(&out), "widened, {rows} {outputs} {inputs} from {from}");
                }
            }
        }
    }

    #[test]
    fn an_empty_product_is_empty() {
        multiply_bf16(&mut [], &[], &matrix(8, 1), 4);
        multiply_bf16(&mut [], &matrix(8, 1), &[], 4);
    }
}
