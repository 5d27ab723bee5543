//! Operations with a thin block. Their time is that of reading the matrix and multiplying it, so that it is read once, in the order of its
//! memory, by all threads. The block is stored row after row meanwhile.

mod kernel;
mod panel;

pub(crate) use kernel::Kernel;
use kernel::{Accumulate, TILE};
pub use panel::{Panel, by_panels};

use crate::strips::{share_chunks, threads};
use crate::{Real, cholesky, product, solve_lower};
use faer::{Mat, MatRef, Par};
use std::convert::identity;

/// Columns of a triangular matrix that a substitution handles before the other rows.
const TOGETHER: usize = 256;

/// Columns of them that a substitution handles before the other rows of these.
const NEAR: usize = 16;

/// The product `A V` with a thin block `V`. At least one stride of `A` should be 1: otherwise it is copied.
pub fn thin_product<T: Real>(a: MatRef<'_, T>, block: MatRef<'_, T>, par: Par) -> Mat<T> {
    by_panels(block, a.nrows(), (identity, identity), |panel| panel.product(a, par))
}

impl<T: Real> Panel<T> {
    /// The product `A X`. At least one stride of `A` should be 1: otherwise it is copied.
    ///
    /// # Panics
    /// If `A` does not have so many columns as `X` has rows.
    #[must_use]
    pub fn product(&self, a: MatRef<'_, T>, par: Par) -> Self {
        assert_eq!(a.ncols(), self.rows(), "columns of the matrix");
        let mut out = self.zeros_like(a.nrows());
        let copy = (a.row_stride() != 1 && a.col_stride() != 1).then(|| a.to_owned());
        add(&mut out.numbers, copy.as_ref().map_or(a, Mat::as_ref), &self.numbers, self.stride, false, par);
        out
    }

    /// `L⁻¹ X` for a lower triangular matrix `L`, one of whose strides is 1.
    ///
    /// # Panics
    /// If `L` does not have so many rows as `X`, or none of its strides is 1.
    #[must_use]
    pub fn solve_lower(mut self, l: MatRef<'_, T>, par: Par) -> Self {
        assert_eq!(l.nrows(), self.rows(), "rows of the matrix");
        let stride = self.stride;
        for first in (0..l.nrows()).step_by(TOGETHER) {
            let last = l.nrows().min(first + TOGETHER);
            for near in (first..last).step_by(NEAR) {
                let end = last.min(near + NEAR);
                let (known, rest) =
                    self.numbers[near * stride..last * stride].split_at_mut((end - near) * stride);
                for i in 0..end - near {
                    let (known, these) = known.split_at_mut(i * stride);
                    let row = l.row(near + i).subcols(near, i);
                    substitute(
                        &mut these[..stride],
                        row.iter(),
                        known.chunks_exact(stride),
                        l[(near + i, near + i)],
                    );
                }
                let beside = l.submatrix(end, near, last - end, end - near);
                add(rest, beside, known, stride, true, Par::Seq);
            }
            let (known, rest) = self.numbers[first * stride..].split_at_mut((last - first) * stride);
            add(rest, l.submatrix(last, first, l.nrows() - last, last - first), known, stride, true, par);
        }
        self
    }

    /// `L⁻ᵀ X` for a lower triangular matrix `L`, one of whose strides is 1.
    ///
    /// # Panics
    /// As [`Self::solve_lower`].
    #[must_use]
    pub fn solve_lower_transposed(mut self, l: MatRef<'_, T>, par: Par) -> Self {
        assert_eq!(l.nrows(), self.rows(), "rows of the matrix");
        let stride = self.stride;
        for first in (0..l.nrows()).step_by(TOGETHER).rev() {
            let last = l.nrows().min(first + TOGETHER);
            let (these, known) = self.numbers[first * stride..].split_at_mut((last - first) * stride);
            let below = l.submatrix(last, first, l.nrows() - last, last - first);
            add(these, below.transpose(), known, stride, true, par);
            for near in (first..last).step_by(NEAR).rev() {
                let end = last.min(near + NEAR);
                let (these, known) = these[(near - first) * stride..].split_at_mut((end - near) * stride);
                let beside = l.submatrix(end, near, last - end, end - near);
                add(these, beside.transpose(), known, stride, true, Par::Seq);
                for i in (0..end - near).rev() {
                    let (this, known) = these[i * stride..].split_at_mut(stride);
                    let column = l.col(near + i).subrows(near + i + 1, end - near - i - 1);
                    substitute(this, column.iter(), known.chunks_exact(stride), l[(near + i, near + i)]);
                }
            }
        }
        self
    }
}

/// `(x − Σ factor · row) / diagonal`.
fn substitute<'a, T: Real>(
    x: &mut [T],
    factors: impl Iterator<Item = &'a T>,
    rows: impl Iterator<Item = &'a [T]>,
    diagonal: T,
) {
    for (&factor, row) in factors.zip(rows) {
        for (x, &value) in x.iter_mut().zip(row) {
            *x -= factor * value;
        }
    }
    x.iter_mut().for_each(|x| *x /= diagonal);
}

