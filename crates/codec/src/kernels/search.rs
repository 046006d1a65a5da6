//! Searches for the largest element of a slice, for the largest magnitude, and for that after a step of matching pursuit.
//!
//! The result does not depend on the order of the search. Among equal elements it is the lowest index.

use super::simd::{Kernel, LANES, Simd};

/// See [`super::Isa::peak`].
pub(super) struct Peak<'a> {
    pub(super) p: &'a [f32],
}

impl Kernel for Peak<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> usize {
        let (registers, tail) = self.p.as_chunks::<LANES>();
        let mut search = Search::new(simd);
        let groups = registers.chunks_exact(S::SEARCHES);
        let rest = groups.remainder();
        for group in groups {
            for (k, register) in group.iter().enumerate() {
                search.compare(k, simd.load(register));
            }
            search.advance(S::SEARCHES);
        }
        for register in rest {
            search.compare(0, simd.load(register));
            search.advance(1);
        }
        search.end(tail)
    }
}

/// See [`super::Isa::subtract_then_peak`].
pub(super) struct SubtractThenPeak<'a> {
    pub(super) p: &'a mut [f32],
    pub(super) c: f32,
    pub(super) g: &'a [f32],
}

impl Kernel for SubtractThenPeak<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> usize {
        let ((registers, tail), (g_registers, g_tail)) = (self.p.as_chunks_mut::<LANES>(), self.g.as_chunks::<LANES>());
        let factor = simd.splat(-self.c);
        let mut search = Search::new(simd);
        let (mut groups, g_groups) = (registers.chunks_exact_mut(S::SEARCHES), g_registers.chunks_exact(S::SEARCHES));
        let g_rest = g_groups.remainder();
        for (group, g) in groups.by_ref().zip(g_groups) {
            for (k, (register, g)) in group.iter_mut().zip(g).enumerate() {
                let x = simd.mul_add(factor, simd.load(g), simd.load(register));
                simd.store(x, register);
                search.compare(k, x);
            }
            search.advance(S::SEARCHES);
        }
        for (register, g) in groups.into_remainder().iter_mut().zip(g_rest) {
            let x = simd.mul_add(factor, simd.load(g), simd.load(register));
            simd.store(x, register);
            search.compare(0, x);
            search.advance(1);
        }
        for (x, g) in tail.iter_mut().zip(g_tail) {
            *x = (-self.c).mul_add(*g, *x);
        }
        search.end(tail)
    }
}

/// The largest magnitude so far in each lane of several registers.
struct Search<S: Simd> {
    simd: S,
    bests: [(S::F32, S::U32); 4],
    /// Start of the next group of registers: in all lanes, and as a number.
    start: S::U32,
    at: usize,
}

impl<S: Simd> Search<S> {
    #[inline(always)]
    fn new(simd: S) -> Self {
        let nothing = (simd.splat(0.0), simd.splat_u32(0));
        Self { simd, bests: [nothing; 4], start: simd.splat_u32(0), at: 0 }
    }

    /// Compares the `k`th register of the group.
    #[inline(always)]
    fn compare(&mut self, k: usize, x: S::F32) {
        self.bests[k] = self.simd.keep_larger(self.bests[k], x, self.start);
    }

    #[inline(always)]
    fn advance(&mut self, registers: usize) {
        self.at += registers * LANES;
        self.start = self.simd.splat_u32(self.at as u32);
    }

    /// Index of the largest magnitude. `tail` follows the registers.
    #[inline(always)]
    fn end(self, tail: &[f32]) -> usize {
        let simd = self.simd;
        let mut top = self.bests[0].0;
        for &(magnitudes, _) in &self.bests[1..S::SEARCHES] {
            top = simd.max(top, magnitudes);
        }
        let top = simd.largest(top);
        let (mut magnitude, mut index) = (0.0, 0);
        if top > 0.0 {
            let mut first = u32::MAX;
            for (k, &(magnitudes, starts)) in self.bests[..S::SEARCHES].iter().enumerate() {
                first = first.min(simd.first_of(magnitudes, top, starts, (k * LANES) as u32));
            }
            (magnitude, index) = (top, first as usize);
        }
        for (i, x) in tail.iter().enumerate() {
            if x.abs() > magnitude {
                (magnitude, index) = (x.abs(), self.at + i);
            }
        }
        index
    }
}

/// See [`super::Isa::max`].
pub(super) struct Max<'a> {
    pub(super) x: &'a [f32],
}

impl Kernel for Max<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let (registers, tail) = self.x.as_chunks::<LANES>();
        let mut largest = simd.splat(f32::NEG_INFINITY);
        for register in registers {
            // If the first operand is NaN, `max` returns the second.
            largest = simd.max(simd.load(register), largest);
        }
        let mut top = simd.largest(largest);
        for &x in tail {
            top = top.max(x);
        }
        top
    }
}
