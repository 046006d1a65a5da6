//! Eigenvectors of a symmetric matrix: Householder's reduction to tridiagonal form, then the implicit QL iteration
//! (Golub and Van Loan, Matrix Computations, sections 8.3 and 8.4).

/// The largest number of QL sweeps per eigenvalue. Three are usual.
const SWEEPS: usize = 60;
/// After this number of sweeps, an off-diagonal element counts as 0 if it is negligible compared with the whole matrix.
/// In a matrix of low rank, zero eigenvalues consist of rounding errors. The elements next to them never become small
/// compared with these eigenvalues alone.
const PATIENT: usize = 20;

/// Eigenvalues in falling order and their unit eigenvectors, one per row, of the symmetric `matrix` `(n, n)`. Its
/// elements must be finite. Only its lower triangle is read. Returns `None` if the iteration does not converge.
///
/// # Panics
/// If `matrix` is not `(n, n)`.
pub fn symmetric_eigenvectors(matrix: &[f64], n: usize) -> Option<(Vec<f64>, Vec<f64>)> {
    assert_eq!(matrix.len(), n * n);
    // The rows of `q` become the eigenvectors. They start as unit vectors, and every rotation is applied to them.
    let mut a = matrix.to_vec();
    for i in 0..n {
        for j in 0..i {
            a[j * n + i] = a[i * n + j];
        }
    }
    let mut q = vec![0.0; n * n];
    (0..n).for_each(|i| q[i * n + i] = 1.0);
    let (mut diagonal, mut beside) = tridiagonal(&mut a, &mut q, n);
    implicit_ql(&mut diagonal, &mut beside, &mut q, n)?;
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| diagonal[j].total_cmp(&diagonal[i]).then(i.cmp(&j)));
    let vectors = order.iter().flat_map(|&i| q[i * n..(i + 1) * n].iter().copied()).collect();
    Some((order.iter().map(|&i| diagonal[i]).collect(), vectors))
}

/// Reduces `a` by reflections `H = I - 2 v vᵀ`, which are also applied to the rows of `q`. Returns the diagonal and the
/// elements next to it. The last of these is 0.
fn tridiagonal(a: &mut [f64], q: &mut [f64], n: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut v, mut p) = (vec![0.0; n], vec![0.0; n]);
    let mut beside = vec![0.0; n];
    for k in 0..n.saturating_sub(2) {
        let norm = (k + 1..n).map(|i| a[k * n + i] * a[k * n + i]).sum::<f64>().sqrt();
        let first = a[k * n + k + 1];
        let alpha = if first > 0.0 { -norm } else { norm };
        beside[k] = alpha;
        let length = (2.0 * alpha * (alpha - first)).sqrt();
        if length == 0.0 {
            beside[k] = first;
            continue;
        }
        v[..=k].fill(0.0);
        for i in k + 1..n {
            v[i] = (a[k * n + i] - if i == k + 1 { alpha } else { 0.0 }) / length;
        }
        // a <- H a H on the remaining part: with p = 2 a v and w = p - (vᵀp) v, it is a - v wᵀ - w vᵀ.
        for i in k + 1..n {
            p[i] = 2.0 * a[i * n + k + 1..(i + 1) * n].iter().zip(&v[k + 1..]).map(|(a, v)| a * v).sum::<f64>();
        }
        let along: f64 = p[k + 1..].iter().zip(&v[k + 1..]).map(|(p, v)| p * v).sum();
        p[k + 1..].iter_mut().zip(&v[k + 1..]).for_each(|(p, v)| *p -= along * v);
        for i in k + 1..n {
            let (vi, wi) = (v[i], p[i]);
            for (a, (v, w)) in a[i * n + k + 1..(i + 1) * n].iter_mut().zip(v[k + 1..].iter().zip(&p[k + 1..])) {
                *a -= vi * w + wi * v;
            }
        }
        // q <- H q: the reflection acts on each column of q.
        p.fill(0.0);
        for i in k + 1..n {
            let vi = 2.0 * v[i];
            p.iter_mut().zip(&q[i * n..(i + 1) * n]).for_each(|(p, q)| *p += vi * q);
        }
        for i in k + 1..n {
            let vi = v[i];
            q[i * n..(i + 1) * n].iter_mut().zip(&p).for_each(|(q, p)| *q -= vi * p);
        }
    }
    if n >= 2 {
        beside[n - 2] = a[(n - 1) * n + n - 2];
    }
    ((0..n).map(|i| a[i * n + i]).collect(), beside)
}

