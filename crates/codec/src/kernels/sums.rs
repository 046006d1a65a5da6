//! Weighted sums of rows, and dot products.

use half::{bf16, f16};

use super::simd::{Kernel, LANES, Simd, padded};

/// A number type in which weights, atoms and caches are stored. It is widened exactly to f32 when it is used.
pub trait Stored: Copy + Send + Sync {
    /// Reads a register.
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F32;

    /// The number as f32.
    fn widen(self) -> f32;
}

impl Stored for f32 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F32 {
        simd.load(from)
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Stored for bf16 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F32 {
        simd.load_bf16(from)
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

impl Stored for f16 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, from: &[Self; LANES]) -> S::F32 {
        simd.load_f16(from)
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

/// See [`super::Isa::widen`].
pub(super) struct Widen<'a, T> {
    pub(super) from: &'a [T],
    pub(super) to: &'a mut [f32],
}

impl<T: Stored> Kernel for Widen<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let ((from, tail), (to, to_tail)) = (self.from.as_chunks::<LANES>(), self.to.as_chunks_mut::<LANES>());
        for (from, to) in from.iter().zip(to) {
            simd.store(T::load(simd, from), to);
        }
        for (from, to) in tail.iter().zip(to_tail) {
            *to = from.widen();
        }
    }
}

/// See [`super::Isa::axpy`].
pub(super) struct Axpy<'a> {
    pub(super) y: &'a mut [f32],
    pub(super) a: f32,
    pub(super) x: &'a [f32],
}

impl Kernel for Axpy<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let factor = simd.splat(self.a);
        let ((y, y_tail), (x, x_tail)) = (self.y.as_chunks_mut::<LANES>(), self.x.as_chunks::<LANES>());
        for (y, x) in y.iter_mut().zip(x) {
            simd.store(simd.mul_add(factor, simd.load(x), simd.load(y)), y);
        }
        for (y, x) in y_tail.iter_mut().zip(x_tail) {
            *y = self.a.mul_add(*x, *y);
        }
    }
}

/// See [`super::Isa::combine`].
pub(super) struct Combine<'a> {
    pub(super) out: &'a mut [f32],
    pub(super) atoms: &'a [f32],
    pub(super) online: &'a [f16],
    pub(super) indices: &'a [u16],
    pub(super) coefficients: &'a [f32],
}

impl Kernel for Combine<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        /// Registers summed in parallel. With one register, each sum would have to wait for the previous one.
        const TILE: usize = 4;
        let width = self.out.len();
        let sources =
            Sources { width, offline: self.atoms.len() / width.max(1), atoms: self.atoms, online: self.online };
        let (registers, tail) = self.out.as_chunks_mut::<LANES>();
        let mut channel = 0;
        let mut tiles = registers.chunks_exact_mut(TILE);
        for tile in tiles.by_ref() {
            let sums = sources.sum::<S, TILE>(simd, self.indices, self.coefficients, channel);
            for k in 0..TILE {
                simd.store(sums[k], &mut tile[k]);
            }
            channel += TILE * LANES;
        }
        for register in tiles.into_remainder() {
            let [sum] = sources.sum::<S, 1>(simd, self.indices, self.coefficients, channel);
            simd.store(sum, register);
            channel += LANES;
        }
        tail.fill(0.0);
        if tail.is_empty() {
            return;
        }
        for (&index, &c) in self.indices.iter().zip(self.coefficients) {
            match sources.of(index, channel, tail.len()) {
                Atom::Offline(atom) => {
                    for (y, x) in tail.iter_mut().zip(atom) {
                        *y = c.mul_add(*x, *y);
                    }
                }
                Atom::Online(atom) => {
                    for (y, x) in tail.iter_mut().zip(atom) {
                        *y = c.mul_add(x.to_f32(), *y);
                    }
                }
            }
        }
    }
}

/// Atoms `(N, width)`, followed by online atoms in f16.
struct Sources<'a> {
    width: usize,
    /// `N`
    offline: usize,
    atoms: &'a [f32],
    online: &'a [f16],
}

/// Some channels of an atom.
enum Atom<'a> {
    Offline(&'a [f32]),
    Online(&'a [f16]),
}

impl<'a> Sources<'a> {
    /// Returns `channels` channels of an atom, starting at `channel`.
    #[inline(always)]
    fn of(&self, index: u16, channel: usize, channels: usize) -> Atom<'a> {
        let index = usize::from(index);
        if index < self.offline {
            Atom::Offline(&self.atoms[index * self.width + channel..][..channels])
        } else {
            Atom::Online(&self.online[(index - self.offline) * self.width + channel..][..channels])
        }
    }

    /// Sums for `R` registers of channels.
    #[inline(always)]
    fn sum<S: Simd, const R: usize>(
        &self,
        simd: S,
        indices: &[u16],
        coefficients: &[f32],
        channel: usize,
    ) -> [S::F32; R] {
        let mut sums = [simd.splat(0.0); R];
        for (&index, &c) in indices.iter().zip(coefficients) {
            let c = simd.splat(c);
            match self.of(index, channel, R * LANES) {
                Atom::Offline(atom) => add::<S, f32, R>(simd, &mut sums, c, atom),
                Atom::Online(atom) => add::<S, f16, R>(simd, &mut sums, c, atom),
            }
        }
        sums
    }
}

