//! The singular values of the product of a pair of factors.

use super::Factors;
use crate::dense;
use crate::error::Result;
use faer::{Mat, Par};

impl Factors {
    /// Singular values of `B A`, as many as its rank, descending. In f64. The product is not formed: with `B = Q_b R_b` and `Aᵀ = Q_a
    /// R_a` they are those of `R_b R_aᵀ`, whose sides are at most the rank.
    ///
    /// # Errors
    /// [`Error::NonFinite`](crate::error::Error::NonFinite) for factors with NaN or infinity,
    /// [`Error::NoConvergence`](crate::error::Error::NoConvergence).
    pub fn singular_values(&self) -> Result<Vec<f64>> {
        let up = Mat::from_fn(self.b.nrows(), self.b.ncols(), |i, j| f64::from(self.b[(i, j)]));
        let down = Mat::from_fn(self.a.ncols(), self.a.nrows(), |i, j| f64::from(self.a[(j, i)]));
        let (up, down) = (reduced("the up matrix", up)?, reduced("the down matrix", down)?);
        let core = dense::product(up.as_ref(), down.transpose(), Par::Seq);
        Ok(dense::thin_svd("the factors", core.as_ref(), Par::Seq)?.s)
    }
}

/// A matrix with the same inner products between its columns, and no more rows than columns.
fn reduced(what: &'static str, matrix: Mat<f64>) -> Result<Mat<f64>> {
    if matrix.nrows() < matrix.ncols() {
        dense::check_finite(what, matrix.as_ref())?;
        return Ok(matrix);
    }
    Ok(dense::thin_qr(what, matrix, Par::Seq)?.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::random::gaussian;
    use quickcheck::quickcheck;

    quickcheck! {
        /// Against the singular values of the product, for ranks below and above the sides of the layer.
        fn agrees_with_the_product(outputs: u8, inputs: u8, rank: u8, seed: u64) -> bool {
            let (outputs, inputs) = (usize::from(outputs % 12) + 1, usize::from(inputs % 12) + 1);
            let rank = usize::from(rank % 16) + 1;
            let a = gaussian::<f32>(rank, inputs, seed, "a");
            let b = gaussian::<f32>(outputs, rank, seed, "b");
            let product = dense::to_f64((&b * &a).as_ref());
            let product = dense::thin_svd("product", product.as_ref(), Par::Seq).unwrap().s;
            let found = Factors { a, b }.singular_values().unwrap();
            let tolerance = 1e-4 * product[0];
            product.iter().zip(&found).all(|(wanted, found)| (wanted - found).abs() < tolerance)
                && found.iter().skip(product.len()).all(|rest| *rest < tolerance)
                && found.len() >= rank.min(outputs).min(inputs)
        }
    }

    #[test]
    fn values_that_are_not_finite_are_refused() {
        let pair = |value| Factors { a: Mat::full(1, 3, value), b: Mat::full(2, 1, 1.0) };
        let refused = Err(Error::NonFinite { what: "the down matrix" });
        assert_eq!(pair(f32::NAN).singular_values(), refused);
        assert!(pair(2.0).singular_values().is_ok());
    }
}
