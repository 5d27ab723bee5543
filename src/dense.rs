//! Dense decompositions, each between two finite checks and with its parallelism given explicitly.
//!
//! The algorithms are faer's. What is added here: faer's `Ok` alone is no proof of a finite result (its
//! self-adjoint eigendecomposition returns `Ok` with NaN, its QR carries NaN on in silence), and its convenient
//! calls take their number of threads from a process-wide setting.

use crate::error::{Error, Result};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::{cholesky::llt, evd, householder, matmul::matmul, qr::no_pivoting, svd};
use faer::traits::RealField;
use faer::traits::math_utils::{eps, from_f64};
use faer::{Accum, Conj, Mat, MatRef, Par, Spec};

/// A floating-point type that the numerics compute with.
pub trait Real: RealField + Copy {
    /// Whether the value is neither NaN nor infinite.
    fn finite(self) -> bool;
    /// The same number in f64.
    fn to_f64(self) -> f64;
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
}

impl Real for f32 {
    fn finite(self) -> bool {
        self.is_finite()
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
}

impl Real for f64 {
    fn finite(self) -> bool {
        self.is_finite()
    }
    fn to_f64(self) -> f64 {
        self
    }
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
}

/// `U (m × k)`, singular values in descending order, `V (n × k)`, with `k = min(m, n)`.
#[derive(Clone, Debug)]
pub struct Svd<T> {
    /// Left singular vectors.
    pub u: Mat<T>,
    /// Singular values.
    pub s: Vec<T>,
    /// Right singular vectors.
    pub v: Mat<T>,
}

/// Refuses a matrix with NaN or infinity.
///
/// # Errors
/// [`Error::NonFinite`], naming `what`.
pub fn check_finite<T: Real>(what: &'static str, a: MatRef<'_, T>) -> Result<()> {
    // Along the memory, whichever way it is stored.
    let columns =
        if a.row_stride().unsigned_abs() <= a.col_stride().unsigned_abs() { a } else { a.transpose() };
    let finite = columns.col_iter().all(|column| column.iter().all(|value| value.finite()));
    if finite { Ok(()) } else { Err(Error::NonFinite { what }) }
}

/// The same numbers in f64.
pub fn to_f64(a: MatRef<'_, f32>) -> Mat<f64> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| f64::from(a[(i, j)]))
}

/// The nearest numbers in f32, without a check that they are finite.
pub fn to_f32(a: MatRef<'_, f64>) -> Mat<f32> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)] as f32)
}

/// The product `A B`.
pub fn product<T: Real>(a: MatRef<'_, T>, b: MatRef<'_, T>, par: Par) -> Mat<T> {
    let mut out = Mat::zeros(a.nrows(), b.ncols());
    matmul(out.as_mut(), Accum::Replace, a, b, T::ONE, par);
    out
}

/// The product `A V` with a thin block `V`.
///
/// Such a product only streams `A` through. It does so at the same speed for `A` and for `Aᵀ` if both blocks are
/// stored row after row, and at half of it for one of them otherwise: more than the two small copies cost.
pub fn thin_product<T: Real>(a: MatRef<'_, T>, block: MatRef<'_, T>, par: Par) -> Mat<T> {
    let rows = block.transpose().to_owned();
    let mut out = Mat::zeros(block.ncols(), a.nrows());
    matmul(out.as_mut().transpose_mut(), Accum::Replace, a, rows.transpose(), T::ONE, par);
    out.transpose().to_owned()
}

/// Lower Cholesky factor `G` of the symmetric matrix whose lower triangle `a` holds, `A = G Gᵀ`; zeros above the
/// diagonal. `None` if `A` is not positive definite to working precision.
pub fn cholesky<T: Real>(mut a: Mat<T>, par: Par) -> Option<Mat<T>> {
    let n = a.nrows();
    let mut memory = MemBuffer::new(llt::factor::cholesky_in_place_scratch::<T>(n, par, Spec::default()));
    let regularization = llt::factor::LltRegularization::default();
    llt::factor::cholesky_in_place(
        a.as_mut(),
        regularization,
        par,
        MemStack::new(&mut memory),
        Spec::default(),
    )
    .ok()?;
    for column in 1..n {
        a.col_mut(column).subrows_mut(0, column).fill(T::ZERO);
    }
    check_finite("the Cholesky factor", a.as_ref()).ok()?;
    Some(a)
}

/// Eigenvalues in ascending order and orthonormal eigenvectors, as columns, of the symmetric matrix whose lower
/// triangle `a` holds.
///
/// # Errors
/// [`Error::NonFinite`] for a matrix or a result with NaN or infinity, [`Error::NoConvergence`].
pub fn self_adjoint_eigen<T: Real>(
    what: &'static str,
    a: MatRef<'_, T>,
    par: Par,
) -> Result<(Vec<T>, Mat<T>)> {
    check_finite(what, a)?;
    let n = a.nrows();
    let mut values = Diag::zeros(n);
    let mut vectors = Mat::zeros(n, n);
    let scratch = evd::self_adjoint_evd_scratch::<T>(n, evd::ComputeEigenvectors::Yes, par, Spec::default());
    let mut memory = MemBuffer::new(scratch);
    evd::self_adjoint_evd(
        a,
        values.as_mut(),
        Some(vectors.as_mut()),
        par,
        MemStack::new(&mut memory),
        Spec::default(),
    )
    .map_err(|_| Error::NoConvergence { what: "eigendecomposition" })?;
    check_finite(what, values.column_vector().as_mat())?;
    check_finite(what, vectors.as_ref())?;
    Ok((values.column_vector().iter().copied().collect(), vectors))
}

/// Thin singular value decomposition, singular values descending.
///
/// The matrix is first divided by a power of two near its largest entry, which changes no digit, so that squares neither underflow
/// nor overflow. Where faer's iteration does not converge, as for some matrices of low rank whose remainders underflow, it is
/// repeated with noise of the size of one rounding.
///
/// # Errors
/// [`Error::NonFinite`] for a matrix or a result with NaN or infinity, [`Error::NoConvergence`].
pub fn thin_svd<T: Real>(what: &'static str, a: MatRef<'_, T>, par: Par) -> Result<Svd<T>> {
    check_finite(what, a)?;
    let largest: f64 = a.norm_max().to_f64();
    let exponent = if largest > 0.0 { largest.log2().ceil() } else { 0.0 };
    // In two steps, because the power itself may overflow or underflow in f32.
    let half = from_f64::<T>((exponent / 2.0).floor().exp2());
    let rest = from_f64::<T>((exponent - (exponent / 2.0).floor()).exp2());
    let scaled = Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)] / half / rest);
    let noisy = || {
        let noise = crate::random::gaussian::<T>(a.nrows(), a.ncols(), 0, "rounding noise");
        Mat::from_fn(a.nrows(), a.ncols(), |i, j| scaled[(i, j)] + noise[(i, j)] * eps::<T>())
    };
    let svd = faer_svd(scaled.as_ref(), par).or_else(|| {
        tracing::debug!(what, "the decomposition is repeated with rounding noise");
        faer_svd(noisy().as_ref(), par)
    });
    let Svd { u, s, v } = svd.ok_or(Error::NoConvergence { what: "singular value decomposition" })?;
    let s: Vec<T> = s.into_iter().map(|s| s * half * rest).collect();
    check_finite(what, MatRef::from_column_major_slice(&s, s.len(), 1))?;
    check_finite(what, u.as_ref())?;
    check_finite(what, v.as_ref())?;
    Ok(Svd { u, s, v })
}

