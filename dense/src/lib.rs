//! Dense decompositions in f64, with a finite check before and after, and with explicit parallelism.
//!
//! The algorithms are those of [faer]. This crate adds six things:
//!
//! - f64 throughout: faer's f32 decompositions of ill-conditioned matrices are less accurate than f32. Its QR decomposition of a
//!   1536 × 384 matrix of condition 1e8 was off by 2e-3 of the matrix, and its singular values by 3e-4 of the largest;
//! - finite checks: an `Ok` of faer does not prove that the result is finite (its self-adjoint eigendecomposition returns `Ok` with NaN,
//!   and its QR propagates NaN without an error);
//! - explicit threads: faer's convenient calls take their number of threads from a process-wide setting;
//! - one compilation: the algorithms are generic, so each crate that calls them directly compiles them again;
//! - thin blocks: products and substitutions with few columns, at the speed of the memory or of the multipliers ([`Panel`]);
//! - the memory of large matrices: huge pages, which the threads that write them touch first ([`Buffer`], [`Square`]).
#![deny(missing_docs)]
#![deny(unsafe_code)]
#![warn(unreachable_pub)]

mod algorithms;
mod band;
mod memory;
mod strips;
mod thin;
mod workspace;

pub use band::{BlockTridiagonal, Fraction};
pub use memory::{Buffer, Square};
pub use strips::{from_columns, in_strips, threads};
pub use thin::{Panel, by_panels, cholesky_qr, thin_product};
pub use workspace::workspace;

use faer::traits::RealField;
use faer::{Accum, Mat, MatMut, MatRef, Par};

/// The reason why a decomposition failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A NaN or an infinity in the matrix or in the result.
    #[error("{what} holds a value that is not finite")]
    NonFinite {
        /// The matrix that was checked.
        what: &'static str,
    },
    /// The decomposition did not converge.
    #[error("the {what} did not converge")]
    NoConvergence {
        /// The decomposition.
        what: &'static str,
    },
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A floating-point type that products are compiled for: f32 and f64.
pub trait Real: RealField + Copy + bytemuck::Pod + algorithms::Algorithms + thin::Kernel {
    /// Returns whether the value is neither NaN nor infinite.
    fn finite(self) -> bool;
    /// One.
    const ONE: Self;
}

impl Real for f32 {
    fn finite(self) -> bool {
        self.is_finite()
    }
    const ONE: Self = 1.0;
}

impl Real for f64 {
    fn finite(self) -> bool {
        self.is_finite()
    }
    const ONE: Self = 1.0;
}

/// `U (m × k)`, singular values in descending order, `V (n × k)`, with `k = min(m, n)`.
#[derive(Clone, Debug)]
pub struct Svd {
    /// Left singular vectors.
    pub u: Mat<f64>,
    /// Singular values.
    pub s: Vec<f64>,
    /// Right singular vectors.
    pub v: Mat<f64>,
}

