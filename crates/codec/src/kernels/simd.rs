//! Operations on sixteen numbers at a time. Every kernel is written with this trait.
//!
//! A kernel is one generic body over [`Simd`]. The body fixes what is computed for each number and the order in which
//! numbers are added up. It is the same for every instruction set, so all instruction sets give the same bits.

use half::{bf16, f16};

/// Numbers in a register, independent of the width of the CPU's registers.
pub const LANES: usize = 16;

/// The operations of one instruction set, each on [`LANES`] numbers.
///
/// A value of an implementing type proves that the CPU has the instructions, because only [`super::Isa`] creates one.
/// These methods are therefore safe to call. They are fast only inside [`Kernel::run`] and in functions inlined into it.
pub trait Simd: sealed::Sealed + Copy {
    /// Sixteen `f32`.
    type F32: Copy;
    /// Sixteen `u32`.
    type U32: Copy;

    /// Registers that a search compares in parallel, at most 4. A single one would have to wait for its own last comparison.
    const SEARCHES: usize;
    /// Registers of sums that a product holds side by side, so that no sum goes to memory.
    const SUMS: usize;

    /// Sets all lanes to `x`.
    fn splat(self, x: f32) -> Self::F32;
    /// Reads a register.
    fn load(self, from: &[f32; LANES]) -> Self::F32;
    /// Reads f16 numbers and widens them exactly.
    fn load_f16(self, from: &[f16; LANES]) -> Self::F32;
    /// Reads bf16 numbers and widens them exactly.
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::F32;
    /// Writes a register.
    fn store(self, x: Self::F32, to: &mut [f32; LANES]);

    /// `a + b`.
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a - b`.
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a b`.
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a / b`.
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a b + c`, rounded once.
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// The larger number, or `b` if either is NaN.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The smaller number, or `b` if either is NaN.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;

    /// Adds up the 32 numbers of two registers: first the halves of each register, then both results, then halves again.
    fn sum(self, a: Self::F32, b: Self::F32) -> f32;
    /// The largest lane. No lane may be NaN.
    fn largest(self, x: Self::F32) -> f32;
    /// Adds the lowest bits of `x` to the exponent of each lane: the result is `a 2^x` for the integer in those bits.
    fn add_to_exponent(self, a: Self::F32, x: Self::F32) -> Self::F32;

    /// Sets all lanes to `x`.
    fn splat_u32(self, x: u32) -> Self::U32;
    /// Replaces `best` by the magnitude of `x` and by `index`, in the lanes where that magnitude is larger.
    fn keep_larger(self, best: (Self::F32, Self::U32), x: Self::F32, index: Self::U32) -> (Self::F32, Self::U32);
    /// The smallest `index + offset + lane` over the lanes where `x` is `value`, or `u32::MAX` if there are none.
    fn first_of(self, x: Self::F32, value: f32, index: Self::U32, offset: u32) -> u32;
}

/// A computation that [`super::Isa::run`] runs with the CPU's instructions.
pub trait Kernel {
    /// The type of the result.
    type Output;

    /// The body. Mark it and all functions that it calls `#[inline(always)]`, so that they are compiled once per instruction
    /// set. Iterate with `for`, because a closure may not be inlined.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

pub(super) mod sealed {
    pub trait Sealed {}
}

/// Fills a register with `x` and then zeros. Use it for the end of a slice.
///
/// # Panics
/// If `x` is longer than a register.
#[inline(always)]
#[must_use]
pub fn padded(x: &[f32]) -> [f32; LANES] {
    let mut all = [0.0; LANES];
    all[..x.len()].copy_from_slice(x);
    all
}
