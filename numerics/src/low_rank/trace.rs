//! The trace of an operator from its products with vectors: Hutch++ (Meyer, Musco, Musco & Woodruff 2021).
//!
//! ```text
//! Q = orthonormal basis of  M G            G: standard normal, n × DIRECTIONS
//! tr M = tr Qᵀ M Q  +  tr (I − Q Qᵀ) M (I − Q Qᵀ)
//! ```
//!
//! The first term, which holds the large eigenvalues, is exact; the second is the mean of `hᵀ M h` over random
//! vectors `h` outside `Q`. Its standard error is `√(2 / DIRECTIONS)` times the Frobenius norm of the part outside: about 0.3 % of the
//! trace for 4096 eigenvalues that decay like `1/i`.

use super::Operator;
use super::krylov::project_out;
use crate::dense;
use crate::error::Result;
use crate::random;
use faer::{Mat, MatRef, Par};

/// Columns of the basis, and random vectors outside it.
const DIRECTIONS: usize = 64;

/// An estimate of the trace of a symmetric positive semidefinite `n × n` operator, `n ≥ 64`.
///
/// `seed` and `name` select the random vectors.
///
/// # Errors
/// [`Error::NonFinite`](crate::error::Error::NonFinite) for an operator with NaN or infinity.
///
/// # Panics
/// If the operator is smaller than that.
pub fn trace(operator: &dyn Operator, seed: u64, name: &str, par: Par) -> Result<f64> {
    let n = operator.rows();
    let random = |what: &str| random::gaussian::<f32>(n, DIRECTIONS, seed, &format!("{name} trace {what}"));
    let image = operator.apply(random("basis").as_ref(), par);
    let (basis, _) = dense::thin_qr("the image of a block", dense::to_f64(image.as_ref()), par)?;
    let basis = dense::to_f32(basis.as_ref());
    let (outside, _) = project_out(random("probes"), basis.as_ref(), par);
    let inside = quadratic_forms(operator, &basis, par);
    let rest = quadratic_forms(operator, &outside, par) / DIRECTIONS as f64;
    Ok(inside + rest)
}

/// The sum of `hᵀ M h` over the columns of a block.
fn quadratic_forms(operator: &dyn Operator, block: &Mat<f32>, par: Par) -> f64 {
    let image = operator.apply(block.as_ref(), par);
    let products = |a: MatRef<'_, f32>, b: MatRef<'_, f32>| {
        let columns = a.col_iter().zip(b.col_iter());
        columns.flat_map(|(a, b)| a.iter().zip(b.iter())).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    products(block.as_ref(), image.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use quickcheck::quickcheck;

    quickcheck! {
        /// Within six standard errors of the trace, for spectra that decay: at four, one run of the tests in a hundred fails.
        fn agrees_with_the_diagonal(size: u8, power: u8, seed: u64) -> bool {
            let size = usize::from(size) + 200;
            let power = 0.5 + f64::from(power % 4) / 4.0;
            let vectors = dense::to_f32(crate::oracle::orthonormal(size, size, seed, "basis").as_ref());
            let value = |i: usize| (i as f64 + 1.0).powf(-power);
            let scaled = Mat::from_fn(size, size, |i, j| vectors[(i, j)] * value(j) as f32);
            let matrix = dense::product(scaled.as_ref(), vectors.transpose(), Par::Seq);
            let exact: f64 = (0..size).map(value).sum();
            let outside: f64 = (DIRECTIONS / 2..size).map(|i| value(i).powi(2)).sum();
            let standard_error = (2.0 / DIRECTIONS as f64 * outside).sqrt();
            let found = trace(&matrix.as_ref(), seed, "layer", Par::Seq).unwrap();
            (found - exact).abs() < 6.0 * standard_error + 1e-4 * exact
        }
    }

    /// The trace is exact if the basis spans the whole image.
    #[test]
    fn is_exact_for_low_rank() {
        let factor = random::gaussian::<f32>(300, 20, 1, "factor");
        let matrix = dense::product(factor.as_ref(), factor.transpose(), Par::Seq);
        let exact = f64::from(factor.squared_norm_l2());
        let found = trace(&matrix.as_ref(), 0, "layer", Par::Seq).unwrap();
        assert!((found - exact).abs() < 1e-5 * exact, "{found} in place of {exact}");
    }
}
