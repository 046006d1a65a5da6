//! The matrix product of bf16 operands, with sums in f32.
//!
//! The inputs are taken in pairs, and a sum takes the second number of a pair before the first: this is the order of the AVX512-BF16
//! instruction. Every multiply-add is fused. Where the machine has that instruction, it is used if it is faster than two f32
//! multiply-adds: on AMD's Zen 4 it is, on Intel's server cores it takes about twice as long. Both give the same bits, on any number
//! of threads, except that the instruction takes numbers below 1.2e-38 as 0.

mod blocks;
mod fused;
#[cfg(target_arch = "x86_64")]
mod pairs;

use std::sync::OnceLock;

use half::bf16;
use rayon::prelude::*;

use self::blocks::PANEL_ROWS;
use self::fused::Fused;
use super::{Isa, Matrix, MatrixMut, Stored, multiply_parallel};

/// How many numbers of `w` are widened at a time: 4 MiB as f32.
const PANEL: usize = 1 << 20;
/// How many numbers one thread widens at a time.
const TURN: usize = 1 << 15;

/// Computes `out = x wᵀ` on the current rayon pool: x `(rows, inputs)`, w `(outputs, inputs)`, out `(rows, outputs)`.
///
/// The order of the sums is fixed, whatever the machine and its number of threads.
///
/// # Panics
/// If the sizes of the slices do not match.
pub fn multiply_bf16(out: &mut [f32], x: &[bf16], w: &[bf16], inputs: usize) {
    assert!(inputs > 0 && x.len().is_multiple_of(inputs) && w.len().is_multiple_of(inputs));
    assert_eq!(out.len(), x.len() / inputs * (w.len() / inputs));
    match Way::fastest() {
        #[cfg(target_arch = "x86_64")]
        Way::Pairs(pairs) if inputs.is_multiple_of(2) => blocks::multiply(pairs, out, x, w, inputs),
        _ => blocks::multiply(Fused::detect(), out, x, w, inputs),
    }
}

/// How this machine multiplies.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// By f32 multiply-adds.
    Fused,
    /// By products of pairs of bf16.
    #[cfg(target_arch = "x86_64")]
    Pairs(pairs::Pairs),
}

impl Way {
    /// The faster one, measured at the first call.
    fn fastest() -> Self {
        static FASTEST: OnceLock<Way> = OnceLock::new();
        *FASTEST.get_or_init(|| {
            #[cfg(target_arch = "x86_64")]
            if let Some(pairs) = pairs::Pairs::detect()
                && blocks::rate(pairs) > blocks::rate(Fused::detect())
            {
                return Self::Pairs(pairs);
            }
            Self::Fused
        })
    }
}

/// Multiply-adds per second, on one thread, of each way in which this CPU can multiply bf16 numbers: what the choice is made by.
#[must_use]
pub fn bf16_rates() -> Vec<(&'static str, f64)> {
    let rates = [("f32 multiply-adds", blocks::rate(Fused::detect()))];
    #[cfg(target_arch = "x86_64")]
    let rates = rates.into_iter().chain(pairs::Pairs::detect().map(|pairs| ("AVX512-BF16", blocks::rate(pairs))));
    rates.into_iter().collect()
}

/// Rows for products on one thread, stored as the CPU takes them. The memory can be reused for several products.
#[derive(Debug, Default)]
pub struct Bf16Rows {
    rows: usize,
    inputs: usize,
    panels: Panels,
}

/// Panels of [`PANEL_ROWS`] rows.
#[derive(Debug)]
enum Panels {
    /// Each `(inputs, PANEL_ROWS)`.
    Wide(Vec<f32>),
    /// Each `(inputs / 2, PANEL_ROWS)` of pairs.
    #[cfg(target_arch = "x86_64")]
    Pairs(pairs::Pairs, Vec<pairs::Pair>),
}

impl Default for Panels {
    fn default() -> Self {
        Self::Wide(Vec::new())
    }
}

impl Bf16Rows {
    /// Makes room for `rows` rows of `inputs` numbers. The content of a row is undefined until [`Bf16Rows::set`].
    ///
    /// # Panics
    /// If `inputs` is odd.
    pub fn resize(&mut self, rows: usize, inputs: usize) {
        self.resize_for(Way::fastest(), rows, inputs);
    }

