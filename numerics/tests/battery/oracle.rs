//! Linear algebra in plain f64 loops. It shares no code with the crate or with the library that the crate calls.

use std::ops::{Index, IndexMut};

/// A matrix, row after row.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    pub rows: usize,
    pub columns: usize,
    pub data: Vec<f64>,
}

impl Index<(usize, usize)> for Matrix {
    type Output = f64;
    fn index(&self, (i, j): (usize, usize)) -> &f64 {
        &self.data[i * self.columns + j]
    }
}

impl IndexMut<(usize, usize)> for Matrix {
    fn index_mut(&mut self, (i, j): (usize, usize)) -> &mut f64 {
        &mut self.data[i * self.columns + j]
    }
}

impl Matrix {
    pub fn zeros(rows: usize, columns: usize) -> Self {
        Self { rows, columns, data: vec![0.0; rows * columns] }
    }

    pub fn from_fn(rows: usize, columns: usize, mut entry: impl FnMut(usize, usize) -> f64) -> Self {
        let data = (0..rows * columns).map(|k| entry(k / columns, k % columns)).collect();
        Self { rows, columns, data }
    }

    pub fn identity(size: usize) -> Self {
        Self::from_fn(size, size, |i, j| if i == j { 1.0 } else { 0.0 })
    }

    pub fn outer(a: &[f64], b: &[f64]) -> Self {
        Self::from_fn(a.len(), b.len(), |i, j| a[i] * b[j])
    }

    pub fn row(&self, i: usize) -> &[f64] {
        &self.data[i * self.columns..(i + 1) * self.columns]
    }

    pub fn column(&self, j: usize) -> Vec<f64> {
        (0..self.rows).map(|i| self[(i, j)]).collect()
    }

    pub fn transposed(&self) -> Self {
        Self::from_fn(self.columns, self.rows, |i, j| self[(j, i)])
    }

    /// `A B`.
    pub fn times(&self, other: &Self) -> Self {
        assert_eq!(self.columns, other.rows);
        let mut out = Self::zeros(self.rows, other.columns);
        for i in 0..self.rows {
            let into = &mut out.data[i * other.columns..(i + 1) * other.columns];
            for (k, &factor) in self.row(i).iter().enumerate() {
                if factor != 0.0 {
                    into.iter_mut().zip(other.row(k)).for_each(|(sum, value)| *sum += factor * value);
                }
            }
        }
        out
    }

    pub fn plus(&self, other: &Self, factor: f64) -> Self {
        assert_eq!((self.rows, self.columns), (other.rows, other.columns));
        let data = self.data.iter().zip(&other.data).map(|(a, b)| a + factor * b).collect();
        Self { data, ..*self }
    }

    pub fn minus(&self, other: &Self) -> Self {
        self.plus(other, -1.0)
    }

    pub fn scaled(&self, factor: f64) -> Self {
        Self { data: self.data.iter().map(|a| a * factor).collect(), ..*self }
    }

    pub fn plus_diagonal(&self, value: f64) -> Self {
        Self::from_fn(self.rows, self.columns, |i, j| self[(i, j)] + if i == j { value } else { 0.0 })
    }

    pub fn leading_columns(&self, count: usize) -> Self {
        Self::from_fn(self.rows, count, |i, j| self[(i, j)])
    }

    pub fn norm(&self) -> f64 {
        norm(&self.data)
    }

    pub fn trace(&self) -> f64 {
        (0..self.rows).map(|i| self[(i, i)]).sum()
    }

    pub fn largest(&self) -> f64 {
        self.data.iter().fold(0.0, |largest, value| value.abs().max(largest))
    }

    pub fn is_finite(&self) -> bool {
        self.data.iter().all(|value| value.is_finite())
    }
}

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Euclidean norm, without overflow or underflow of the squares.
pub fn norm(values: &[f64]) -> f64 {
    let largest = values.iter().fold(0.0f64, |largest, value| value.abs().max(largest));
    if largest == 0.0 || !largest.is_finite() {
        return largest;
    }
    largest * values.iter().map(|value| (value / largest).powi(2)).sum::<f64>().sqrt()
}

/// Lower `G` with `G Gᵀ = A`; `None` if `A` is not positive definite.
pub fn cholesky(a: &Matrix) -> Option<Matrix> {
    let n = a.rows;
    let mut g = Matrix::zeros(n, n);
    for i in 0..n {
        for j in 0..=i {
            let rest = a[(i, j)] - dot(&g.row(i)[..j], &g.row(j)[..j]);
            if i > j {
                g[(i, j)] = rest / g[(j, j)];
            } else if rest > 0.0 {
                g[(i, i)] = rest.sqrt();
            } else {
                return None;
            }
        }
    }
    Some(g)
}

