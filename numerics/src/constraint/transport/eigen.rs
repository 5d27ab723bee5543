//! The transport from eigendecompositions.

use super::{Target, Transported};
use crate::dense;
use crate::error::Result;
use faer::{Mat, MatRef, Par};

/// See [`super::isotropic`].
pub(super) fn isotropic(
    target: Target<'_>,
    variance: f64,
    noise: f64,
    par: Par,
) -> Result<Option<Transported>> {
    let Target { covariance, lambda } = target;
    let damped = target.damped();
    let (values, vectors) = dense::self_adjoint_eigen("covariance of the activations", damped.as_ref(), par)?;
    drop(damped);
    if values.iter().any(|value| *value <= 0.0) {
        return Ok(None);
    }
    let least: Vec<f64> = (0..values.len())
        .map(|j| {
            let variance = |i: usize| vectors[(i, j)].powi(2) * covariance[(i, i)];
            noise * (0..vectors.nrows()).map(variance).sum::<f64>()
        })
        .collect();
    let scaled = Mat::from_fn(vectors.nrows(), vectors.ncols(), |i, j| {
        let undamped = values[j] - lambda;
        let kept = if undamped > least[j] { undamped } else { 0.0 };
        vectors[(i, j)] * (variance / values[j]).sqrt() * kept
    });
    let cross = dense::product(scaled.as_ref(), vectors.transpose(), par);
    Ok(Some(Transported { cross, overlap: None }))
}

/// The problem with a measured source.
pub(super) struct Measured {
    /// `R`.
    pub(super) root: Mat<f64>,
    /// `Rᵀ Σ_z R`.
    pub(super) inner: Mat<f64>,
}

impl Measured {
    /// `None` if `Σ̃` is not positive definite.
    pub(super) fn new(target: Target<'_>, source: MatRef<'_, f64>, par: Par) -> Option<Self> {
        let root = dense::cholesky(target.damped(), par)?;
        let right = dense::product(source, root.as_ref(), par);
        let inner = dense::product(root.transpose(), right.as_ref(), par);
        Some(Self { root, inner })
    }

    /// The transport.
    ///
    /// # Errors
    /// The errors of the eigendecomposition.
    pub(super) fn by_eigenvalues(self, target: Target<'_>, par: Par) -> Result<Transported> {
        let Self { root, inner } = self;
        let (values, vectors) = dense::self_adjoint_eigen("transported covariance", inner.as_ref(), par)?;
        drop(inner);
        let overlap = values.iter().map(|value| value.max(0.0).sqrt()).sum();
        // T = Y Yᵀ with Y = R⁻ᵀ Q E^¼; rounding may leave a zero eigenvalue slightly negative.
        let mut y = Mat::from_fn(vectors.nrows(), vectors.ncols(), |i, j| {
            vectors[(i, j)] * values[j].max(0.0).sqrt().sqrt()
        });
        dense::solve_upper(root.transpose(), y.as_mut(), par);
        let right = dense::product(y.transpose(), target.covariance, par);
        let cross = dense::product(y.as_ref(), right.as_ref(), par);
        Ok(Transported { cross, overlap: Some(overlap) })
    }
}
