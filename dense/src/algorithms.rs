//! Calls of faer's algorithms. They are generic, and each crate that calls them compiles them again. So only this file calls them.

use crate::Svd;
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::{cholesky::llt, evd, householder, matmul, qr::no_pivoting, svd, triangular_solve};
use faer::{Accum, Conj, Mat, MatMut, MatRef, Par, Spec};

/// Products and substitutions, for one type of number.
pub trait Algorithms: Sized {
    fn matmul(
        out: MatMut<'_, Self>,
        add: Accum,
        a: MatRef<'_, Self>,
        b: MatRef<'_, Self>,
        alpha: Self,
        par: Par,
    );
    fn solve_lower(matrix: MatRef<'_, Self>, block: MatMut<'_, Self>, par: Par);
    fn solve_upper(matrix: MatRef<'_, Self>, block: MatMut<'_, Self>, par: Par);
}

macro_rules! algorithms {
    ($($number:ty),*) => {$(
        impl Algorithms for $number {
            fn matmul(
                out: MatMut<'_, Self>,
                add: Accum,
                a: MatRef<'_, Self>,
                b: MatRef<'_, Self>,
                alpha: Self,
                par: Par,
            ) {
                matmul::matmul(out, add, a, b, alpha, par);
            }
            fn solve_lower(matrix: MatRef<'_, Self>, block: MatMut<'_, Self>, par: Par) {
                triangular_solve::solve_lower_triangular_in_place(matrix, block, par);
            }
            fn solve_upper(matrix: MatRef<'_, Self>, block: MatMut<'_, Self>, par: Par) {
                triangular_solve::solve_upper_triangular_in_place(matrix, block, par);
            }
        }
    )*};
}

algorithms!(f32, f64);

/// `None` if the matrix is not positive definite.
pub(crate) fn cholesky(mut a: MatMut<'_, f64>, par: Par) -> Option<()> {
    let n = a.nrows();
    let mut memory = MemBuffer::new(llt::factor::cholesky_in_place_scratch::<f64>(n, par, Spec::default()));
    let regularization = llt::factor::LltRegularization::default();
    let stack = MemStack::new(&mut memory);
    llt::factor::cholesky_in_place(a.as_mut(), regularization, par, stack, Spec::default()).ok()?;
    for column in 1..n {
        a.as_mut().col_mut(column).subrows_mut(0, column).fill(0.0);
    }
    Some(())
}

/// `None` if it does not converge.
pub(crate) fn eigen(a: MatRef<'_, f64>, par: Par) -> Option<(Vec<f64>, Mat<f64>)> {
    let n = a.nrows();
    let mut values = Diag::zeros(n);
    let mut vectors = Mat::zeros(n, n);
    let scratch =
        evd::self_adjoint_evd_scratch::<f64>(n, evd::ComputeEigenvectors::Yes, par, Spec::default());
    let mut memory = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut memory);
    evd::self_adjoint_evd(a, values.as_mut(), Some(vectors.as_mut()), par, stack, Spec::default()).ok()?;
    Some((values.column_vector().iter().copied().collect(), vectors))
}

/// `None` if it does not converge.
pub(crate) fn svd(a: MatRef<'_, f64>, par: Par) -> Option<Svd> {
    let (m, n) = a.shape();
    let size = m.min(n);
    let (mut u, mut s, mut v) = (Mat::zeros(m, size), Diag::zeros(size), Mat::zeros(n, size));
    let vectors = svd::ComputeSvdVectors::Thin;
    let mut memory = MemBuffer::new(svd::svd_scratch::<f64>(m, n, vectors, vectors, par, Spec::default()));
    let stack = MemStack::new(&mut memory);
    svd::svd(a, s.as_mut(), Some(u.as_mut()), Some(v.as_mut()), par, stack, Spec::default()).ok()?;
    let s: Vec<f64> = s.column_vector().iter().copied().collect();
    if s.is_sorted_by(|a, b| a >= b) || s.iter().any(|s| !s.is_finite()) {
        return Some(Svd { u, s, v });
    }
    // faer does not sort them if remainders of its bidiagonalization underflow, as for integer matrices of low rank.
    let mut order: Vec<usize> = (0..size).collect();
    order.sort_by(|&i, &j| s[j].total_cmp(&s[i]));
    let sorted = |q: Mat<f64>| Mat::from_fn(q.nrows(), size, |i, j| q[(i, order[j])]);
    Some(Svd { u: sorted(u), s: order.iter().map(|&i| s[i]).collect(), v: sorted(v) })
}

pub(crate) fn qr(mut a: Mat<f64>, par: Par) -> (Mat<f64>, Mat<f64>) {
    let (m, n) = a.shape();
    let block = no_pivoting::factor::recommended_block_size::<f64>(m, n);
    let mut coefficients = Mat::zeros(block, n);
    let scratch = no_pivoting::factor::qr_in_place_scratch::<f64>(m, n, block, par, Spec::default());
    let mut memory = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut memory);
    no_pivoting::factor::qr_in_place(a.as_mut(), coefficients.as_mut(), par, stack, Spec::default());
    let r = Mat::from_fn(n, n, |i, j| if i <= j { a[(i, j)] } else { 0.0 });
    let mut q = Mat::identity(m, n);
    let scratch =
        householder::apply_block_householder_sequence_on_the_left_in_place_scratch::<f64>(m, block, n);
    let mut memory = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut memory);
    let (basis, factor) = (a.as_ref(), coefficients.as_ref());
    householder::apply_block_householder_sequence_on_the_left_in_place_with_conj(
        basis,
        factor,
        Conj::No,
        q.as_mut(),
        par,
        stack,
    );
    (q, r)
}
