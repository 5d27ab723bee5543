//! Operations on symmetric matrices of which the lower triangle is stored, in strips of columns.

use crate::{add_product, cholesky, in_strips, product, product_into};
use faer::prelude::{Reborrow, ReborrowMut};
use faer::{Mat, MatMut, MatRef, Par};

/// Columns of a strip. Strips are computed side by side, each by one thread: a product that is shared out among threads is slower.
const STRIP: usize = 128;

/// The memory of [`reflect`], which is used again for the next reflection: fresh memory takes as long as the thin products.
pub(super) struct Scratch {
    left: Mat<f64>,
    right: Mat<f64>,
}

impl Scratch {
    /// For matrices of at most so many rows, and blocks of at most so many columns.
    pub(super) fn new(rows: usize, width: usize) -> Self {
        Self { left: Mat::zeros(rows, 2 * width), right: Mat::zeros(2 * width, rows) }
    }
}

/// `Hᵀ A H` with `H = I − V T Vᵀ`, in place of the lower triangle of `A`.
pub(super) fn reflect(
    a: MatMut<'_, f64>,
    v: MatRef<'_, f64>,
    t: MatRef<'_, f64>,
    scratch: &mut Scratch,
    par: Par,
) {
    let (rows, width) = v.shape();
    let mut left = scratch.left.as_mut().submatrix_mut(0, 0, rows, 2 * width);
    // Stored row after row, which is faster.
    let mut right = scratch.right.as_mut().submatrix_mut(0, 0, 2 * width, rows);
    let (mut y, mut v_by_rows) = right.rb_mut().split_at_row_mut(width);
    v_by_rows.copy_from(v.transpose());
    // Hᵀ A H = A − V Yᵀ − Y Vᵀ with Z = A V T and Y = Z − ½ V Tᵀ Vᵀ Z.
    times(y.rb_mut(), a.rb(), v, v_by_rows.rb().transpose(), t, par);
    let inside = product(t.transpose(), inner(v, y.rb().transpose(), par).as_ref(), Par::Seq);
    let subtract = |first: usize, strip: MatMut<'_, f64>| {
        let rows = v.subrows(first, strip.ncols());
        add_product(strip.transpose_mut(), -0.5, rows, inside.as_ref(), Par::Seq);
    };
    in_strips(y.rb_mut(), STRIP, &subtract, par);
    left.rb_mut().subcols_mut(0, width).copy_from(v);
    left.rb_mut().subcols_mut(width, width).copy_from(y.transpose());
    let (left, right) = (left.rb(), right.rb());
    let strip = |first: usize, strip: MatMut<'_, f64>| {
        let columns = strip.ncols();
        let below = strip.subrows_mut(first, rows - first);
        add_product(below, -1.0, left.subrows(first, rows - first), right.subcols(first, columns), Par::Seq);
    };
    in_strips(a, STRIP, &strip, par);
}

/// `Vᵀ Z` for thin blocks. The order of the additions does not depend on the number of threads.
fn inner(v: MatRef<'_, f64>, z: MatRef<'_, f64>, par: Par) -> Mat<f64> {
    /// Rows of a part.
    const PART: usize = 1024;
    let firsts: Vec<usize> = (0..v.nrows()).step_by(PART).collect();
    let part = |first: &usize| {
        let count = PART.min(v.nrows() - first);
        product(v.subrows(*first, count).transpose(), z.subrows(*first, count), Par::Seq)
    };
    map(&firsts, part, par).into_iter().fold(Mat::zeros(v.ncols(), z.ncols()), |sum, part| sum + part)
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

/// Writes the transpose of `A V T` for a thin block, which is given column after column and row after row.
fn times(
    out: MatMut<'_, f64>,
    a: MatRef<'_, f64>,
    v: MatRef<'_, f64>,
    v_by_rows: MatRef<'_, f64>,
    t: MatRef<'_, f64>,
    par: Par,
) {
    let rows = a.nrows();
    let strip = |first: usize, out: MatMut<'_, f64>| {
        let mut out = out.transpose_mut();
        let columns = out.nrows();
        let next = first + columns;
        let corner = mirrored(a.submatrix(first, first, columns, columns));
        let mut sum = product(corner.as_ref(), v.subrows(first, columns), Par::Seq);
        if next < rows {
            // Aᵀ V is faster if both blocks are stored row after row, and A V if they are stored column after column.
            let strip = a.submatrix(next, first, rows - next, columns);
            product_into(out.rb_mut(), strip.transpose(), v_by_rows.subrows(next, rows - next), Par::Seq);
            sum += out.rb();
        }
        if first > 0 {
            let strip = a.submatrix(first, 0, columns, first);
            add_product(sum.as_mut(), 1.0, strip, v.subrows(0, first), Par::Seq);
        }
        product_into(out, sum.as_ref(), t, Par::Seq);
    };
    in_strips(out, STRIP, &strip, par);
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
