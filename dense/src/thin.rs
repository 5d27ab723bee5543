//! Operations with a thin block. Their time is that of reading the matrix, so that it is read once, in pieces that are contiguous, and
//! by all threads. Where a piece has many rows and few columns, the block is first stored row after row.

use crate::{Real, add_product, cholesky, in_strips, product, product_into, solve_lower, solve_upper};
use faer::{Mat, MatMut, MatRef, Par};

/// The product `A V` with a thin block `V`.
///
/// If `A` is stored row after row, it takes less time than otherwise. So a symmetric matrix is best given as its transpose.
pub fn thin_product<T: Real>(a: MatRef<'_, T>, block: MatRef<'_, T>, par: Par) -> Mat<T> {
    /// Rows of a strip of a matrix that is stored column after column, and of one that is stored row after row.
    const STRIPS: [usize; 2] = [192, 64];
    if a.col_stride().unsigned_abs() >= a.row_stride().unsigned_abs() {
        let mut out = Mat::zeros(a.nrows(), block.ncols());
        let strip = |first: usize, strip: MatMut<'_, T>| {
            let rows = a.subrows(first, strip.ncols());
            product_into(strip.transpose_mut(), rows, block, Par::Seq);
        };
        in_strips(out.as_mut().transpose_mut(), STRIPS[0], &strip, par);
        return out;
    }
    let block = block.transpose().to_owned();
    let mut out = Mat::zeros(block.nrows(), a.nrows());
    let strip = |first: usize, strip: MatMut<'_, T>| {
        let rows = a.subrows(first, strip.ncols());
        product_into(strip, block.as_ref(), rows.transpose(), Par::Seq);
    };
    in_strips(out.as_mut(), STRIPS[1], &strip, par);
    out.transpose().to_owned()
}

/// Columns of a triangular matrix that a substitution handles together.
const TOGETHER: usize = 256;

/// `L⁻¹ X` for a lower triangular matrix `L` that is stored column after column, and a thin block, in its place.
pub fn thin_solve<T: Real>(l: MatRef<'_, T>, mut x: MatMut<'_, T>, par: Par) {
    /// Rows of a strip.
    const STRIP: usize = 384;
    for first in (0..l.nrows()).step_by(TOGETHER) {
        let (mut known, rest, diagonal, below) = parts(l, x.as_mut(), first);
        solve_lower(diagonal, known.as_mut(), Par::Seq);
        let known = known.as_ref();
        let strip = |first: usize, strip: MatMut<'_, T>| {
            let rows = below.subrows(first, strip.ncols());
            add_product(strip.transpose_mut(), -T::ONE, rows, known, Par::Seq);
        };
        in_strips(rest.transpose_mut(), STRIP, &strip, par);
    }
}

/// `L⁻ᵀ X` for a lower triangular matrix `L` that is stored column after column, and a thin block, in its place.
pub fn thin_solve_transposed<T: Real>(l: MatRef<'_, T>, mut x: MatMut<'_, T>, par: Par) {
    /// Columns of a strip.
    const STRIP: usize = 64;
    let mut by_rows = x.as_ref().transpose().to_owned();
    for first in (0..l.nrows()).step_by(TOGETHER).rev() {
        let (unknown, known, diagonal, below) = parts(l, by_rows.as_mut().transpose_mut(), first);
        let (mut unknown, known) = (unknown.transpose_mut(), known.transpose());
        let strip = |first: usize, strip: MatMut<'_, T>| {
            let columns = below.subcols(first, strip.ncols());
            add_product(strip, -T::ONE, known, columns, Par::Seq);
        };
        in_strips(unknown.as_mut(), STRIP, &strip, par);
        solve_upper(diagonal.transpose(), unknown.transpose_mut(), Par::Seq);
    }
    x.copy_from(by_rows.transpose());
}

/// The rows of the block that belong to a few columns, the rows after them, and the parts of the matrix on the diagonal and below it.
fn parts<'x, 'l, T: Real>(
    l: MatRef<'l, T>,
    x: MatMut<'x, T>,
    first: usize,
) -> (MatMut<'x, T>, MatMut<'x, T>, MatRef<'l, T>, MatRef<'l, T>) {
    let size = l.nrows() - first;
    let count = TOGETHER.min(size);
    let (these, rest) = x.subrows_mut(first, size).split_at_row_mut(count);
    let columns = l.submatrix(first, first, size, count);
    let (diagonal, below) = columns.split_at_row(count);
    (these, rest, diagonal, below)
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

    /// For sizes around those of the pieces, in both layouts, on any number of threads.
    #[test]
    fn products_and_substitutions_are_inverse() {
        for size in [1, 5, 191, 256, 257, 700] {
            for par in [Par::Seq, Par::rayon(16)] {
                let (l, x) = (triangular(size), matrix(size, 7, 2));
                let wanted = &l * &x;
                let by_columns = thin_product(l.as_ref(), x.as_ref(), par);
                let rows = l.transpose().to_owned();
                let by_rows = thin_product(rows.transpose(), x.as_ref(), par);
                assert!(difference(by_columns.as_ref(), wanted.as_ref()) < 1e-12, "{size}");
                assert!(difference(by_rows.as_ref(), wanted.as_ref()) < 1e-12, "{size}");
                let mut solved = wanted;
                thin_solve(l.as_ref(), solved.as_mut(), par);
                assert!(difference(solved.as_ref(), x.as_ref()) < 1e-12, "{size}");
                let mut solved = l.transpose() * &x;
                thin_solve_transposed(l.as_ref(), solved.as_mut(), par);
                assert!(difference(solved.as_ref(), x.as_ref()) < 1e-12, "{size}");
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
