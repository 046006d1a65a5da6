//! The matrix product. Only this module calls the `gemm` crate, which selects the CPU's instructions by itself.
//!
//! The bits are the same on every CPU with fused multiply-adds. `gemm` adds up the products of an element in order, but
//! splits the sum into pieces. The length of the pieces depends on the caches of the CPU and is at least 512 terms. This
//! module therefore passes at most [`PIECE`] terms at a time. `gemm` uses another order for few terms, few elements and
//! vectors, so this module computes those products itself.

use gemm::{Parallelism, gemm};

use super::Isa;

/// Terms of a sum that are passed to `gemm` at a time. `gemm` does not split so few terms.
const PIECE: usize = 512;
/// Up to this number of terms `gemm` adds up in another order.
const FEW: usize = 2;
/// Up to this number of elements `gemm` computes as many sums as a register holds, if the terms of each are contiguous.
const SMALL: usize = 256;

/// A matrix of f32 in a slice.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    elements: &'a [f32],
    rows: usize,
    columns: usize,
    /// The distances from an element to the next row and to the next column.
    strides: [usize; 2],
}

impl<'a> Matrix<'a> {
    /// Consecutive rows: `(rows, columns)`.
    ///
    /// # Panics
    /// If `elements` has too few elements. This applies to all matrices of this module.
    #[must_use]
    pub fn new(elements: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::spaced(elements, rows, columns, columns)
    }

    /// Rows whose first elements are `stride` elements apart.
    ///
    /// # Panics
    /// The same as [`Matrix::new`].
    #[must_use]
    pub fn spaced(elements: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        check(elements.len(), rows, columns, stride);
        Self { elements, rows, columns, strides: [stride, 1] }
    }

    /// The transposed matrix, in the same memory.
    #[must_use]
    pub fn transposed(self) -> Self {
        let Self { elements, rows, columns, strides: [below, beside] } = self;
        Self { elements, rows: columns, columns: rows, strides: [beside, below] }
    }
}

/// A matrix to write to. There may be gaps between its rows.
#[derive(Debug)]
pub struct MatrixMut<'a> {
    elements: &'a mut [f32],
    rows: usize,
    columns: usize,
    stride: usize,
}

impl<'a> MatrixMut<'a> {
    /// Consecutive rows: `(rows, columns)`.
    ///
    /// # Panics
    /// The same as [`Matrix::new`].
    #[must_use]
    pub fn new(elements: &'a mut [f32], rows: usize, columns: usize) -> Self {
        Self::spaced(elements, rows, columns, columns)
    }

    /// Rows whose first elements are `stride` elements apart. The elements between rows are not changed.
    ///
    /// # Panics
    /// The same as [`Matrix::new`], or if rows overlap.
    #[must_use]
    pub fn spaced(elements: &'a mut [f32], rows: usize, columns: usize, stride: usize) -> Self {
        check(elements.len(), rows, columns, stride);
        assert!(rows < 2 || stride >= columns, "rows of {columns} elements overlap at a stride of {stride}");
        Self { elements, rows, columns, stride }
    }
}

fn check(elements: usize, rows: usize, columns: usize, stride: usize) {
    let last = match rows.checked_sub(1).filter(|_| columns > 0) {
        Some(before) => before.checked_mul(stride).and_then(|start| start.checked_add(columns)),
        None => Some(0),
    };
    assert!(
        last.is_some_and(|last| elements >= last),
        "a matrix of {rows} by {columns}, {stride} apart, in {elements} elements"
    );
}

/// Computes `out = a b` on the calling thread only.
///
/// # Panics
/// If the shapes do not match. This applies to all products of this module.
pub fn multiply(out: MatrixMut<'_>, a: Matrix<'_>, b: Matrix<'_>) {
    product(out, a, b, false, Parallelism::None);
}

/// Computes `out += a b` on the calling thread only.
///
/// # Panics
/// The same as [`multiply`].
pub fn multiply_add(out: MatrixMut<'_>, a: Matrix<'_>, b: Matrix<'_>) {
    product(out, a, b, true, Parallelism::None);
}

/// Computes `out = a b` on the current rayon pool.
///
/// # Panics
/// The same as [`multiply`].
pub fn multiply_parallel(out: MatrixMut<'_>, a: Matrix<'_>, b: Matrix<'_>) {
    let parallelism = match rayon::current_num_threads() {
        1 => Parallelism::None,
        threads => Parallelism::Rayon(threads),
    };
    product(out, a, b, false, parallelism);
}