/// `None` if it does not converge.
fn faer_svd<T: Real>(a: MatRef<'_, T>, par: Par) -> Option<Svd<T>> {
    let (m, n) = a.shape();
    let size = m.min(n);
    let (mut u, mut s, mut v) = (Mat::zeros(m, size), Diag::zeros(size), Mat::zeros(n, size));
    let vectors = svd::ComputeSvdVectors::Thin;
    let mut memory = MemBuffer::new(svd::svd_scratch::<T>(m, n, vectors, vectors, par, Spec::default()));
    svd::svd(
        a,
        s.as_mut(),
        Some(u.as_mut()),
        Some(v.as_mut()),
        par,
        MemStack::new(&mut memory),
        Spec::default(),
    )
    .ok()?;
    let s: Vec<T> = s.column_vector().iter().copied().collect();
    if s.is_sorted_by(|a, b| a >= b) || s.iter().any(|s| !s.finite()) {
        return Some(Svd { u, s, v });
    }
    // faer does not sort them where remainders of its bidiagonalization underflow, as of integer matrices of low rank.
    let mut order: Vec<usize> = (0..size).collect();
    order.sort_by(|&i, &j| s[j].to_f64().total_cmp(&s[i].to_f64()));
    let sorted = |q: Mat<T>| Mat::from_fn(q.nrows(), size, |i, j| q[(i, order[j])]);
    Some(Svd { u: sorted(u), s: order.iter().map(|&i| s[i]).collect(), v: sorted(v) })
}

