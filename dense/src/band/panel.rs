//! The reflections of one panel.

use crate::{add_product, product};
use faer::prelude::{Reborrow, ReborrowMut};
use faer::{Mat, MatMut, MatRef, Par};

/// `I − V T Vᵀ`, a product of Householder reflections that acts on the rows from `first` on.
#[derive(Debug)]
pub(super) struct Reflector {
    pub(super) first: usize,
    /// Lower trapezoidal, with ones on the diagonal.
    pub(super) v: Mat<f64>,
    /// Upper triangular.
    pub(super) t: Mat<f64>,
}

/// Columns that are reflected one by one before the others follow.
const INNER: usize = 16;

impl Reflector {
    /// Reduces a panel to its upper triangle `R`, in place: the panel was `(I − V T Vᵀ) R`. It has at least as many rows as columns.
    ///
    /// A column of zeros is not reflected. faer's QR decomposition would leave out a column of `V` for it.
    pub(super) fn of(mut panel: MatMut<'_, f64>, first: usize) -> Self {
        let (rows, columns) = (panel.nrows(), panel.ncols());
        let mut v = Mat::<f64>::zeros(rows, columns);
        let mut t = Mat::<f64>::zeros(columns, columns);
        for start in (0..columns).step_by(INNER) {
            let width = INNER.min(columns - start);
            for column in start..start + width {
                t[(column, column)] = reflection(panel.rb_mut(), v.as_mut(), column);
                let rest = panel.rb_mut().submatrix_mut(
                    column,
                    column + 1,
                    rows - column,
                    start + width - column - 1,
                );
                let scale = Mat::from_fn(1, 1, |_, _| t[(column, column)]);
                reflect(rest, v.submatrix(column, column, rows - column, 1), scale.as_ref());
            }
            let v = v.submatrix(start, start, rows - start, width);
            let mut t = t.as_mut().submatrix_mut(start, start, width, width);
            complete(v, t.rb_mut());
            let after = start + width;
            let rest = panel.rb_mut().submatrix_mut(start, after, rows - start, columns - after);
            reflect(rest, v, t.rb());
        }
        complete(v.as_ref(), t.as_mut());
        Self { first, v, t }
    }
}

/// The reflection that makes a column zero below the diagonal. Writes its vector to `v`, and returns its scale `τ` in `I − τ v vᵀ`.
fn reflection(panel: MatMut<'_, f64>, v: MatMut<'_, f64>, column: usize) -> f64 {
    let rows = panel.nrows();
    let mut x = panel.col_mut(column).subrows_mut(column, rows - column);
    let mut v = v.col_mut(column).subrows_mut(column, rows - column);
    let head = x[0];
    let below = x.rb().subrows(1, rows - column - 1).norm_l2();
    v[0] = 1.0;
    if below < f64::MIN_POSITIVE {
        x.rb_mut().subrows_mut(1, rows - column - 1).fill(0.0);
        return 0.0;
    }
    let norm = -head.hypot(below).copysign(head);
    let divisor = (head - norm).recip();
    for (v, x) in v.rb_mut().iter_mut().zip(x.rb_mut().iter_mut()).skip(1) {
        *v = *x * divisor;
        *x = 0.0;
    }
    x[0] = norm;
    (norm - head) / norm
}

/// `(I − V Tᵀ Vᵀ) X`, in place.
fn reflect(mut block: MatMut<'_, f64>, v: MatRef<'_, f64>, t: MatRef<'_, f64>) {
    if block.ncols() > 0 {
        let inside = product(v.transpose(), block.rb(), Par::Seq);
        let turned = product(t.transpose(), inside.as_ref(), Par::Seq);
        add_product(block.rb_mut(), -1.0, v, turned.as_ref(), Par::Seq);
    }
}

/// Computes the part of `T` above its diagonal (Schreiber & Van Loan 1989).
fn complete(v: MatRef<'_, f64>, mut t: MatMut<'_, f64>) {
    let gram = product(v.transpose(), v, Par::Seq);
    for j in 1..t.ncols() {
        for i in 0..j {
            let sum: f64 = (i..j).map(|k| t[(i, k)] * gram[(k, j)]).sum();
            t[(i, j)] = -t[(j, j)] * sum;
        }
    }
}