/// `C += A X`, or `C −= A X`, for rows of so many numbers.
fn add<T: Real>(c: &mut [T], a: MatRef<'_, T>, x: &[T], stride: usize, is_negative: bool, par: Par) {
    // If long rows are not contiguous, each of a few columns is read in the order of the
    // memory; more of them can lie in the same set of the cache.
    let is_wide = a.row_stride() == 1 && a.ncols() > TOGETHER;
    let (most, depth) = if is_wide { (192, 8) } else { (96, a.ncols().max(1)) };
    // A few pieces for each thread.
    let rows = a.nrows().div_ceil(4 * threads(par)).next_multiple_of(TILE).clamp(TILE, most);
    let strip = |index: usize, c: &mut [T]| {
        let a = a.subrows(index * rows, c.len() / stride);
        T::accumulate(Accumulate { a, x, c, stride, is_negative, depth });
    };
    share_chunks(c, rows * stride, &strip, par);
}

/// `Q (m × n)` with orthonormal columns and `R (n × n)`, upper triangular, with `A = Q R`, by the Cholesky factor of `AᵀA`: it takes a
/// fraction of the time of [`thin_qr`](crate::thin_qr).
///
/// `QᵀQ − I` is up to the rounding error times the square of the condition of the columns. `None` if it can exceed 1e-6, and for numbers
/// that are not finite. (Yamamoto, Nakatsukasa, Yanagisawa and Fukaya 2015.)
pub fn cholesky_qr(a: Mat<f64>) -> Option<(Mat<f64>, Mat<f64>)> {
    /// Least diagonal entry of `R`, relative to the largest.
    const LEAST: f64 = 1e-4;
    let factor = cholesky(product(a.transpose(), a.as_ref(), Par::Seq), Par::Seq)?;
    let diagonal = factor.diagonal().column_vector();
    let (least, largest) = (diagonal.iter().copied().fold(f64::MAX, f64::min), diagonal.norm_max());
    if least < LEAST * largest {
        return None;
    }
    let mut q = a;
    solve_lower(factor.as_ref(), q.as_mut().transpose_mut(), Par::Seq);
    Some((q, factor.transpose().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{difference, matrix};

    /// A lower triangular matrix of a small condition.
    fn triangular(size: usize) -> Mat<f64> {
        let numbers = matrix(size, size, 1);
        Mat::from_fn(size, size, |i, j| match i.cmp(&j) {
            std::cmp::Ordering::Greater => 0.02 * numbers[(i, j)],
            std::cmp::Ordering::Equal => 1.0 + 0.1 * numbers[(i, i)],
            std::cmp::Ordering::Less => 0.0,
        })
    }

    /// For sizes around those of the pieces, in every layout, for one panel and several, on any number of threads.
    #[test]
    fn products_and_substitutions_are_inverse() {
        let solved = |block: &Mat<f64>, solve: &dyn Fn(Panel<f64>) -> Panel<f64>| {
            by_panels(block.as_ref(), block.nrows(), (identity, identity), solve)
        };
        for size in [0, 1, 5, 33, 95, 256, 257, 700] {
            for (columns, par) in
                [(0, Par::Seq), (1, Par::Seq), (7, Par::rayon(16)), (8, Par::Seq), (21, Par::rayon(16))]
            {
                let (l, x) = (triangular(size), matrix(size, columns, 2));
                let wanted = &l * &x;
                let rows = l.transpose().to_owned();
                // Neither stride is 1 from the bottom to the top.
                let reversed = l.reverse_rows().to_owned();
                for a in [l.as_ref(), rows.transpose(), reversed.reverse_rows()] {
                    let found = thin_product(a, x.as_ref(), par);
                    assert!(difference(found.as_ref(), wanted.as_ref()) < 1e-12, "{size}");
                }
                let found = solved(&wanted, &|panel| panel.solve_lower(l.as_ref(), par));
                assert!(difference(found.as_ref(), x.as_ref()) < 1e-12, "{size}");
                let found =
                    solved(&(l.transpose() * &x), &|panel| panel.solve_lower_transposed(l.as_ref(), par));
                assert!(difference(found.as_ref(), x.as_ref()) < 1e-12, "{size}");
            }
        }
    }

    /// Nearly dependent columns are left to Householder's decomposition.
    #[test]
    fn the_fast_decomposition_is_orthonormal_or_refused() {
        let independent = matrix(300, 8, 3);
        for distance in [1.0, 1e-2, 1e-3, 1e-5, 1e-9, 0.0] {
            let a = Mat::from_fn(300, 8, |i, j| match j {
                7 => independent[(i, 0)] + distance * independent[(i, 7)],
                _ => independent[(i, j)],
            });
            let found = cholesky_qr(a.clone());
            assert_eq!(found.is_some(), distance > 2e-4, "{distance}");
            if let Some((q, r)) = found {
                assert!(
                    difference((q.transpose() * &q).as_ref(), Mat::<f64>::identity(8, 8).as_ref()) < 1e-6
                );
                assert!(difference((&q * &r).as_ref(), a.as_ref()) < 1e-12);
                assert!((0..8).all(|j| (j + 1..8).all(|i| r[(i, j)] == 0.0)));
            }
        }
        let mut bad = independent;
        bad[(3, 3)] = f64::NAN;
        assert!(cholesky_qr(bad).is_none());
    }
}
