//! Sixteen numbers at a time: the one interface that every kernel is written to.
//!
//! A kernel is one generic body over [`Simd`]. What it computes per number, and the order in which it adds numbers up,
//! is in the body and the same for every instruction set, so all of them give the same bits.

use half::{bf16, f16};

/// Numbers of a register, whatever the width of the machine's own.
pub const LANES: usize = 16;

/// The instructions of one instruction set, each on [`LANES`] numbers.
///
/// A value of an implementing type is the proof that the machine has the instructions: only [`super::Isa`] makes one, so
/// these methods are safe to call. They are fast only inside [`Kernel::run`] and what is inlined into it.
pub trait Simd: sealed::Sealed + Copy {
    /// Sixteen `f32`.
    type F32: Copy;
    /// Sixteen `u32`.
    type U32: Copy;

    /// Registers that a search compares side by side, at most 4: one alone would wait for its own comparison.
    const SEARCHES: usize;
    /// Registers of sums that a product holds side by side, so that no sum goes to memory.
    const SUMS: usize;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F32;
    /// Reads a register.
    fn load(self, from: &[f32; LANES]) -> Self::F32;
    /// Reads and widens halves; exact.
    fn load_f16(self, from: &[f16; LANES]) -> Self::F32;
    /// Reads and widens bf16; exact.
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
    /// The larger; `b` where either is NaN.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The smaller; `b` where either is NaN.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;

    /// Adds up the 32 numbers of two registers: the halves of each, then both, then halves again.
    fn sum(self, a: Self::F32, b: Self::F32) -> f32;
    /// The largest lane; no lane is NaN.
    fn largest(self, x: Self::F32) -> f32;
    /// Adds `x` to the bits of each lane's exponent: `a 2^x` for the integer in the lowest bits of `x`.
    fn add_to_exponent(self, a: Self::F32, x: Self::F32) -> Self::F32;

    /// All lanes `x`.
    fn splat_u32(self, x: u32) -> Self::U32;
    /// Takes the magnitude of `x`, and `index`, in the lanes where it is larger than that of `best`.
    fn keep_larger(self, best: (Self::F32, Self::U32), x: Self::F32, index: Self::U32) -> (Self::F32, Self::U32);
    /// The least of `index + offset + lane` over the lanes where `x` is `value`; `u32::MAX` if there is none.
    fn first_of(self, x: Self::F32, value: f32, index: Self::U32, offset: u32) -> u32;
}

/// A computation to run with the machine's instructions, by [`super::Isa::run`].
pub trait Kernel {
    /// What it returns.
    type Output;

    /// The one body. Mark it `#[inline(always)]`, and all that it calls, so that it is compiled once per instruction
    /// set; iterate with `for`, since a closure may not be inlined.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

pub(super) mod sealed {
    pub trait Sealed {}
}

/// `x` and zeros: the end of a slice as a register.
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