/// Turns the tridiagonal matrix into its eigenvalues, and applies the same rotations to pairs of rows of `q`.
fn implicit_ql(d: &mut [f64], e: &mut [f64], q: &mut [f64], n: usize) -> Option<()> {
    let whole = d.iter().zip(e.iter()).map(|(d, e)| d.abs() + e.abs()).fold(0.0, f64::max);
    for l in 0..n {
        let mut sweeps = 0;
        loop {
            let nothing = if sweeps < PATIENT { 0.0 } else { f64::EPSILON * whole };
            let split = (l..n - 1).find(|&m| e[m].abs() <= (f64::EPSILON * (d[m].abs() + d[m + 1].abs())).max(nothing));
            let m = split.unwrap_or(n - 1);
            if m == l {
                break;
            }
            sweeps += 1;
            if sweeps > SWEEPS {
                return None;
            }
            let half = (d[l + 1] - d[l]) / (2.0 * e[l]);
            let r = half.hypot(1.0);
            let mut g = d[m] - d[l] + e[l] / (half + r.copysign(half));
            let (mut sine, mut cosine, mut shift) = (1.0, 1.0, 0.0);
            let mut underflow = false;
            for i in (l..m).rev() {
                let f = sine * e[i];
                let b = cosine * e[i];
                let r = f.hypot(g);
                e[i + 1] = r;
                if r == 0.0 {
                    d[i + 1] -= shift;
                    e[m] = 0.0;
                    underflow = true;
                    break;
                }
                (sine, cosine) = (f / r, g / r);
                g = d[i + 1] - shift;
                let r = (d[i] - g) * sine + 2.0 * cosine * b;
                shift = sine * r;
                d[i + 1] = g + shift;
                g = cosine * r - b;
                let (upper, lower) = q.split_at_mut((i + 1) * n);
                for (x, y) in upper[i * n..].iter_mut().zip(&mut lower[..n]) {
                    (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
                }
            }
            if underflow {
                continue;
            }
            d[l] -= shift;
            e[l] = g;
            e[m] = 0.0;
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn check(matrix: &[f64], n: usize) -> Vec<f64> {
        let (values, vectors) = symmetric_eigenvectors(matrix, n).unwrap();
        let size = matrix.iter().map(|x| x.abs()).fold(1e-300, f64::max) * n as f64;
        for (i, (value, vector)) in values.iter().zip(vectors.chunks_exact(n)).enumerate() {
            for (row, x) in matrix.chunks_exact(n).zip(vector) {
                let product: f64 = row.iter().zip(vector).map(|(a, b)| a * b).sum();
                assert!((product - value * x).abs() < 1e-11 * size, "{n}: vector {i}");
            }
            for (j, other) in vectors.chunks_exact(n).enumerate() {
                let dot: f64 = vector.iter().zip(other).map(|(a, b)| a * b).sum();
                assert!((dot - if i == j { 1.0 } else { 0.0 }).abs() < 1e-11, "{n}: {i} {j}");
            }
        }
        assert!(values.windows(2).all(|w| w[0] >= w[1]));
        values
    }

    #[test]
    fn eigenvectors_of_matrices_of_every_kind() {
        assert_eq!(check(&[3.0], 1), [3.0]);
        let two = check(&[2.0, 1.0, 1.0, 2.0], 2);
        assert!((two[0] - 3.0).abs() < 1e-12 && (two[1] - 1.0).abs() < 1e-12);
        for n in [3, 8, 50, 128] {
            let noise: Vec<f64> = (0..n * n).map(|i| ((i * 7919 + 13) % 1009) as f64 / 500.0 - 1.0).collect();
            // A Gram matrix of rank n / 2, and a symmetric matrix with eigenvalues of both signs.
            let gram: Vec<f64> = (0..n * n)
                .map(|at| (0..n / 2).map(|k| noise[(at / n) * n + k] * noise[(at % n) * n + k]).sum())
                .collect();
            let values = check(&gram, n);
            assert!(values[n / 2..].iter().all(|x| x.abs() < 1e-9));
            let symmetric: Vec<f64> =
                (0..n * n).map(|at| noise[(at / n) * n + at % n] + noise[(at % n) * n + at / n]).collect();
            check(&symmetric, n);
        }
        check(&[0.0; 16], 4);
        let diagonal: Vec<f64> = (0..25).map(|at| if at / 5 == at % 5 { (at % 3) as f64 } else { 0.0 }).collect();
        check(&diagonal, 5);
    }

    #[test]
    fn matrices_of_low_rank_settle() {
        let (n, rows) = (96, 200);
        for distinct in [1, 2, 7, 40, 90] {
            let number = |i: usize, j: usize| ((i * 7919 + j * 104_729 + i * j * 31) % 1009) as f64 / 504.5 - 1.0;
            let mut matrix = vec![0.0; n * n];
            for row in (0..rows).map(|row| row * row % distinct) {
                for (i, out) in matrix.chunks_exact_mut(n).enumerate() {
                    out.iter_mut().enumerate().for_each(|(j, sum)| *sum += number(row, i) * number(row, j));
                }
            }
            let values = check(&matrix, n);
            let positive = values.iter().filter(|value| **value > 1e-9 * values[0]).count();
            assert!(positive <= distinct, "{positive} of {distinct}");
        }
    }
}