/// `G⁻¹ B` for a lower triangular `G`.
pub fn solve_lower(g: &Matrix, b: &Matrix) -> Matrix {
    let mut x = b.clone();
    for i in 0..g.rows {
        let (before, rest) = x.data.split_at_mut(i * b.columns);
        let row = &mut rest[..b.columns];
        for k in 0..i {
            let (factor, earlier) = (g[(i, k)], &before[k * b.columns..(k + 1) * b.columns]);
            row.iter_mut().zip(earlier).for_each(|(value, earlier)| *value -= factor * earlier);
        }
        row.iter_mut().for_each(|value| *value /= g[(i, i)]);
    }
    x
}

/// `G⁻ᵀ B` for a lower triangular `G`.
pub fn solve_lower_transposed(g: &Matrix, b: &Matrix) -> Matrix {
    let mut x = b.clone();
    for i in (0..g.rows).rev() {
        let (before, rest) = x.data.split_at_mut((i + 1) * b.columns);
        let row = &mut before[i * b.columns..];
        for k in i + 1..g.rows {
            let factor = g[(k, i)];
            let later = &rest[(k - i - 1) * b.columns..(k - i) * b.columns];
            row.iter_mut().zip(later).for_each(|(value, later)| *value -= factor * later);
        }
        row.iter_mut().for_each(|value| *value /= g[(i, i)]);
    }
    x
}

/// `X A⁻¹` for `A = G Gᵀ`.
pub fn divide(x: &Matrix, g: &Matrix) -> Matrix {
    solve_lower_transposed(g, &solve_lower(g, &x.transposed())).transposed()
}

/// The rotation that makes the off-diagonal entry of `[[a, c], [c, b]]` zero (Golub and Van Loan, 8.5.2).
fn rotation(a: f64, b: f64, c: f64) -> (f64, f64) {
    let tau = (b - a) / (2.0 * c);
    let t = tau.signum() / (tau.abs() + tau.hypot(1.0));
    let cosine = 1.0 / t.hypot(1.0);
    (cosine, t * cosine)
}

/// Limit of the sweeps: a Jacobi iteration that needs more is a bug of the oracle.
const SWEEPS: usize = 60;

