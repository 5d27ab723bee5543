//! The transport from a reduction to blocks and partial fractions, where that gives the result of the eigendecomposition.

use super::eigen::Measured;
use super::roots::inverse_root;
use super::{Target, Transported};
use crate::dense::{self, BlockTridiagonal, Fraction};
use crate::error::Result;
use faer::{Mat, MatRef, Par};

/// A result, or the reason why an eigendecomposition is needed.
type Attempt<T> = Result<std::result::Result<T, &'static str>>;

/// Relative error of a root.
const ERROR: f64 = 1e-10;

/// Bounds of the eigenvalues are relaxed by this factor, for rounding.
const MARGIN: f64 = 0.5;

/// `T Σ = √v Σ (Σ + λI)^-½`. See [`super::isotropic`].
///
/// # Errors
/// The errors of the reduction.
pub(super) fn isotropic(target: Target<'_>, variance: f64, noise: f64, par: Par) -> Attempt<Mat<f64>> {
    let Target { covariance, lambda } = target;
    let live = || covariance.diagonal().column_vector().iter().copied().filter(|variance| *variance > 0.0);
    let quietest = live().fold(f64::INFINITY, f64::min);
    let negligible = if quietest.is_finite() { noise * quietest } else { 0.0 };
    let reduced =
        BlockTridiagonal::reduce("covariance of the activations", covariance.to_owned(), negligible, par)?;
    let least = MARGIN * lambda;
    if !reduced.is_above(-least) {
        return Ok(Err("the covariance has negative eigenvalues"));
    }
    if !nothing_is_noise(target, &reduced, noise, par)? {
        return Ok(Err("some eigenvalues are near the rounding errors of the sums"));
    }
    let Some(roots) = inverse_root(least, reduced.bound() + lambda, ERROR) else {
        return Ok(Err("the covariance is too ill-conditioned"));
    };
    // x / √(x + λ), which is zero for x = 0.
    let scale = variance.sqrt();
    let constant = scale * roots.iter().map(|root| root.coefficient).sum::<f64>();
    let fraction = |Fraction { shift, coefficient }: Fraction| {
        let shift = shift + lambda;
        Fraction { shift, coefficient: -scale * coefficient * shift }
    };
    let fractions: Vec<Fraction> = roots.into_iter().map(fraction).collect();
    let cross = reduced.partial_fractions(constant, &fractions, par)?;
    Ok(cross.ok_or("a shifted covariance is not positive definite"))
}

/// True if no eigenvalue of the reduced covariance counts as zero, or if those that may count as zero do not matter.
///
/// # Errors
/// The errors of the decomposition of a block.
fn nothing_is_noise(target: Target<'_>, reduced: &BlockTridiagonal, noise: f64, par: Par) -> Result<bool> {
    /// Share of the norm of the result.
    const SHARE: f64 = 1e-5;
    let Target { covariance, lambda } = target;
    let variances = || covariance.diagonal().column_vector().iter().copied();
    let loudest = variances().fold(0.0, f64::max);
    // The variances of the channels in an eigenvector are at most those of the loudest channel.
    let most = noise * loudest;
    if noise == 0.0 || reduced.is_above(most) {
        return Ok(true);
    }
    if reduced.order() == covariance.nrows() && is_above_noise(covariance, noise, par) {
        return Ok(true);
    }
    // An eigenvalue x contributes x / √(x + λ), at most √2 x / √λ. The squared norm of all of them is at least (Σ x)² / Σ (x + λ).
    let trace = variances().sum::<f64>();
    let norm = trace / (trace + lambda * reduced.order() as f64).sqrt();
    let count = reduced.count_below(most)?;
    let limit = SHARE * norm * (lambda / (2.0 * count as f64)).sqrt();
    Ok(reduced.is_above(-limit) && reduced.count_below(limit.min(most))? == count)
}

/// True if `wᵀ Σ w > noise · wᵀ D w` for every vector `w` of channels that vary, with `D = diag Σ`.
fn is_above_noise(covariance: MatRef<'_, f64>, noise: f64, par: Par) -> bool {
    let mut rest = covariance.to_owned();
    for i in 0..rest.nrows() {
        if rest[(i, i)] > 0.0 {
            rest[(i, i)] *= 1.0 - noise;
        } else {
            // Such a channel is zero in the result; if it is not zero here, this is not positive definite.
            rest[(i, i)] = f64::MIN_POSITIVE;
        }
    }
    dense::cholesky(rest, par).is_some()
}

/// `T Σ = R⁻ᵀ (Rᵀ Σ_z R)^½ R⁻¹ Σ`. The eigenvalues of `Rᵀ Σ_z R` are at least `least`. See [`super::measured`].
///
/// # Errors
/// The errors of the reduction.
pub(super) fn measured(problem: &Measured, target: Target<'_>, least: f64, par: Par) -> Attempt<Transported> {
    let reduced = BlockTridiagonal::reduce("transported covariance", problem.inner.clone(), 0.0, par)?;
    let least = MARGIN * least;
    if !reduced.is_above(least) {
        return Ok(Err("rounding errors hide its least eigenvalues"));
    }
    let Some(roots) = inverse_root(least, reduced.bound(), ERROR) else {
        return Ok(Err("it is too ill-conditioned"));
    };
    // x / √x
    let constant = roots.iter().map(|root| root.coefficient).sum::<f64>();
    let fractions: Vec<Fraction> = roots
        .into_iter()
        .map(|Fraction { shift, coefficient }| Fraction { shift, coefficient: -coefficient * shift })
        .collect();
    let Some(root) = reduced.partial_fractions(constant, &fractions, par)? else {
        return Ok(Err("a shifted covariance is not positive definite"));
    };
    drop(reduced);
    let overlap = root.diagonal().column_vector().iter().sum();
    let mut right = target.covariance.to_owned();
    dense::solve_lower(problem.root.as_ref(), right.as_mut(), par);
    let mut cross = dense::product(root.as_ref(), right.as_ref(), par);
    drop((root, right));
    dense::solve_upper(problem.root.transpose(), cross.as_mut(), par);
    Ok(Ok(Transported { cross, overlap: Some(overlap) }))
}
