//! The matrix product: the one place that calls the `gemm` crate, which finds the machine's instructions by itself.

use gemm::{Parallelism, gemm};

/// A matrix of f32 in a slice.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    elements: &'a [f32],
    rows: usize,
    columns: usize,
    /// From an element to the one below, and to the one beside it.
    strides: [usize; 2],
}

impl<'a> Matrix<'a> {
    /// Rows one after the other: `(rows, columns)`.
    ///
    /// # Panics
    /// If there are fewer elements; so for all matrices here.
    #[must_use]
    pub fn new(elements: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::spaced(elements, rows, columns, columns)
    }

    /// Rows whose first elements are `stride` apart.
    ///
    /// # Panics
    /// As [`Matrix::new`].
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

/// A matrix to write to, with rows that may lie apart.
#[derive(Debug)]
pub struct MatrixMut<'a> {
    elements: &'a mut [f32],
    rows: usize,
    columns: usize,
    stride: usize,
}

impl<'a> MatrixMut<'a> {
    /// Rows one after the other: `(rows, columns)`.
    ///
    /// # Panics
    /// As [`Matrix::new`].
    #[must_use]
    pub fn new(elements: &'a mut [f32], rows: usize, columns: usize) -> Self {
        Self::spaced(elements, rows, columns, columns)
    }

    /// Rows whose first elements are `stride` apart; what lies between is left as it is.
    ///
    /// # Panics
    /// As [`Matrix::new`], or if rows overlap.
    #[must_use]
    pub fn spaced(elements: &'a mut [f32], rows: usize, columns: usize, stride: usize) -> Self {
        check(elements.len(), rows, columns, stride);
        assert!(rows < 2 || stride >= columns, "rows of {columns} elements overlap at a stride of {stride}");
        Self { elements, rows, columns, stride }
    }
}

fn check(elements: usize, rows: usize, columns: usize, stride: usize) {
    let last = if rows * columns == 0 { 0 } else { (rows - 1) * stride + columns };
    assert!(elements >= last, "a matrix of {rows} by {columns}, {stride} apart, in {elements} elements");
}

/// `out = a b`, on the calling thread alone.
///
/// # Panics
/// If the shapes do not fit each other; so for all products here.
pub fn multiply(out: MatrixMut<'_>, a: Matrix<'_>, b: Matrix<'_>) {
    product(out, a, b, false, Parallelism::None);
}

/// `out += a b`, on the calling thread alone.
///
/// # Panics
/// As [`multiply`].
pub fn multiply_add(out: MatrixMut<'_>, a: Matrix<'_>, b: Matrix<'_>) {
    product(out, a, b, true, Parallelism::None);
}

/// `out = a b`, on the current rayon pool.
///
/// # Panics
/// As [`multiply`].
pub fn multiply_parallel(out: MatrixMut<'_>, a: Matrix<'_>, b: Matrix<'_>) {
    let parallelism = match rayon::current_num_threads() {
        1 => Parallelism::None,
        threads => Parallelism::Rayon(threads),
    };
    product(out, a, b, false, parallelism);
}

/// `out[r][a] = <rows[r], atoms[a]>`: atoms `(m, width)`, rows `(n, width)`, out `(n, m)`. On the calling thread alone.
///
/// # Panics
/// If a slice has the wrong length.
pub(crate) fn correlate(atoms: &[f32], rows: &[f32], width: usize, out: &mut [f32]) {
    let (m, n) = (atoms.len() / width, rows.len() / width);
    assert_eq!((atoms.len(), rows.len(), out.len()), (m * width, n * width, n * m));
    multiply(MatrixMut::new(out, n, m), Matrix::new(rows, n, width), Matrix::new(atoms, m, width).transposed());
}

fn product(out: MatrixMut<'_>, a: Matrix<'_>, b: Matrix<'_>, add: bool, parallelism: Parallelism) {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    assert!(b.rows == k && (out.rows, out.columns) == (m, n), "({m}, {k}) times ({}, {n})", b.rows);
    if m == 0 || n == 0 {
        return;
    }
    // SAFETY: constructing the matrices checked that every element is inside its slice, and `out` is borrowed
    // exclusively, so it overlaps neither input.
    unsafe {
        gemm(
            m,
            n,
            k,
            out.elements.as_mut_ptr(),
            1,
            out.stride as isize,
            add,
            a.elements.as_ptr(),
            a.strides[1] as isize,
            a.strides[0] as isize,
            b.elements.as_ptr(),
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

#[cfg(test)]
mod tests {
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

    #[test]
    #[should_panic(expected = "a matrix of 2 by 3, 4 apart, in 6 elements")]
    fn matrices_beyond_their_slice_are_refused() {
        let _ = Matrix::spaced(&[0.0; 6], 2, 3, 4);
    }
}
