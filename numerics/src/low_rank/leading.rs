//! The leading singular triplets of a matrix, by a dense decomposition of its Gram matrix.

use crate::dense;
use crate::error::Result;
use faer::{Mat, MatRef, Par};

const WHAT: &str = "the update";

/// `U (m × k)`, singular values and `V (n × k)` of a matrix with `n ≤ m`: from the eigenvectors of `MᵀM`, in at most half
/// the time of a singular value decomposition.
///
/// Eigenvalues of `MᵀM` are squares, so triplets below `√ε₆₄ σ₁` are not separated. That is below the rounding of f32, and the small
/// decomposition of `M V` makes the result exact on the space of the eigenvectors.
pub(super) fn leading(matrix: MatRef<'_, f64>, k: usize, par: Par) -> Result<(Mat<f64>, Vec<f64>, Mat<f64>)> {
    dense::check_finite(WHAT, matrix)?;
    let n = matrix.ncols();
    let gram = dense::product(matrix.transpose(), matrix, par);
    let (_, vectors) = dense::self_adjoint_eigen(WHAT, gram.as_ref(), par)?;
    on_space(matrix, vectors.subcols(n - k, k), par)
}

/// The singular triplets of a matrix on the space of `k ≤ m` orthonormal columns, in descending order.
pub(super) fn on_space(
    matrix: MatRef<'_, f64>,
    basis: MatRef<'_, f64>,
    par: Par,
) -> Result<(Mat<f64>, Vec<f64>, Mat<f64>)> {
    let (q, r) = dense::thin_qr(WHAT, dense::product(matrix, basis, par), par)?;
    let small = dense::thin_svd(WHAT, r.as_ref(), par)?;
    Ok((
        dense::product(q.as_ref(), small.u.as_ref(), par),
        small.s,
        dense::product(basis, small.v.as_ref(), par),
    ))
}
