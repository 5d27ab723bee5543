//! The constraints between pre-training and fine-tuning activations, and what they make of a site.
//!
//! All constraints are quadratic in the update `Δ`, so together they have one closed form (method.md, "Constraints"):
//!
//! ```text
//! Δ = W (K − C) (C + ρ_p S + λ I)⁻¹
//! ```
//!
//! Everything to the right of `W` depends on activations alone. [`Constraint`] holds it as factors that can be
//! applied to a thin block, computed once per site in f64 and shared, in f32, by all weights of the site. Neither `Δ` nor
//! the inverse is ever formed. Ranks, and how a decomposition uses this, are elsewhere.

mod classes;
mod tokens;
mod transport;

pub use classes::token_classes;
pub use tokens::TokenConstraint;

use crate::dense;
use crate::error::{Error, Result};
use crate::moments::Moments;
use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place};
use faer::{Accum, Col, Mat, MatMut, MatRef, Par};

/// How fine-tuning activations `x` and pre-training activations `z` correspond (method.md, "Constraints").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Coupling {
    /// `z` and `x` are independent; only their means align.
    #[default]
    Uncorrelated,
    /// `z` is the least-moved linear image of `x` that has the source statistics.
    Transport,
    /// Row i of both files is the same input.
    Paired,
}

/// The norm in which an update is cut to low rank (method.md, "Decomposition").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Norm {
    /// What the layer's output feels, `E|(Δ − BA) x|² = |(Δ − BA) F|²_F` with `F Fᵀ = C + λ I`.
    #[default]
    Activations,
    /// The Frobenius norm of the update itself.
    Weights,
}

/// Which constraints, and how much each of them counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// How the two kinds of activations correspond.
    pub coupling: Coupling,
    /// Weight `ρ_p` of the preservation of pre-training inputs.
    pub preserve: f64,
    /// Damping `ρ`: every `λ` is `ρ` times the mean eigenvalue of the matrix that it damps.
    pub ridge: f64,
}

/// What was measured at a site.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// Fine-tuning activations.
    pub target: &'a Moments,
    /// Pre-training activations. Without them the source is isotropic about the target mean.
    pub source: Option<&'a Moments>,
    /// Measured cross moment `E[z xᵀ]`, `d × d`: what [`Coupling::Paired`] needs.
    pub cross: Option<MatRef<'a, f64>>,
}

/// The constraints of one site, factored.
#[derive(Debug)]
pub struct Constraint {
    /// `C`.
    second_moment: Mat<f32>,
    /// `K − C`.
    change: Mat<f32>,
    /// Lower `G` with `G Gᵀ = C + ρ_p S + λ I`.
    denominator: Mat<f32>,
    /// Lower `F` with `F Fᵀ = C + λ I`, where that is not `G`.
    metric: Option<Mat<f32>>,
    damping: f64,
    frechet_distance: Option<f64>,
}