#[inline(always)]
fn add<S: Simd, T: Stored, const R: usize>(simd: S, sums: &mut [S::F32; R], c: S::F32, atom: &[T]) {
    let registers = atom.as_chunks::<LANES>().0;
    for k in 0..R {
        sums[k] = simd.mul_add(c, T::load(simd, &registers[k]), sums[k]);
    }
}

/// See [`super::Isa::add_weighted`].
pub(super) struct AddWeighted<'a> {
    pub(super) weights: &'a [f32],
    pub(super) rows: &'a [f32],
    pub(super) out: &'a mut [f32],
}

impl Kernel for AddWeighted<'_> {
    type Output = ();

    /// Processes four rows at a time, so that `out` is read and written once for four products.
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.out.len();
        if width == 0 {
            return;
        }
        let (fours, rest) = self.weights.as_chunks::<4>();
        let (whole, rest_rows) = self.rows.split_at(fours.len() * 4 * width);
        for (weights, rows) in fours.iter().zip(whole.chunks_exact(4 * width)) {
            let mut w = [simd.splat(0.0); 4];
            for k in 0..4 {
                w[k] = simd.splat(weights[k]);
            }
            let (ab, cd) = rows.split_at(2 * width);
            let ((a, b), (c, d)) = (ab.split_at(width), cd.split_at(width));
            let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
            let ((c, c_tail), (d, d_tail)) = (c.as_chunks::<LANES>(), d.as_chunks::<LANES>());
            let (out, out_tail) = self.out.as_chunks_mut::<LANES>();
            for ((((a, b), c), d), out) in a.iter().zip(b).zip(c).zip(d).zip(out) {
                let sum = simd.mul_add(w[0], simd.load(a), simd.load(out));
                let sum = simd.mul_add(w[1], simd.load(b), sum);
                let sum = simd.mul_add(w[2], simd.load(c), sum);
                simd.store(simd.mul_add(w[3], simd.load(d), sum), out);
            }
            for ((((a, b), c), d), out) in a_tail.iter().zip(b_tail).zip(c_tail).zip(d_tail).zip(out_tail) {
                let sum = weights[1].mul_add(*b, weights[0].mul_add(*a, *out));
                *out = weights[3].mul_add(*d, weights[2].mul_add(*c, sum));
            }
        }
        for (&a, x) in rest.iter().zip(rest_rows.chunks_exact(width)) {
            Axpy { y: &mut *self.out, a, x }.run(simd);
        }
    }
}

/// See [`super::Isa::add_weighted_together`].
pub(super) struct AddWeightedTogether<'a> {
    pub(super) weights: &'a [f32],
    pub(super) rows: &'a [f32],
    pub(super) width: usize,
    pub(super) out: &'a mut [f32],
}

impl Kernel for AddWeightedTogether<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        /// Sums whose parts are added up in registers at the same time.
        const TOGETHER: usize = 4;
        let (n, width) = (self.rows.len() / self.width, self.width);
        let sums = self.out.chunks_mut(TOGETHER * width).zip(self.weights.chunks(TOGETHER * n));
        for (out, weights) in sums {
            match out.len() / width {
                4 => together::<S, 4>(simd, weights, self.rows, width, out),
                3 => together::<S, 3>(simd, weights, self.rows, width, out),
                2 => together::<S, 2>(simd, weights, self.rows, width, out),
                _ => together::<S, 1>(simd, weights, self.rows, width, out),
            }
        }
    }
}

/// Computes `R` sums. Each register of a row is read once for all of them.
#[inline(always)]
fn together<S: Simd, const R: usize>(simd: S, weights: &[f32], rows: &[f32], width: usize, out: &mut [f32]) {
    /// Registers of a row processed at a time.
    const TILE: usize = 4;
    let whole = width / LANES;
    let n = rows.len() / width;
    let mut at = 0;
    while at < whole {
        let count = TILE.min(whole - at);
        match count {
            4 => tile::<S, R, 4>(simd, weights, n, rows, width, at, out),
            3 => tile::<S, R, 3>(simd, weights, n, rows, width, at, out),
            2 => tile::<S, R, 2>(simd, weights, n, rows, width, at, out),
            _ => tile::<S, R, 1>(simd, weights, n, rows, width, at, out),
        }
        at += count;
    }
    for r in 0..R {
        for column in whole * LANES..width {
            let terms = weights[r * n..(r + 1) * n].iter().zip(rows.iter().skip(column).step_by(width));
            let sum = &mut out[r * width + column];
            *sum = terms.fold(*sum, |sum, (weight, x)| weight.mul_add(*x, sum));
        }
    }
}