/// Refuses a matrix with NaN or infinity.
///
/// # Errors
/// [`Error::NonFinite`], naming `what`.
pub fn check_finite<T: Real>(what: &'static str, a: MatRef<'_, T>) -> Result<()> {
    // In the order of the memory, for both layouts.
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

/// The least power of two that is not below a positive number; otherwise 1.
pub fn power_of_two(number: f64) -> f64 {
    if number > 0.0 { number.log2().ceil().exp2() } else { 1.0 }
}

/// The matrix divided by a power of two near its largest entry, in f32, and that power. So no entry overflows, and only entries that are
/// negligible beside the largest underflow.
pub fn normalized(a: MatRef<'_, f64>) -> (Mat<f32>, f64) {
    let scale = power_of_two(a.norm_max());
    (Mat::from_fn(a.nrows(), a.ncols(), |i, j| (a[(i, j)] / scale) as f32), scale)
}

/// The product `A B`.
pub fn product<T: Real>(a: MatRef<'_, T>, b: MatRef<'_, T>, par: Par) -> Mat<T> {
    let mut out = Mat::zeros(a.nrows(), b.ncols());
    product_into(out.as_mut(), a, b, par);
    out
}

/// `C = A B`.
pub fn product_into<T: Real>(c: MatMut<'_, T>, a: MatRef<'_, T>, b: MatRef<'_, T>, par: Par) {
    T::matmul(c, Accum::Replace, a, b, T::ONE, par);
}

/// `C += α A B`.
pub fn add_product<T: Real>(c: MatMut<'_, T>, alpha: T, a: MatRef<'_, T>, b: MatRef<'_, T>, par: Par) {
    T::matmul(c, Accum::Add, a, b, alpha, par);
}

/// `L⁻¹ X` for a lower triangular matrix `L`, in place of `X`.
pub fn solve_lower<T: Real>(l: MatRef<'_, T>, x: MatMut<'_, T>, par: Par) {
    T::solve_lower(l, x, par);
}

/// `R⁻¹ X` for an upper triangular matrix `R`, in place of `X`.
pub fn solve_upper<T: Real>(r: MatRef<'_, T>, x: MatMut<'_, T>, par: Par) {
    T::solve_upper(r, x, par);
}

/// Lower Cholesky factor `G` of the symmetric matrix whose lower triangle `a` holds, `A = G Gᵀ`; zeros above the
/// diagonal. `None` if `A` is not positive definite to working precision.
pub fn cholesky(mut a: Mat<f64>, par: Par) -> Option<Mat<f64>> {
    cholesky_in_place(a.as_mut(), par)?;
    Some(a)
}

/// As [`cholesky`], in place of the matrix.
pub fn cholesky_in_place(mut a: MatMut<'_, f64>, par: Par) -> Option<()> {
    algorithms::cholesky(a.as_mut(), par)?;
    check_finite("the Cholesky factor", a.as_ref()).ok()
}

/// Eigenvalues in ascending order and orthonormal eigenvectors, as columns, of the symmetric matrix whose lower
/// triangle `a` holds.
///
/// # Errors
/// [`Error::NonFinite`] for a matrix or a result with NaN or infinity, [`Error::NoConvergence`].
pub fn self_adjoint_eigen(what: &'static str, a: MatRef<'_, f64>, par: Par) -> Result<(Vec<f64>, Mat<f64>)> {
    check_finite(what, a)?;
    let (values, vectors) = algorithms::eigen(a, par)
        .or_else(|| algorithms::eigen(with_noise(what, a).as_ref(), par))
        .ok_or(Error::NoConvergence { what: "eigendecomposition" })?;
    check_finite(what, MatRef::from_column_major_slice(&values, values.len(), 1))?;
    check_finite(what, vectors.as_ref())?;
    Ok((values, vectors))
}

/// Thin singular value decomposition, singular values descending.
///
/// # Errors
/// [`Error::NonFinite`] for a matrix or a result with NaN or infinity, [`Error::NoConvergence`].
pub fn thin_svd(what: &'static str, a: MatRef<'_, f64>, par: Par) -> Result<Svd> {
    check_finite(what, a)?;
    let Svd { u, s, v } = algorithms::svd(a, par)
        .or_else(|| algorithms::svd(with_noise(what, a).as_ref(), par))
        .ok_or(Error::NoConvergence { what: "singular value decomposition" })?;
    check_finite(what, MatRef::from_column_major_slice(&s, s.len(), 1))?;
    check_finite(what, u.as_ref())?;
    check_finite(what, v.as_ref())?;
    Ok(Svd { u, s, v })
}

/// The matrix with noise of the size of one rounding of its largest entry, the same in every run. faer's iterations do not always
/// converge for matrices of low rank, because remainders underflow; with noise they do.
fn with_noise(what: &'static str, a: MatRef<'_, f64>) -> Mat<f64> {
    tracing::info!(what, "fallback to a decomposition with rounding noise: the iteration did not converge");
    let unit = f64::EPSILON * a.norm_max();
    // SplitMix64.
    let mut state = 0u64;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)] + unit * next())
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
pub fn thin_qr(what: &'static str, a: Mat<f64>, par: Par) -> Result<(Mat<f64>, Mat<f64>)> {
    check_finite(what, a.as_ref())?;
    let (m, n) = a.shape();
    assert!(m >= n, "a thin QR decomposition needs at least as many rows as columns, found {m} × {n}");
    let (q, r) = algorithms::qr(a, par);
    check_finite(what, q.as_ref())?;
    Ok((q, r))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quickcheck::quickcheck;

    /// Independent numbers, uniform in (−1, 1): multiplicative congruences of Lehmer.
    pub(crate) fn matrix(rows: usize, columns: usize, seed: u64) -> Mat<f64> {
        let mut state = u128::from(seed) << 1 | 1;
        let mut next = || {
            state = state.wrapping_mul(0xda94_2042_e4dd_58b5);
            (state >> 75) as f64 / (1u64 << 52) as f64 - 1.0
        };
        (0..8).for_each(|_| {
            next();
        });
        Mat::from_fn(rows, columns, |_, _| next())
    }

    pub(crate) fn difference(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> f64 {
        (a - b).norm_max()
    }

    quickcheck! {
        /// The factors of each decomposition multiply back to the matrix and have the documented structure.
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

    /// NaN is never a result, although faer's own `Ok` lets it through.
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

    /// Finite numbers whose squares overflow give an error, not a result with infinities.
    #[test]
    fn overflow_is_an_error() {
        let huge = Mat::from_fn(3, 3, |i, j| if i == j { 1e300 } else { 1e299 });
        let square = huge.transpose() * &huge;
        assert!(self_adjoint_eigen("square", square.as_ref(), Par::Seq).is_err());
        assert!(cholesky(square, Par::Seq).is_none());
    }

    /// The largest and the smallest numbers of f32, whose squares overflow or underflow there, decompose like ordinary ones.
    #[test]
    fn numbers_from_the_ends_of_f32() {
        let a = matrix(9, 7, 5);
        let wanted = thin_svd("a", a.as_ref(), Par::Seq).unwrap();
        for exponent in [-140, -100, 60, 127] {
            let power = f64::from(exponent).exp2();
            let scaled = Mat::from_fn(9, 7, |i, j| power * a[(i, j)]);
            let found = thin_svd("a", scaled.as_ref(), Par::Seq).unwrap();
            for (found, wanted) in found.s.iter().zip(&wanted.s) {
                assert!((found / power / wanted - 1.0).abs() < 1e-12, "2^{exponent}: {found} and {wanted}");
            }
            let (normal, scale) = normalized(scaled.as_ref());
            assert!((0.5..=1.0).contains(&normal.norm_max()), "2^{exponent}");
            assert_eq!(
                f64::from(normal[(2, 3)]) * scale,
                f64::from(a[(2, 3)] as f32) * power,
                "2^{exponent}"
            );
        }
        assert_eq!(thin_svd("a", Mat::zeros(4, 3).as_ref(), Par::Seq).unwrap().s, [0.0; 3]);
        assert_eq!(normalized(Mat::zeros(4, 3).as_ref()), (Mat::zeros(4, 3), 1.0));
    }

    /// The noise of a repeated decomposition is a rounding, and the same in every run.
    #[test]
    fn noise_is_of_the_size_of_a_rounding() {
        let a = matrix(30, 20, 1);
        let noise = with_noise("a", a.as_ref());
        assert_eq!(noise, with_noise("a", a.as_ref()));
        let largest = difference(noise.as_ref(), a.as_ref()) / a.norm_max() / f64::EPSILON;
        assert!((0.4..=1.5).contains(&largest), "{largest} roundings");
    }

    /// Singular values of an integer matrix of rank two, which faer returns out of order, are sorted.
    #[test]
    fn singular_values_of_low_rank_are_sorted() {
        let entry = |i: usize, j: usize, t: usize| {
            (((i * (2 * t + 3) + t) % 7) as f64 - 3.0) * (((j * (3 * t + 5) + 2 * t) % 5) as f64 - 2.0)
        };
        let a = Mat::from_fn(300, 300, |i, j| entry(i, j, 0) + entry(i, j, 1));
        let svd = thin_svd("a", a.as_ref(), Par::Seq).unwrap();
        assert!(svd.s.is_sorted_by(|a, b| a >= b));
        let scaled = Mat::from_fn(300, 300, |i, j| svd.u[(i, j)] * svd.s[j]);
        assert!(difference((scaled * svd.v.transpose()).as_ref(), a.as_ref()) < 1e-10);
    }

    #[test]
    fn a_singular_matrix_has_no_cholesky_factor() {
        assert!(cholesky(Mat::<f64>::zeros(3, 3), Par::Seq).is_none());
    }
}
