//! The linear map between two Gaussians that moves least.
//!
//! `T` is the symmetric positive definite map with `T Σ_x T = Σ_z` (Olkin & Pukelsheim 1982; Gelbrich 1990). Being unique, it
//! may be computed from any square root of `Σ_x`. With the Cholesky factor, `Σ_x = R Rᵀ`, one root is enough:
//! `T = R⁻ᵀ (Rᵀ Σ_z R)^½ R⁻¹`.
//!
//! Roots of narrow matrices come from an eigendecomposition. Those of wide ones come from a reduction to blocks and partial fractions,
//! see [`crate::dense::BlockTridiagonal`], wherever that gives the same result.

mod blocks;
mod eigen;
mod roots;
#[cfg(test)]
mod tests;

use crate::error::Result;
use faer::{Mat, MatRef, Par};

/// The result of the transport.
#[derive(Debug)]
pub(super) struct Transported {
    /// `T Σ`, the covariance between the transported and the given activations.
    pub(super) cross: Mat<f64>,
    /// `tr T Σ̃ = tr (Σ̃^½ Σ_z Σ̃^½)^½`, with the damped covariance `Σ̃`: the cross term of the Fréchet distance. Only with a measured
    /// source.
    pub(super) overlap: Option<f64>,
}

/// A covariance and its damping: what is moved.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    /// `Σ`.
    pub(super) covariance: MatRef<'a, f64>,
    /// `λ`, so that `Σ̃ = Σ + λ I`.
    pub(super) lambda: f64,
}

impl Target<'_> {
    /// `Σ̃`.
    fn damped(&self) -> Mat<f64> {
        let mut damped = self.covariance.to_owned();
        for i in 0..damped.nrows() {
            damped[(i, i)] += self.lambda;
        }
        damped
    }
}

/// Matrices from this width on are reduced to blocks; narrower ones are decomposed in less time.
const WIDE: usize = 768;

/// With `Σ_z = v I`, `T = √v (Σ + λI)^-½`: a function of the eigenvalues. `None` if `Σ̃` is not positive definite.
/// An eigenvalue of `Σ` counts as zero if it is below `noise`, the relative rounding error of the sums, times the
/// variances of the channels in its eigenvector: `T` is largest there.
///
/// # Errors
/// The errors of the decomposition.
pub(super) fn isotropic(
    target: Target<'_>,
    variance: f64,
    noise: f64,
    par: Par,
) -> Result<Option<Transported>> {
    if target.covariance.nrows() >= WIDE {
        match blocks::isotropic(target, variance, noise, par)? {
            Ok(cross) => return Ok(Some(Transported { cross, overlap: None })),
            Err(reason) => report_fallback("covariance of the activations", reason),
        }
    }
    eigen::isotropic(target, variance, noise, par)
}

/// With a measured `Σ_z`, whose eigenvalues are at least `least`, apart from rounding. `None` if `Σ̃` is not positive definite.
///
/// # Errors
/// The errors of the decomposition.
pub(super) fn measured(
    target: Target<'_>,
    source: MatRef<'_, f64>,
    least: f64,
    par: Par,
) -> Result<Option<Transported>> {
    let Some(problem) = eigen::Measured::new(target, source, par) else { return Ok(None) };
    if target.covariance.nrows() >= WIDE {
        match blocks::measured(&problem, target, least * target.lambda, par)? {
            Ok(transported) => return Ok(Some(transported)),
            Err(reason) => report_fallback("transported covariance", reason),
        }
    }
    problem.by_eigenvalues(target, par).map(Some)
}

fn report_fallback(what: &str, reason: &str) {
    tracing::info!(what, "fallback to an eigendecomposition: {reason}");
}