/// Eigenvalues in descending order, and eigenvectors as columns: cyclic Jacobi. Rows and columns of zeros cost nothing.
pub fn eigen(a: &Matrix) -> (Vec<f64>, Matrix) {
    let n = a.rows;
    let (mut a, mut v) = (a.clone(), Matrix::identity(n));
    let scale = a.norm();
    for sweep in 0.. {
        assert!(sweep < SWEEPS, "the Jacobi iteration does not converge");
        let mut rotated = false;
        for p in 0..n {
            for q in p + 1..n {
                if a[(p, q)].abs() <= 1e-17 * scale {
                    continue;
                }
                rotated = true;
                let (c, s) = rotation(a[(p, p)], a[(q, q)], a[(p, q)]);
                for k in 0..n {
                    let (x, y) = (a[(k, p)], a[(k, q)]);
                    (a[(k, p)], a[(k, q)]) = (c * x - s * y, s * x + c * y);
                }
                for k in 0..n {
                    let (x, y) = (a[(p, k)], a[(q, k)]);
                    (a[(p, k)], a[(q, k)]) = (c * x - s * y, s * x + c * y);
                    let (x, y) = (v[(k, p)], v[(k, q)]);
                    (v[(k, p)], v[(k, q)]) = (c * x - s * y, s * x + c * y);
                }
                (a[(p, q)], a[(q, p)]) = (0.0, 0.0);
            }
        }
        if !rotated {
            break;
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| a[(j, j)].total_cmp(&a[(i, i)]));
    (order.iter().map(|&i| a[(i, i)]).collect(), Matrix::from_fn(n, n, |i, j| v[(i, order[j])]))
}

/// `U f(E) Uᵀ` of a symmetric matrix.
pub fn function_of(a: &Matrix, f: impl Fn(f64) -> f64) -> Matrix {
    let (values, vectors) = eigen(a);
    let scaled = Matrix::from_fn(a.rows, a.rows, |i, j| vectors[(i, j)] * f(values[j]));
    scaled.times(&vectors.transposed())
}

/// `U`, descending singular values and `V`.
pub struct Svd {
    pub u: Matrix,
    pub s: Vec<f64>,
    pub v: Matrix,
}

/// Thin singular value decomposition by one-sided Jacobi, which finds small singular values as accurately as large ones. Columns
/// of `U` that belong to zero are zero.
pub fn svd(a: &Matrix) -> Svd {
    if a.rows < a.columns {
        let Svd { u, s, v } = svd(&a.transposed());
        return Svd { u: v, s, v: u };
    }
    let n = a.columns;
    // As rows, which are contiguous.
    let mut columns: Vec<Vec<f64>> = (0..n).map(|j| a.column(j)).collect();
    let mut v: Vec<Vec<f64>> = (0..n).map(|j| Matrix::identity(n).row(j).to_vec()).collect();
    // Scaled, so that squares neither overflow nor underflow.
    let scale = if a.largest() > 0.0 { a.largest() } else { 1.0 };
    columns.iter_mut().flatten().for_each(|value| *value /= scale);
    for sweep in 0.. {
        assert!(sweep < SWEEPS, "the Jacobi iteration does not converge");
        let mut rotated = false;
        for p in 0..n {
            for q in p + 1..n {
                let (pp, qq) = (dot(&columns[p], &columns[p]), dot(&columns[q], &columns[q]));
                let pq = dot(&columns[p], &columns[q]);
                if pq.abs() <= 1e-15 * (pp * qq).sqrt() || pp * qq == 0.0 {
                    continue;
                }
                rotated = true;
                let (c, s) = rotation(pp, qq, pq);
                for vectors in [&mut columns, &mut v] {
                    let (before, rest) = vectors.split_at_mut(q);
                    for (x, y) in before[p].iter_mut().zip(&mut rest[0]) {
                        (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
                    }
                }
            }
        }
        if !rotated {
            break;
        }
    }
    let lengths: Vec<f64> = columns.iter().map(|column| norm(column)).collect();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| lengths[j].total_cmp(&lengths[i]));
    let unit = |i: usize, j: usize| {
        let column = order[j];
        if lengths[column] > 0.0 { columns[column][i] / lengths[column] } else { 0.0 }
    };
    Svd {
        u: Matrix::from_fn(a.rows, n, unit),
        s: order.iter().map(|&i| lengths[i] * scale).collect(),
        v: Matrix::from_fn(n, n, |i, j| v[order[j]][i]),
    }
}

/// `Q R` with `Q (m × n)`, by Gram–Schmidt done twice. Columns of `Q` that belong to a zero in `R` are zero.
pub fn qr(a: &Matrix) -> (Matrix, Matrix) {
    let n = a.columns;
    let mut q: Vec<Vec<f64>> = Vec::new();
    let mut r = Matrix::zeros(n, n);
    for j in 0..n {
        let mut rest = a.column(j);
        let whole = norm(&rest);
        for _ in 0..2 {
            for (k, direction) in q.iter().enumerate() {
                let overlap = dot(direction, &rest);
                r[(k, j)] += overlap;
                rest.iter_mut().zip(direction).for_each(|(value, unit)| *value -= overlap * unit);
            }
        }
        let length = norm(&rest);
        let independent = length > 1e-14 * whole;
        r[(j, j)] = if independent { length } else { 0.0 };
        let factor = if independent { 1.0 / length } else { 0.0 };
        q.push(rest.iter().map(|value| value * factor).collect());
    }
    (Matrix::from_fn(a.rows, n, |i, j| q[j][i]), r)
}

/// Eigenvalues of a symmetric matrix in descending order, for sides where Jacobi is too slow: Householder
/// tridiagonalization, then bisection with Sturm sequences. Exact up to rounding of the largest.
pub fn eigenvalues_of_large(a: &Matrix, count: usize) -> Vec<f64> {
    let n = a.rows;
    let mut a = a.clone();
    let (mut diagonal, mut beside) = (vec![0.0; n], vec![0.0; n]);
    for k in 0..n {
        diagonal[k] = a[(k, k)];
        if k + 1 == n {
            break;
        }
        // The reflection that takes the rest of row k to its first entry.
        let mut v: Vec<f64> = a.row(k)[k + 1..].to_vec();
        let alpha = -norm(&v).copysign(v[0]);
        beside[k] = alpha;
        v[0] -= alpha;
        let length = norm(&v);
        if length == 0.0 {
            continue;
        }
        v.iter_mut().for_each(|value| *value /= length);
        let p: Vec<f64> = (k + 1..n).map(|i| dot(&a.row(i)[k + 1..], &v)).collect();
        let along = dot(&p, &v);
        let w: Vec<f64> = p.iter().zip(&v).map(|(p, v)| 2.0 * (p - along * v)).collect();
        for i in k + 1..n {
            let (vi, wi) = (v[i - k - 1], w[i - k - 1]);
            let row = &mut a.data[i * n + k + 1..(i + 1) * n];
            row.iter_mut().zip(v.iter().zip(&w)).for_each(|(entry, (v, w))| *entry -= vi * w + wi * v);
        }
    }
    let bound = (0..n).fold(0.0f64, |bound, i| {
        let left = if i > 0 { beside[i - 1].abs() } else { 0.0 };
        bound.max(diagonal[i].abs() + left + beside[i].abs())
    });
    let above = |x: f64| {
        // The number of positive pivots of A − x I is the number of eigenvalues above x.
        let (mut above, mut pivot) = (0, 1.0);
        for i in 0..n {
            let square = if i > 0 { beside[i - 1] * beside[i - 1] } else { 0.0 };
            pivot = diagonal[i] - x - square / pivot;
            if pivot == 0.0 {
                pivot = -1e-300 - 1e-16 * bound;
            }
            above += usize::from(pivot > 0.0);
        }
        above
    };
    (0..count.min(n))
        .map(|index| {
            let (mut low, mut high) = (-bound, bound);
            while high - low > 1e-14 * bound {
                let middle = 0.5 * (low + high);
                if above(middle) > index { low = middle } else { high = middle }
            }
            0.5 * (low + high)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inputs::Stream;

    fn random(rows: usize, columns: usize, seed: u64) -> Matrix {
        let mut stream = Stream::new(seed);
        Matrix::from_fn(rows, columns, |_, _| stream.normal())
    }

    fn close(a: &Matrix, b: &Matrix, tolerance: f64) -> bool {
        a.minus(b).largest() <= tolerance
    }

    battery! {
        /// Every decomposition multiplies back and has its structure. Different decompositions of one matrix agree.
        fn decompositions_multiply_back(m: u8, n: u8, seed: u64) -> bool {
            let (m, n) = (usize::from(m % 12) + 1, usize::from(n % 12) + 1);
            let a = random(m, n, seed);
            let Svd { u, s, v } = svd(&a);
            let size = m.min(n);
            let us = Matrix::from_fn(m, size, |i, j| u[(i, j)] * s[j]);
            let gram = a.transposed().times(&a);
            let (values, vectors) = eigen(&gram);
            let large = eigenvalues_of_large(&gram, n);
            let damped = gram.plus_diagonal(0.5);
            let g = cholesky(&damped).unwrap();
            let b = random(n, 3, seed ^ 1);
            let (q, r) = qr(&a);
            close(&us.times(&v.transposed()), &a, 1e-12)
                && close(&v.transposed().times(&v), &Matrix::identity(size), 1e-12)
                && close(&function_of(&gram, |value| value), &gram, 1e-11)
                && close(&vectors.transposed().times(&vectors), &Matrix::identity(n), 1e-12)
                && (0..size).all(|i| (values[i].max(0.0).sqrt() - s[i]).abs() < 1e-6)
                && (0..n).all(|i| (values[i] - large[i]).abs() < 1e-11 * (1.0 + values[0]))
                && close(&g.times(&g.transposed()), &damped, 1e-11)
                && close(&g.times(&solve_lower(&g, &b)), &b, 1e-10)
                && close(&g.transposed().times(&solve_lower_transposed(&g, &b)), &b, 1e-10)
                && close(&divide(&b.transposed(), &g).times(&damped), &b.transposed(), 1e-8)
                && close(&q.times(&r), &a, 1e-12)
        }
    }

    /// Known singular values, down to 1e-8 of the first, as the last components need.
    #[test]
    fn small_singular_values_are_exact() {
        let (q, _) = qr(&random(9, 6, 1));
        let (p, _) = qr(&random(6, 6, 2));
        let wanted = [1.0, 1e-1, 1e-3, 1e-5, 1e-7, 1e-8];
        let scaled = Matrix::from_fn(9, 6, |i, j| q[(i, j)] * wanted[j]);
        let found = svd(&scaled.times(&p.transposed())).s;
        assert!(
            found.iter().zip(wanted).all(|(found, wanted)| (found / wanted - 1.0).abs() < 1e-7),
            "{found:?}"
        );
        assert_eq!(svd(&Matrix::zeros(3, 2)).s, [0.0, 0.0]);
    }
}
