//! The linear map between two Gaussians that moves least.
//!
//! `T` is the symmetric positive definite map with `T Σ_x T = Σ_z` (Olkin & Pukelsheim 1982; Gelbrich 1990). Being unique, it
//! may be computed from any square root of `Σ_x`. With the Cholesky factor, `Σ_x = R Rᵀ`, one eigendecomposition is enough:
//! `T = R⁻ᵀ (Rᵀ Σ_z R)^½ R⁻¹`.

use crate::dense;
use crate::error::Result;
use faer::{Mat, MatRef, Par};

/// The result of the transport.
pub(super) struct Transported {
    /// `T Σ`, the covariance between the transported and the given activations.
    pub(super) cross: Mat<f64>,
    /// `tr T Σ̃ = tr (Σ̃^½ Σ_z Σ̃^½)^½`, with the damped covariance `Σ̃`: the cross term of the Fréchet distance. Only with a measured
    /// source.
    pub(super) overlap: Option<f64>,
}

/// With `Σ_z = v I`, `T = √v (Σ + λI)^-½`: a function of the eigenvalues. `damped` is `Σ̃ = Σ + λI`; `None` if it is not positive
/// definite. An eigenvalue of `Σ` counts as zero if it is below `noise`, the relative rounding error of the sums, times the
/// variances of the channels in its eigenvector: `T` is largest there.
///
/// # Errors
/// The errors of the eigendecomposition.
pub(super) fn isotropic(
    damped: Mat<f64>,
    lambda: f64,
    variance: f64,
    noise: f64,
    par: Par,
) -> Result<Option<Transported>> {
    let (values, vectors) = dense::self_adjoint_eigen("covariance of the activations", damped.as_ref(), par)?;
    if values.iter().any(|value| *value <= 0.0) {
        return Ok(None);
    }
    let least: Vec<f64> = (0..values.len())
        .map(|j| {
            let variance = |i: usize| vectors[(i, j)].powi(2) * (damped[(i, i)] - lambda);
            noise * (0..vectors.nrows()).map(variance).sum::<f64>()
        })
        .collect();
    drop(damped);
    let scaled = Mat::from_fn(vectors.nrows(), vectors.ncols(), |i, j| {
        let undamped = values[j] - lambda;
        let kept = if undamped > least[j] { undamped } else { 0.0 };
        vectors[(i, j)] * (variance / values[j]).sqrt() * kept
    });
    let cross = dense::product(scaled.as_ref(), vectors.transpose(), par);
    Ok(Some(Transported { cross, overlap: None }))
}

/// With a measured `Σ_z`. `damped` is `Σ̃`; `None` if it is not positive definite.
///
/// # Errors
/// The errors of the eigendecomposition.
pub(super) fn measured(
    covariance: &Mat<f64>,
    damped: Mat<f64>,
    source: MatRef<'_, f64>,
    par: Par,
) -> Result<Option<Transported>> {
    let Some(root) = dense::cholesky(damped, par) else { return Ok(None) };
    let right = dense::product(source, root.as_ref(), par);
    let inner = dense::product(root.transpose(), right.as_ref(), par);
    drop(right);
    let (values, vectors) = dense::self_adjoint_eigen("transported covariance", inner.as_ref(), par)?;
    drop(inner);
    let overlap = values.iter().map(|value| value.max(0.0).sqrt()).sum();
    // T = Y Yᵀ with Y = R⁻ᵀ Q E^¼; rounding may leave a zero eigenvalue slightly negative.
    let mut y = Mat::from_fn(vectors.nrows(), vectors.ncols(), |i, j| {
        vectors[(i, j)] * values[j].max(0.0).sqrt().sqrt()
    });
    dense::solve_upper(root.transpose(), y.as_mut(), par);
    let right = dense::product(y.transpose(), covariance.as_ref(), par);
    let cross = dense::product(y.as_ref(), right.as_ref(), par);
    Ok(Some(Transported { cross, overlap: Some(overlap) }))
}
