//! The result of a truncated singular value decomposition.

use faer::Mat;

/// Leading, or last, singular triplets of an operator.
#[derive(Clone, Debug)]
pub struct TruncatedSvd<T = f32> {
    /// Left singular vectors, `m × k`.
    pub u: Mat<T>,
    /// Singular values, descending.
    pub s: Vec<f64>,
    /// Right singular vectors, `n × k`.
    pub v: Mat<T>,
    /// Square of the Frobenius norm of the operator.
    pub energy: f64,
    /// True if `energy` is exact. Otherwise the energy outside the space that the method visited is an estimate.
    pub energy_exact: bool,
    /// Largest `‖M vᵢ − σᵢ uᵢ‖ / σ₁` or `‖Mᵀ uᵢ − σᵢ vᵢ‖ / σ₁`, where `σ₁` is the first of `s`. Computed with the operator or with the matrix
    /// that was formed from it; 0 for a dense decomposition.
    pub residual: f64,
}
