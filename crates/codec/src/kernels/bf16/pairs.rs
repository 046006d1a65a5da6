//! Products of pairs of bf16 (AVX512-BF16).

use std::arch::is_x86_feature_detected;
use std::arch::x86_64::{
    __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps,
    _mm512_storeu_ps,
};

use half::bf16;

use super::super::limit::{Width, allows};
use super::blocks::{Blocks, OUTPUTS, PANEL_ROWS, PANELS, Tile};

/// Pairs along the inputs that are added up before the next tile: a panel of x takes 16 KiB, half of a
/// first-level cache.
const DEPTH: usize = 128;

/// Two numbers that are multiplied and added up together.
pub type Pair = [bf16; 2];

/// Proof that this machine multiplies pairs of bf16.
#[derive(Clone, Copy, Debug)]
pub struct Pairs(());

impl Pairs {
    pub fn detect() -> Option<Self> {
        let there = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
        (there && allows(Width::Avx512)).then_some(Self(()))
    }
}

impl Blocks for Pairs {
    type Number = Pair;
    const INPUTS: usize = 2;

    fn numbers(x: &[bf16]) -> impl Iterator<Item = Pair> {
        x.as_chunks::<2>().0.iter().copied()
    }

    fn block(self, sums: &mut [Tile], panels: &[Pair], w: &[bf16], inputs: usize) {
        let (depth, rows) = (inputs / 2, w.len() / inputs);
        let tiles = rows.div_ceil(OUTPUTS);
        sums[..tiles * PANELS].fill([[0.0; PANEL_ROWS]; OUTPUTS]);
        for from in (0..depth).step_by(DEPTH) {
            let pairs = DEPTH.min(depth - from);
            for (panel, x) in panels.chunks_exact(depth * PANEL_ROWS).enumerate() {
                let x = &x[from * PANEL_ROWS..(from + pairs) * PANEL_ROWS];
                for (tile, sums) in sums.chunks_exact_mut(PANELS).take(tiles).enumerate() {
                    // A tile that reaches beyond w meets the last row again; those sums are not read.
                    let w = std::array::from_fn(|row| {
                        let row = (tile * OUTPUTS + row).min(rows - 1);
                        &w[2 * (row * depth + from)..2 * (row * depth + from + pairs)]
                    });
                    // SAFETY: a value of Pairs exists only where the machine has the instructions.
                    unsafe { add(&mut sums[panel], x, w) };
                }
            }
        }
    }
}

/// `sums[o][r] +=` the products of the pairs of row `o` of w with those of row `r` of x.
///
/// # Safety
/// The machine has AVX-512F and AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn add(sums: &mut Tile, x: &[Pair], w: [&[bf16]; OUTPUTS]) {
    let pairs = x.len() / PANEL_ROWS;
    assert!(w.iter().all(|w| w.len() == 2 * pairs));
    let mut registers = [[_mm512_setzero_ps(); 2]; OUTPUTS];
    for (registers, sums) in registers.iter_mut().zip(&*sums) {
        // SAFETY: 32 numbers each.
        *registers = unsafe { [_mm512_loadu_ps(sums.as_ptr()), _mm512_loadu_ps(sums.as_ptr().add(16))] };
    }
    for pair in 0..pairs {
        // SAFETY: x has PANEL_ROWS pairs for every `pair`, and each row of w one; all bit patterns are pairs of bf16.
        unsafe {
            let x = x.as_ptr().add(pair * PANEL_ROWS).cast::<__m512i>();
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
    // SAFETY: both are 64 bytes, and any bits are valid.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(x) }
}
