//! Operations on symmetric matrices of which the lower triangle is stored, in strips of columns.

use crate::{add_product, cholesky, in_strips, product, product_into};
use faer::prelude::{Reborrow, ReborrowMut};
use faer::{Mat, MatMut, MatRef, Par};

/// Columns of a strip. Strips are computed side by side, each by one thread: a product that is shared out among threads is slower.
const STRIP: usize = 256;

/// `Hᵀ A H` with `H = I − V T Vᵀ`, in place of the lower triangle of `A`.
pub(super) fn reflect(a: MatMut<'_, f64>, v: MatRef<'_, f64>, t: MatRef<'_, f64>, par: Par) {
    let (rows, width) = v.shape();
    // Hᵀ A H = A − V Yᵀ − Y Vᵀ with Z = A V T and Y = Z − ½ V Tᵀ Vᵀ Z.
    let z = product(times(a.rb(), v, par).as_ref(), t, Par::Seq);
    let inside = product(v.transpose(), z.as_ref(), Par::Seq);
    let inside = product(t.transpose(), inside.as_ref(), Par::Seq);
    let mut y = z;
    add_product(y.as_mut(), -0.5, v, inside.as_ref(), Par::Seq);
    let mut left = Mat::zeros(rows, 2 * width);
    left.as_mut().subcols_mut(0, width).copy_from(v);
    left.as_mut().subcols_mut(width, width).copy_from(&y);
    // Stored row after row, which is faster.
    let mut right = Mat::zeros(2 * width, rows);
    right.as_mut().subrows_mut(0, width).copy_from(y.transpose());
    right.as_mut().subrows_mut(width, width).copy_from(v.transpose());
    let strip = |first: usize, strip: MatMut<'_, f64>| {
        let columns = strip.ncols();
        let below = strip.subrows_mut(first, rows - first);
        add_product(below, -1.0, left.subrows(first, rows - first), right.subcols(first, columns), Par::Seq);
    };
    in_strips(a, STRIP, &strip, par);
}

/// `(I − V T Vᵀ) X`, in place of `X`.
pub(super) fn reflect_rows(x: MatMut<'_, f64>, v: MatRef<'_, f64>, t: MatRef<'_, f64>, par: Par) {
    let strip = |_: usize, mut strip: MatMut<'_, f64>| {
        let inside = product(v.transpose(), strip.rb(), Par::Seq);
        let turned = product(t, inside.as_ref(), Par::Seq);
        add_product(strip.rb_mut(), -1.0, v, turned.as_ref(), Par::Seq);
    };
    in_strips(x, STRIP, &strip, par);
}

/// `A V` for a thin block.
fn times(a: MatRef<'_, f64>, v: MatRef<'_, f64>, par: Par) -> Mat<f64> {
    let rows = a.nrows();
    let by_rows = v.transpose().to_owned();
    let by_rows = by_rows.transpose();
    let mut out = Mat::zeros(rows, v.ncols());
    let strip = |first: usize, out: MatMut<'_, f64>| {
        let mut out = out.transpose_mut();
        let columns = out.nrows();
        let next = first + columns;
        if next < rows {
            // Aᵀ V is faster if both blocks are stored row after row, and A V if they are stored column after column.
            let strip = a.submatrix(next, first, rows - next, columns);
            let mut image = Mat::zeros(v.ncols(), columns);
            product_into(
                image.as_mut().transpose_mut(),
                strip.transpose(),
                by_rows.subrows(next, rows - next),
                Par::Seq,
            );
            out.copy_from(image.transpose());
        }
        let corner = mirrored(a.submatrix(first, first, columns, columns));
        add_product(out.rb_mut(), 1.0, corner.as_ref(), v.subrows(first, columns), Par::Seq);
        if first > 0 {
            add_product(
                out.rb_mut(),
                1.0,
                a.submatrix(first, 0, columns, first),
                v.subrows(0, first),
                Par::Seq,
            );
        }
    };
    in_strips(out.as_mut().transpose_mut(), STRIP, &strip, par);
    out
}

/// Both triangles.
pub(super) fn mirrored(lower: MatRef<'_, f64>) -> Mat<f64> {
    Mat::from_fn(lower.nrows(), lower.nrows(), |i, j| lower[(i.max(j), i.min(j))])
}

/// Copies the lower triangle to the upper one.
pub(super) fn mirror(mut a: MatMut<'_, f64>) {
    /// Squares that fit in the first-level cache.
    const SIDE: usize = 32;
    let size = a.nrows();
    for column in (0..size).step_by(SIDE) {
        for row in (column..size).step_by(SIDE) {
            for j in column..size.min(column + SIDE) {
                for i in row.max(j + 1)..size.min(row + SIDE) {
                    a[(j, i)] = a[(i, j)];
                }
            }
        }
    }
}

/// True if all numbers of the lower triangle are finite.
pub(super) fn is_finite(a: MatRef<'_, f64>) -> bool {
    (0..a.ncols()).all(|j| a.col(j).iter().skip(j).all(|value| value.is_finite()))
}

/// True if the eigenvalues are below `bound`.
pub(super) fn is_bounded(a: MatRef<'_, f64>, bound: f64, par: Par) -> bool {
    let mut rest = a * faer::Scale(-1.0);
    for i in 0..rest.nrows() {
        rest[(i, i)] += bound;
    }
    cholesky(rest, par).is_some()
}

/// Applies a function to each item, side by side unless `par` is sequential.
pub(super) fn map<T: Sync, R: Send>(
    items: &[T],
    function: impl Fn(&T) -> R + Send + Sync,
    par: Par,
) -> Vec<R> {
    use rayon::prelude::*;
    match par {
        Par::Seq => items.iter().map(function).collect(),
        Par::Rayon(_) => items.par_iter().map(function).collect(),
    }
}