/// Computes `out[r][a] = <rows[r], atoms[a]>` for atoms `(m, width)`, rows `(n, width)` and out `(n, m)`, on the calling
/// thread only.
///
/// # Panics
/// If a slice has the wrong length.
pub(crate) fn correlate(atoms: &[f32], rows: &[f32], width: usize, out: &mut [f32]) {
    let (m, n) = (atoms.len() / width, rows.len() / width);
    assert_eq!((atoms.len(), rows.len(), out.len()), (m * width, n * width, n * m));
    multiply(MatrixMut::new(out, n, m), Matrix::new(rows, n, width), Matrix::new(atoms, m, width).transposed());
}

fn product(mut out: MatrixMut<'_>, a: Matrix<'_>, b: Matrix<'_>, add: bool, parallelism: Parallelism) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    assert!(b.rows == k && (out.rows, out.columns) == (m, n), "({m}, {k}) times ({}, {n})", b.rows);
    if m == 0 || n == 0 {
        return;
    }
    if k <= FEW {
        return of_few(&mut out, a, b, add);
    }
    if a.strides[1] == 1 && b.strides[0] == 1 && (m == 1 || n == 1 || m * n <= SMALL) {
        return by_dots(&mut out, a, b, add);
    }
    if m == 1 {
        return of_vector(out.elements, 1, a, b, add);
    }
    if n == 1 {
        return of_vector(out.elements, out.stride, b.transposed(), a.transposed(), add);
    }
    for first in (0..k).step_by(PIECE) {
        let terms = PIECE.min(k - first);
        // SAFETY: the constructors of the matrices checked that every element is inside its slice. `first + terms` is at most the
        // number of columns of `a` and the number of rows of `b`. `out` is borrowed exclusively, so it does not overlap the inputs.
        unsafe {
            gemm(
                m,
                n,
                terms,
                out.elements.as_mut_ptr(),
                1,
                out.stride as isize,
                add || first > 0,
                a.elements.as_ptr().wrapping_add(first * a.strides[1]),
                a.strides[1] as isize,
                a.strides[0] as isize,
                b.elements.as_ptr().wrapping_add(first * b.strides[0]),
                b.strides[1] as isize,
                b.strides[0] as isize,
                1.0,
                1.0,
                false,
                false,
                false,
                parallelism,
            );
        }
    }
}

/// The product of at most [`FEW`] terms. Without terms it is zero.
fn of_few(out: &mut MatrixMut<'_>, a: Matrix<'_>, b: Matrix<'_>, add: bool) {
    for row in 0..a.rows {
        for column in 0..b.columns {
            let term = |k: usize| {
                (
                    a.elements[row * a.strides[0] + k * a.strides[1]],
                    b.elements[k * b.strides[0] + column * b.strides[1]],
                )
            };
            let sum = (0..a.columns).map(term).fold(0.0f32, |sum, (x, y)| x.mul_add(y, sum));
            let to = &mut out.elements[row * out.stride + column];
            *to = if add { *to + sum } else { sum };
        }
    }
}

/// The product by [`Isa::dot`]. Each row of `a` and each column of `b` must be contiguous.
fn by_dots(out: &mut MatrixMut<'_>, a: Matrix<'_>, b: Matrix<'_>, add: bool) {
    let isa = Isa::detect();
    for row in 0..a.rows {
        let x = &a.elements[row * a.strides[0]..][..a.columns];
        for column in 0..b.columns {
            let dot = isa.dot(x, &b.elements[column * b.strides[1]..][..b.rows]);
            let to = &mut out.elements[row * out.stride + column];
            *to = if add { *to + dot } else { dot };
        }
    }
}