/// `R` sums of `C` registers, starting at register `at`.
#[inline(always)]
fn tile<S: Simd, const R: usize, const C: usize>(
    simd: S,
    weights: &[f32],
    n: usize,
    rows: &[f32],
    width: usize,
    at: usize,
    out: &mut [f32],
) {
    let from = at * LANES;
    let mut sums = [[simd.splat(0.0); C]; R];
    for r in 0..R {
        let out = out[r * width + from..][..C * LANES].as_chunks::<LANES>().0;
        for c in 0..C {
            sums[r][c] = simd.load(&out[c]);
        }
    }
    let mut own = [&[0.0; 0][..]; R];
    for r in 0..R {
        own[r] = &weights[r * n..(r + 1) * n];
    }
    for (token, row) in rows.chunks_exact(width).enumerate().take(n) {
        let row = row[from..from + C * LANES].as_chunks::<LANES>().0;
        let mut x = [simd.splat(0.0); C];
        for c in 0..C {
            x[c] = simd.load(&row[c]);
        }
        for r in 0..R {
            let weight = simd.splat(own[r][token]);
            for c in 0..C {
                sums[r][c] = simd.mul_add(weight, x[c], sums[r][c]);
            }
        }
    }
    for r in 0..R {
        let out = out[r * width + from..][..C * LANES].as_chunks_mut::<LANES>().0;
        for c in 0..C {
            simd.store(sums[r][c], &mut out[c]);
        }
    }
}

/// See [`super::Isa::dots`].
pub(super) struct Dots<'a, T> {
    pub(super) a: &'a [T],
    pub(super) b: &'a [f32],
    pub(super) out: &'a mut [f32],
}

impl<T: Stored> Kernel for Dots<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.a.len();
        let (fours, rest) = self.out.as_chunks_mut::<4>();
        let (of_fours, of_rest) = self.b.split_at(fours.len() * 4 * width);
        for (out, b) in fours.iter_mut().zip(of_fours.chunks_exact(4 * width)) {
            *out = dots(simd, self.a, std::array::from_fn(|r| &b[r * width..(r + 1) * width]));
        }
        for (out, b) in rest.iter_mut().zip(of_rest.chunks_exact(width)) {
            [*out] = dots(simd, self.a, [b]);
        }
    }
}

/// See [`super::Isa::dot`].
pub(super) struct Dot<'a, T> {
    pub(super) a: &'a [T],
    pub(super) b: &'a [f32],
}

impl<T: Stored> Kernel for Dot<'_, T> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        dot(simd, self.a, self.b)
    }
}

/// See [`super::Isa::scores`].
pub(super) struct Scores<'a> {
    pub(super) keys: &'a [f32],
    pub(super) queries: &'a [f32],
    pub(super) width: usize,
    pub(super) out: &'a mut [f32],
}

impl Kernel for Scores<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let count = self.queries.len() / self.width;
        for (key, out) in self.keys.chunks_exact(self.width).zip(self.out.chunks_exact_mut(count)) {
            for (query, out) in self.queries.chunks_exact(self.width).zip(out) {
                *out = dot(simd, key, query);
            }
        }
    }
}

/// Computes one product of [`dots`].
#[inline(always)]
fn dot<S: Simd, T: Stored>(simd: S, a: &[T], b: &[f32]) -> f32 {
    let [sum] = dots(simd, a, [b]);
    sum
}

/// Uses 32 parallel sums for each of the `R` products. They hide the latency of a fused multiply-add, and their rounding
/// error is smaller than that of one sum. The sums of a product do not depend on `R`.
#[inline(always)]
fn dots<S: Simd, T: Stored, const R: usize>(simd: S, a: &[T], b: [&[f32]; R]) -> [f32; R] {
    let (a, a_tail) = a.as_chunks::<LANES>();
    let (mut registers, mut tails) = ([&[[0.0; LANES]; 0][..]; R], [&[0.0; 0][..]; R]);
    for r in 0..R {
        let (whole, tail) = b[r].as_chunks::<LANES>();
        (registers[r], tails[r]) = (&whole[..a.len()], tail);
    }
    let mut sums = [[simd.splat(0.0); 2]; R];
    let (pairs, last) = a.as_chunks::<2>();
    for (at, pair) in pairs.iter().enumerate() {
        for k in 0..2 {
            let x = T::load(simd, &pair[k]);
            for r in 0..R {
                sums[r][k] = simd.mul_add(x, simd.load(&registers[r][2 * at + k]), sums[r][k]);
            }
        }
    }
    for x in last {
        for r in 0..R {
            sums[r][0] = simd.mul_add(T::load(simd, x), simd.load(&registers[r][2 * pairs.len()]), sums[r][0]);
        }
    }
    if !a_tail.is_empty() {
        let mut tail = [0.0; LANES];
        for (tail, x) in tail.iter_mut().zip(a_tail) {
            *tail = x.widen();
        }
        for r in 0..R {
            sums[r][1] = simd.mul_add(simd.load(&tail), simd.load(&padded(tails[r])), sums[r][1]);
        }
    }
    // This is a loop because a function that a closure calls is not compiled for the instructions of `simd`.
    let mut out = [0.0; R];
    for r in 0..R {
        out[r] = simd.sum(sums[r][0], sums[r][1]);
    }
    out
}