/// What the constraints of a site do to thin blocks, `F` being the identity in [`Norm::Weights`].
pub trait SiteOperator {
    /// Numbers per activation, `d`.
    fn width(&self) -> usize;
    /// `(K − C) (C + ρ_p S + λI)⁻¹ F V` for a thin block `V (d × k)`.
    fn apply(&self, norm: Norm, block: MatRef<'_, f32>, par: Par) -> Mat<f32>;
    /// The transpose of [`Self::apply`].
    fn apply_transpose(&self, norm: Norm, block: MatRef<'_, f32>, par: Par) -> Mat<f32>;
    /// Turns right singular vectors of `Δ F`, the columns of `V`, into those row vectors of `A`, as columns, that `V` stands
    /// for: `F⁻ᵀ V`, in place.
    fn leave_norm(&self, norm: Norm, block: MatMut<'_, f32>, par: Par);
    /// `aᵀ C a = E (aᵀ x)²` for every column `a` of a thin block.
    fn activation_energy(&self, block: MatRef<'_, f32>, par: Par) -> Vec<f64>;
    /// `tr(W C Wᵀ) = E|W x|²`, the mean square of the layer's output, for `W (m × d)`.
    fn output_energy(&self, weight: MatRef<'_, f32>, par: Par) -> f64;
    /// `C`, where it is a matrix whose products with a weight are dear.
    fn second_moment(&self) -> Option<MatRef<'_, f32>>;
}

/// Each failure of a factorization multiplies the relative damping by this …
const DAMPING_STEP: f64 = 10.0;
/// … as long as it stays at or below this.
const DAMPING_LIMIT: f64 = 1.0;

/// A covariance below this share of the second moment is the rounding error of `C − μμᵀ`, since Gram matrices accumulate
/// in f32 within a block.
pub(crate) const RESOLUTION: f64 = 4.0 * f32::EPSILON as f64;

impl Constraint {
    /// Factors the constraints of a site. `O(d³)` operations in f64.
    ///
    /// # Errors
    /// [`Error::NoRows`]; [`Error::Shape`] for statistics of different widths; [`Error::NoVariation`] for activations that are all
    /// zero or whose squares are too small for f32, or all equal where the coupling needs a covariance; [`Error::NonFinite`] where
    /// their squares are too large; [`Error::MissingSource`] for [`Coupling::Paired`] without a cross
    /// moment; [`Error::NotPositiveDefinite`] when even the largest damping does not help.
    pub fn new(evidence: Evidence<'_>, terms: Terms, par: Par) -> Result<Self> {
        with_ladder(terms.ridge, |damping| Self::with_damping(evidence, terms, damping, par))
    }

    /// `None` if a factorization failed with this damping.
    fn with_damping(evidence: Evidence<'_>, terms: Terms, ridge: f64, par: Par) -> Result<Option<Self>> {
        let mean = evidence.target.mean()?;
        let second = evidence.target.second_moment()?;
        let width = mean.nrows();
        if !second.trace_mean().is_finite() {
            return Err(Error::NonFinite { what: "second moment of the activations" });
        }
        // Squares of smaller numbers lose their digits in f32, and then vanish.
        if second.trace_mean() < f64::from(f32::MIN_POSITIVE) {
            let is_zero = evidence.target.abs_max().iter().all(|&value| value == 0.0);
            let tiny = "the squares of the activations are too small for f32";
            return Err(Error::NoVariation { what: if is_zero { "all activations are zero" } else { tiny } });
        }
        let variance = second.trace_mean() - mean.squared_norm_l2() / width as f64;
        let source = evidence.source.map(|source| Source::measured(source, width, ridge)).transpose()?;
        let source_mean = source.as_ref().map_or(&mean, |source| &source.mean);

        let mut frechet_distance = None;
        let mut change = match terms.coupling {
            Coupling::Uncorrelated => source_mean * mean.transpose(),
            Coupling::Transport => {
                if variance <= RESOLUTION * second.trace_mean() {
                    return Err(Error::NoVariation { what: "all rows of activations are equal" });
                }
                let covariance = &second - &mean * mean.transpose();
                let covariances = source.as_ref().map(|source| source.covariance.as_ref());
                let Some(moved) = transport::transport(covariance, covariances, ridge, par)? else {
                    return Ok(None);
                };
                if let (Some(source), Some(overlap)) = (&source, moved.overlap) {
                    let traces = width as f64 * ((1.0 + ridge) * variance + source.covariance.trace_mean());
                    let square = (&mean - source_mean).squared_norm_l2() + traces - 2.0 * overlap;
                    frechet_distance = Some(square.max(0.0).sqrt());
                }
                moved.cross + source_mean * mean.transpose()
            }
            Coupling::Paired => evidence.cross.ok_or(Error::MissingSource)?.to_owned(),
        };
        change -= &second;
        let change = to_f32("cross moment of the activations", change)?;

        let mut damped = second.clone();
        damped.add_to_diagonal(ridge * second.trace_mean());
        let second_moment = to_f32("second moment of the activations", second)?;
        let (denominator, metric) = if terms.preserve > 0.0 {
            let mut denominator = damped.clone();
            denominator += source_mean * source_mean.transpose() * faer::Scale(terms.preserve);
            match &source {
                Some(source) => denominator += &source.covariance * faer::Scale(terms.preserve),
                None => denominator.add_to_diagonal(terms.preserve * variance),
            }
            (denominator, Some(damped))
        } else {
            (damped, None)
        };
        let Some(denominator) = dense::cholesky(denominator, par) else { return Ok(None) };
        let denominator = to_f32("constraints of the site", denominator)?;
        let metric = match metric {
            None => None,
            Some(metric) => match dense::cholesky(metric, par) {
                Some(metric) => Some(to_f32("metric of the activations", metric)?),
                None => return Ok(None),
            },
        };
        Ok(Some(Self { second_moment, change, denominator, metric, damping: ridge, frechet_distance }))
    }

    /// Bytes that [`Self::new`] needs at its peak for a site of width `d`, and bytes that its result holds.
    ///
    /// The peak is that of the eigendecomposition, where there is one: with its scratch of `3 d²` numbers it stands beside
    /// the second moment, the matrix and its eigenvectors, and with a measured source beside three further matrices.
    pub fn memory(width: u64, terms: Terms, measured_source: bool) -> (u64, u64) {
        let square = width * width;
        let kept_source = u64::from(measured_source);
        let preserved = u64::from(terms.preserve > 0.0);
        let double = match terms.coupling {
            Coupling::Transport if measured_source => 10,
            Coupling::Transport => 7,
            Coupling::Uncorrelated | Coupling::Paired => 3 + kept_source + preserved,
        };
        (8 * double * square, 4 * (3 + preserved) * square)
    }

    /// The relative damping that was used: the one asked for, or the first of the ladder that worked.
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// Fréchet distance between Gaussians with the means and the damped covariances of fine-tuning and pre-training
    /// activations, in their units: `(|μ − μ_z|² + tr Σ̃ + tr Σ̃_z − 2 tr (Σ̃^½ Σ̃_z Σ̃^½)^½)^½`. The last term is a by-product of
    /// [`Coupling::Transport`] with measured pre-training activations; otherwise there is `None`. (Dowson and Landau 1982.)
    pub fn frechet_distance(&self) -> Option<f64> {
        self.frechet_distance
    }
}

impl SiteOperator for Constraint {
    fn width(&self) -> usize {
        self.change.nrows()
    }

    fn apply(&self, norm: Norm, block: MatRef<'_, f32>, par: Par) -> Mat<f32> {
        let denominator = self.denominator.as_ref();
        let mut x = match (norm, &self.metric) {
            // G⁻¹ F = I
            (Norm::Activations, None) => block.to_owned(),
            (Norm::Activations, Some(metric)) => {
                let mut x = dense::thin_product(metric.as_ref(), block, par);
                solve_lower_triangular_in_place(denominator, x.as_mut(), par);
                x
            }
            (Norm::Weights, _) => {
                let mut x = block.to_owned();
                solve_lower_triangular_in_place(denominator, x.as_mut(), par);
                x
            }
        };
        solve_upper_triangular_in_place(denominator.transpose(), x.as_mut(), par);
        dense::thin_product(self.change.as_ref(), x.as_ref(), par)
    }

    fn apply_transpose(&self, norm: Norm, block: MatRef<'_, f32>, par: Par) -> Mat<f32> {
        let denominator = self.denominator.as_ref();
        let mut x = dense::thin_product(self.change.transpose(), block, par);
        solve_lower_triangular_in_place(denominator, x.as_mut(), par);
        match (norm, &self.metric) {
            (Norm::Activations, None) => x,
            (Norm::Activations, Some(metric)) => {
                solve_upper_triangular_in_place(denominator.transpose(), x.as_mut(), par);
                dense::thin_product(metric.transpose(), x.as_ref(), par)
            }
            (Norm::Weights, _) => {
                solve_upper_triangular_in_place(denominator.transpose(), x.as_mut(), par);
                x
            }
        }
    }

    fn leave_norm(&self, norm: Norm, block: MatMut<'_, f32>, par: Par) {
        if norm == Norm::Activations {
            let metric = self.metric.as_ref().unwrap_or(&self.denominator);
            solve_upper_triangular_in_place(metric.transpose(), block, par);
        }
    }

    fn activation_energy(&self, block: MatRef<'_, f32>, par: Par) -> Vec<f64> {
        let image = dense::thin_product(self.second_moment.as_ref(), block, par);
        (0..block.ncols()).map(|j| dot(block.col(j).as_mat(), image.col(j).as_mat())).collect()
    }

    fn second_moment(&self) -> Option<MatRef<'_, f32>> {
        Some(self.second_moment.as_ref())
    }

    fn output_energy(&self, weight: MatRef<'_, f32>, par: Par) -> f64 {
        /// Rows of `W` at a time, so that the product is never held whole.
        const STRIP: usize = 512;
        let mut strip = Mat::zeros(STRIP.min(weight.nrows()), weight.ncols());
        let mut energy = 0.0;
        for first in (0..weight.nrows()).step_by(STRIP) {
            let rows = weight.subrows(first, STRIP.min(weight.nrows() - first));
            let mut image = strip.as_mut().subrows_mut(0, rows.nrows());
            matmul(image.as_mut(), Accum::Replace, rows, self.second_moment.as_ref(), 1.0, par);
            energy += dot(rows, image.as_ref());
        }
        energy
    }
}

/// `C' = C + λ I` and its lower Cholesky factor, with the first damping of the ladder that works, and that damping.
///
/// # Errors
/// As [`Constraint::new`].
pub(crate) fn damped_second_moment(
    moments: &Moments,
    ridge: f64,
    par: Par,
) -> Result<(Mat<f32>, Mat<f32>, f64)> {
    let second = moments.second_moment()?;
    if second.trace_mean() <= 0.0 {
        return Err(Error::NoVariation { what: "all activations are zero" });
    }
    with_ladder(ridge, |damping| {
        let mut damped = second.clone();
        damped.add_to_diagonal(damping * second.trace_mean());
        let Some(factor) = dense::cholesky(damped.clone(), par) else { return Ok(None) };
        let matrix = to_f32("second moment of the activations", damped)?;
        Ok(Some((matrix, to_f32("factor of the second moment", factor)?, damping)))
    })
}

/// The first result along the ladder of dampings.
fn with_ladder<T>(ridge: f64, attempt: impl Fn(f64) -> Result<Option<T>>) -> Result<T> {
    let mut damping = ridge;
    loop {
        if let Some(result) = attempt(damping)? {
            return Ok(result);
        }
        if damping * DAMPING_STEP > DAMPING_LIMIT {
            return Err(Error::NotPositiveDefinite { what: "second moment of the activations", damping });
        }
        damping *= DAMPING_STEP;
    }
}

/// Measured statistics of pre-training activations.
struct Source {
    mean: Col<f64>,
    /// Damped.
    covariance: Mat<f64>,
}

impl Source {
    fn measured(moments: &Moments, width: usize, ridge: f64) -> Result<Self> {
        if moments.width() != width {
            let (expected, found) = (width, moments.width());
            return Err(Error::Shape { what: "width of the source activations", expected, found });
        }
        let mean = moments.mean()?;
        let mut covariance = moments.second_moment()?;
        covariance -= &mean * mean.transpose();
        covariance.add_to_diagonal(ridge * covariance.trace_mean());
        Ok(Self { mean, covariance })
    }
}

/// What damping needs to know and to do.
trait Damped {
    /// Mean eigenvalue: `tr M / d`.
    fn trace_mean(&self) -> f64;
    /// `M + λ I`.
    fn add_to_diagonal(&mut self, lambda: f64);
}

impl Damped for Mat<f64> {
    fn trace_mean(&self) -> f64 {
        self.diagonal().column_vector().iter().sum::<f64>() / self.nrows() as f64
    }

    fn add_to_diagonal(&mut self, lambda: f64) {
        for i in 0..self.nrows() {
            self[(i, i)] += lambda;
        }
    }
}

fn to_f32(what: &'static str, matrix: Mat<f64>) -> Result<Mat<f32>> {
    let single = Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| matrix[(i, j)] as f32);
    dense::check_finite(what, single.as_ref())?;
    Ok(single)
}

/// Sum of the products of corresponding entries, in f64.
fn dot(a: MatRef<'_, f32>, b: MatRef<'_, f32>) -> f64 {
    let column = |j: usize| a.col(j).iter().zip(b.col(j).iter()).map(|(a, b)| f64::from(*a) * f64::from(*b));
    (0..a.ncols()).map(|j| column(j).sum::<f64>()).sum()
}

#[cfg(test)]
mod tests;