/// `Q (m × n)` with orthonormal columns and `R (n × n)`, upper triangular, with `A = Q R`. `m` must be at least `n`.
///
/// Columns of `Q` that belong to a zero on the diagonal of `R` are orthonormal, but otherwise arbitrary.
///
/// # Errors
/// [`Error::NonFinite`] for a matrix with NaN or infinity.
///
/// # Panics
/// If `m < n`.
pub fn thin_qr<T: Real>(what: &'static str, mut a: Mat<T>, par: Par) -> Result<(Mat<T>, Mat<T>)> {
    check_finite(what, a.as_ref())?;
    let (m, n) = a.shape();
    assert!(m >= n, "a thin QR decomposition needs at least as many rows as columns, found {m} × {n}");
    let block = no_pivoting::factor::recommended_block_size::<T>(m, n);
    let mut coefficients = Mat::zeros(block, n);
    let mut memory =
        MemBuffer::new(no_pivoting::factor::qr_in_place_scratch::<T>(m, n, block, par, Spec::default()));
    no_pivoting::factor::qr_in_place(
        a.as_mut(),
        coefficients.as_mut(),
        par,
        MemStack::new(&mut memory),
        Spec::default(),
    );
    let r = Mat::from_fn(n, n, |i, j| if i <= j { a[(i, j)] } else { T::ZERO });
    let mut q = Mat::identity(m, n);
    let scratch =
        householder::apply_block_householder_sequence_on_the_left_in_place_scratch::<T>(m, block, n);
    householder::apply_block_householder_sequence_on_the_left_in_place_with_conj(
        a.as_ref(),
        coefficients.as_ref(),
        Conj::No,
        q.as_mut(),
        par,
        MemStack::new(&mut MemBuffer::new(scratch)),
    );
    check_finite(what, q.as_ref())?;
    Ok((q, r))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quickcheck::quickcheck;

    fn matrix(rows: usize, columns: usize, seed: u64) -> Mat<f64> {
        crate::random::gaussian(rows, columns, seed, "dense")
    }

    fn difference(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> f64 {
        (a - b).norm_max()
    }

    quickcheck! {
        /// Each decomposition multiplies back to its matrix, and its factors have the structure they promise.
        fn decompositions_reconstruct(m: u8, n: u8, seed: u64) -> bool {
            let (m, n) = (usize::from(m % 20) + 1, usize::from(n % 20) + 1);
            let a = matrix(m.max(n), n, seed);
            let (q, r) = thin_qr("a", a.clone(), Par::Seq).unwrap();
            let svd = thin_svd("a", a.as_ref(), Par::Seq).unwrap();
            let sigma = Mat::from_fn(n, n, |i, j| if i == j { svd.s[i] } else { 0.0 });
            let gram = a.transpose() * &a + Mat::<f64>::identity(n, n);
            let g = cholesky(gram.clone(), Par::Seq).unwrap();
            let (values, vectors) = self_adjoint_eigen("gram", gram.as_ref(), Par::Seq).unwrap();
            let scaled = Mat::from_fn(n, n, |i, j| vectors[(i, j)] * values[j]);
            difference((&q * &r).as_ref(), a.as_ref()) < 1e-12
                && difference((q.transpose() * &q).as_ref(), Mat::<f64>::identity(n, n).as_ref()) < 1e-12
                && difference((&svd.u * sigma * svd.v.transpose()).as_ref(), a.as_ref()) < 1e-12
                && svd.s.is_sorted_by(|a, b| a >= b)
                && difference((&g * g.transpose()).as_ref(), gram.as_ref()) < 1e-10
                && (0..n).all(|j| (0..j).all(|i| g[(i, j)] == 0.0))
                && difference((&scaled * vectors.transpose()).as_ref(), gram.as_ref()) < 1e-10
                && values.is_sorted()
        }
    }

    /// NaN must never come out as a result: faer's own `Ok` lets it through.
    #[test]
    fn non_finite_matrices_are_refused() {
        for bad in [f64::NAN, f64::INFINITY] {
            let mut a = matrix(4, 4, 1);
            a[(2, 1)] = bad;
            let refused = Error::NonFinite { what: "a" };
            assert_eq!(self_adjoint_eigen("a", a.as_ref(), Par::Seq).unwrap_err(), refused);
            assert_eq!(thin_svd("a", a.as_ref(), Par::Seq).unwrap_err(), refused);
            assert_eq!(thin_qr("a", a.clone(), Par::Seq).unwrap_err(), refused);
            assert!(cholesky(a, Par::Seq).is_none());
        }
    }

    /// Finite numbers whose squares overflow end in an error, not in a result with infinities.
    #[test]
    fn overflow_is_an_error() {
        let huge = Mat::from_fn(3, 3, |i, j| if i == j { 1e300 } else { 1e299 });
        let square = huge.transpose() * &huge;
        assert!(self_adjoint_eigen("square", square.as_ref(), Par::Seq).is_err());
        assert!(cholesky(square, Par::Seq).is_none());
    }

    /// An integer matrix of rank two, whose singular values faer returns out of order.
    #[test]
    fn singular_values_of_low_rank_are_sorted() {
        let entry = |i: usize, j: usize, t: usize| {
            (((i * (2 * t + 3) + t) % 7) as f64 - 3.0) * (((j * (3 * t + 5) + 2 * t) % 5) as f64 - 2.0)
        };
        let a = Mat::from_fn(300, 300, |i, j| entry(i, j, 0) + entry(i, j, 1));
        fn sorted<T: Real>(a: &Mat<T>) -> Svd<T> {
            let svd = thin_svd("a", a.as_ref(), Par::Seq).unwrap();
            assert!(svd.s.is_sorted_by(|a, b| a >= b));
            svd
        }
        let svd = sorted(&a);
        let scaled = Mat::from_fn(300, 300, |i, j| svd.u[(i, j)] * svd.s[j]);
        assert!(difference((scaled * svd.v.transpose()).as_ref(), a.as_ref()) < 1e-10);
        let single = sorted(&to_f32(a.as_ref()));
        for (i, (a, b)) in svd.s.iter().zip(&single.s).enumerate() {
            assert!((a - f64::from(*b)).abs() < 0.02, "singular value {i}: {a} and {b}");
        }
    }

    #[test]
    fn a_singular_matrix_has_no_cholesky_factor() {
        assert!(cholesky(Mat::<f64>::zeros(3, 3), Par::Seq).is_none());
    }
}