/// The product of one row with a matrix, written to elements `stride` apart: a weighted sum of the matrix's rows, in order.
fn of_vector(out: &mut [f32], stride: usize, row: Matrix<'_>, matrix: Matrix<'_>, add: bool) {
    let (terms, columns) = (matrix.rows, matrix.columns);
    let [below, beside] = matrix.strides;
    let weight = |k: usize| row.elements[k * row.strides[1]];
    if beside == 1 && stride == 1 {
        let (isa, out) = (Isa::detect(), &mut out[..columns]);
        if !add {
            out.fill(0.0);
        }
        for k in 0..terms {
            isa.axpy(out, weight(k), &matrix.elements[k * below..][..columns]);
        }
        return;
    }
    for column in 0..columns {
        let to = &mut out[column * stride];
        let start = if add { *to } else { 0.0 };
        let element = |k: usize| matrix.elements[k * below + column * beside];
        *to = (0..terms).fold(start, |sum, k| weight(k).mul_add(element(k), sum));
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn products_by_hand() {
        let (a, b) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 0.0, 2.0, 1.0, 0.0, 3.0]);
        let (left, right) = (Matrix::new(&a, 2, 3), Matrix::new(&b, 3, 2));
        let mut out = [9.0; 4];
        multiply(MatrixMut::new(&mut out, 2, 2), left, right);
        assert_eq!(out, [5.0, 11.0, 14.0, 23.0]);
        multiply_add(MatrixMut::new(&mut out, 2, 2), left, right);
        assert_eq!(out, [10.0, 22.0, 28.0, 46.0]);
        multiply_parallel(MatrixMut::new(&mut out, 2, 2), left, Matrix::new(&b, 2, 3).transposed());
        assert_eq!(out, [7.0, 10.0, 16.0, 22.0]);
        let mut apart = [9.0; 5];
        multiply(MatrixMut::spaced(&mut apart, 2, 2, 3), left, Matrix::spaced(&b, 3, 2, 2));
        assert_eq!(apart, [5.0, 11.0, 9.0, 14.0, 23.0]);
        multiply(MatrixMut::new(&mut [], 0, 2), Matrix::new(&[], 0, 3), right);
        multiply(MatrixMut::new(&mut out, 2, 2), Matrix::new(&[], 2, 0), Matrix::new(&[], 0, 2));
        assert_eq!(out, [0.0; 4]);
    }

    /// An element of a product: fused multiply-adds in order, with a new sum for every [`PIECE`] terms.
    fn in_order(a: &[f32], b: &[f32], start: Option<f32>) -> f32 {
        let pieces = a.chunks(PIECE).zip(b.chunks(PIECE));
        let mut sums = pieces.map(|(a, b)| a.iter().zip(b).fold(0.0f32, |sum, (a, b)| a.mul_add(*b, sum)));
        let first = start.unwrap_or_else(|| sums.next().unwrap_or(0.0));
        sums.fold(first, |total, sum| total + sum)
    }

    #[test]
    fn the_order_of_every_sum_is_that_of_no_machine() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let shapes = [1, 2, 7, 17, 33, 130];
        for terms in [1, 2, 3, 64, 127, 512, 513, 1536] {
            for (rows, columns) in shapes.iter().flat_map(|m| shapes.map(|n| (*m, n))) {
                let mut numbers = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
                let (a, b) = (numbers(rows * terms), numbers(columns * terms));
                // The rows of the left matrix, then its columns one after the other, and the same for the right matrix.
                let turned =
                    |x: &[f32], n: usize| -> Vec<f32> { (0..n * terms).map(|i| x[i % n * terms + i / n]).collect() };
                let (a_turned, b_turned) = (turned(&a, rows), turned(&b, columns));
                let lefts = [Matrix::new(&a, rows, terms), Matrix::new(&a_turned, terms, rows).transposed()];
                let rights = [Matrix::new(&b, columns, terms).transposed(), Matrix::new(&b_turned, terms, columns)];
                for (left, right) in lefts.into_iter().flat_map(|left| rights.map(|right| (left, right))) {
                    let vector = (rows == 1 || columns == 1) && terms > FEW;
                    let dots = (vector || terms > FEW && rows * columns <= SMALL)
                        && left.strides[1] == 1
                        && right.strides[0] == 1;
                    let mut out = vec![f32::NAN; rows * columns];
                    multiply(MatrixMut::new(&mut out, rows, columns), left, right);
                    let mut parallel = vec![f32::NAN; rows * columns];
                    multiply_parallel(MatrixMut::new(&mut parallel, rows, columns), left, right);
                    let mut added = vec![0.5; rows * columns];
                    multiply_add(MatrixMut::new(&mut added, rows, columns), left, right);
                    for (at, found) in out.iter().enumerate() {
                        let (x, y) = (&a[at / columns * terms..][..terms], &b[at % columns * terms..][..terms]);
                        let (expected, sum) = if dots {
                            (Isa::detect().dot(x, y), Isa::detect().dot(x, y) + 0.5)
                        } else if vector {
                            let chain = |start| x.iter().zip(y).fold(start, |sum, (x, y)| x.mul_add(*y, sum));
                            (chain(0.0f32), chain(0.5))
                        } else {
                            (in_order(x, y, None), in_order(x, y, Some(0.5)))
                        };
                        let shape = format!("{rows} {terms} {columns}, {at}");
                        assert_eq!(found.to_bits(), expected.to_bits(), "{shape}");
                        assert_eq!(parallel[at].to_bits(), expected.to_bits(), "{shape}");
                        assert_eq!(added[at].to_bits(), sum.to_bits(), "{shape}");
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "a matrix of 2 by 3, 4 apart, in 6 elements")]
    fn matrices_beyond_their_slice_are_refused() {
        let _ = Matrix::spaced(&[0.0; 6], 2, 3, 4);
    }
}