    fn resize_for(&mut self, way: Way, rows: usize, inputs: usize) {
        assert!(inputs.is_multiple_of(2));
        (self.rows, self.inputs) = (rows, inputs);
        let numbers = rows.div_ceil(PANEL_ROWS) * PANEL_ROWS * inputs;
        match (way, &mut self.panels) {
            (Way::Fused, Panels::Wide(panels)) => panels.resize(numbers, 0.0),
            (Way::Fused, panels) => *panels = Panels::Wide(vec![0.0; numbers]),
            #[cfg(target_arch = "x86_64")]
            (Way::Pairs(_), Panels::Pairs(_, panels)) => panels.resize(numbers / 2, pairs::Pair::default()),
            #[cfg(target_arch = "x86_64")]
            (Way::Pairs(way), panels) => *panels = Panels::Pairs(way, vec![pairs::Pair::default(); numbers / 2]),
        }
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
        let first = row / PANEL_ROWS * PANEL_ROWS * self.inputs;
        match &mut self.panels {
            Panels::Wide(panels) => {
                let to = panels[first + row % PANEL_ROWS..].iter_mut().step_by(PANEL_ROWS);
                to.zip(x).for_each(|(to, x)| *to = f32::from_bits(x.to_bits() & 0xffff_0000));
            }
            #[cfg(target_arch = "x86_64")]
            Panels::Pairs(_, panels) => {
                let cut = |x: f32| bf16::from_bits((x.to_bits() >> 16) as u16);
                let to = panels[first / 2 + row % PANEL_ROWS..].iter_mut().step_by(PANEL_ROWS);
                to.zip(x.as_chunks::<2>().0).for_each(|(to, x)| *to = [cut(x[0]), cut(x[1])]);
            }
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
        match &self.panels {
            Panels::Wide(panels) => blocks::multiply_rows(Fused::detect(), out, panels, [from, rows], w, self.inputs),
            #[cfg(target_arch = "x86_64")]
            Panels::Pairs(way, panels) => blocks::multiply_rows(*way, out, panels, [from, rows], w, self.inputs),
        }
    }
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

    /// The definition: one sum after the other, the second number of each pair first.
    fn defined(x: &[bf16], w: &[bf16], inputs: usize) -> Vec<f32> {
        let sum = |x: &[bf16], w: &[bf16]| {
            let add = |sum: f32, at: usize| x[at].to_f32().mul_add(w[at].to_f32(), sum);
            (0..inputs).step_by(2).fold(0.0, |sum, at| {
                let sum = if at + 1 < inputs { add(sum, at + 1) } else { sum };
                add(sum, at)
            })
        };
        x.chunks_exact(inputs).flat_map(|x| w.chunks_exact(inputs).map(move |w| sum(x, w))).collect()
    }

    /// Every way that this machine has.
    fn ways() -> Vec<Way> {
        let ways = [Way::Fused];
        #[cfg(target_arch = "x86_64")]
        let ways = ways.into_iter().chain(pairs::Pairs::detect().map(Way::Pairs));
        ways.into_iter().collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_machine_and_number_of_threads_gives_the_defined_bits(
            rows in 1usize..300, outputs in 1usize..150, inputs in 1usize..400, seed in any::<u64>()
        ) {
            let (x, w) = (matrix(rows * inputs, seed), matrix(outputs * inputs, seed ^ 0x9e37));
            let expected = defined(&x, &w, inputs);
            let mut out = vec![f32::NAN; rows * outputs];
            multiply_bf16(&mut out, &x, &w, inputs);
            prop_assert_eq!(&out, &expected);
            for isa in Isa::all() {
                out.fill(f32::NAN);
                blocks::multiply(Fused::of(isa), &mut out, &x, &w, inputs);
                prop_assert_eq!(&out, &expected, "{:?}", isa);
            }
            #[cfg(target_arch = "x86_64")]
            if let Some(pairs) = pairs::Pairs::detect() && inputs.is_multiple_of(2) {
                out.fill(f32::NAN);
                blocks::multiply(pairs, &mut out, &x, &w, inputs);
                prop_assert_eq!(&out, &expected, "pairs");
            }
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            pool.install(|| multiply_bf16(&mut out, &x, &w, inputs));
            prop_assert_eq!(out, expected);
        }
    }

    #[test]
    fn packed_rows_multiply_from_any_panel_on() {
        for (rows, outputs, inputs) in [(1, 1, 2), (40, 64, 250), (128, 13, 600), (300, 200, 300), (70, 12, 0)] {
            let (x, w) = (matrix(rows * inputs, 5), matrix(outputs * inputs, 6));
            let wide: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
            let whole = if inputs > 0 { defined(&x, &w, inputs) } else { vec![0.0; rows * outputs] };
            let mut packed = Bf16Rows::default();
            for way in ways() {
                packed.resize_for(way, rows, inputs);
                (0..rows).for_each(|row| packed.set(row, &wide[row * inputs..(row + 1) * inputs]));
                for (from, to) in [(0, rows), (rows / 64 * 32, rows), (rows - 1, rows), (rows / 3, rows / 2)] {
                    let mut out = vec![f32::NAN; (to - from) * outputs];
                    packed.multiply(from, &w, &mut out);
                    let expected = &whole[from * outputs..to * outputs];
                    assert_eq!(out, expected, "{way:?}: {rows} {outputs} {inputs} from {from}");
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
