//! The constraints of a site whose activations are rows of numbers, factored.

use super::build::Site;
use super::energy::{dot, energy_of_mean};
use super::operands::Operands;
use super::statistics::{Statistics, is_near_noise};
use super::{Coupling, Dampings, Evidence, Norm, SiteOperator, Terms, cholesky};
use crate::dense;
use crate::error::{Error, Result};
use faer::{Col, ColRef, Mat, MatMut, MatRef, Par};

/// The constraints of one site, factored.
#[derive(Debug)]
pub struct Constraint {
    /// `μ`.
    pub(super) mean: Col<f64>,
    /// `Σ = C − μμᵀ`. Energies are sums of those of `Σ` and of `μ`: in `C` a large mean would hide the variation.
    /// `None` if it is the negative of the change, in f32.
    pub(super) covariance: Option<Mat<f32>>,
    pub(super) matrices: Matrices,
    pub(super) dampings: Dampings,
    pub(super) frechet_distance: Option<f64>,
}

/// The other matrices of a site.
#[derive(Debug)]
pub(super) enum Matrices {
    Single(Operands<f32>),
    /// Where the damping is small.
    Double(Operands<f64>),
}

impl Constraint {
    /// Factors the constraints of a site. `O(d³)` operations.
    ///
    /// If the ridge is small, eigenvalues below the rounding errors of the sums are removed from the covariances first, which costs an
    /// eigendecomposition. Otherwise the update would be amplified noise in directions that no row has.
    ///
    /// # Errors
    /// [`Error::Option`] for terms outside their ranges; [`Error::NoRows`]; [`Error::Shape`] for statistics of different widths;
    /// [`Error::NoVariation`] for activations that are all zero or whose squares are too small for f32, or all equal;
    /// [`Error::NonFinite`] where their squares are too large; [`Error::MissingSource`] for [`Coupling::Paired`] without a measured
    /// change; [`Error::NotPositiveDefinite`] if even the largest damping does not help.
    pub fn new(evidence: Evidence<'_>, terms: Terms, par: Par) -> Result<Self> {
        terms.check()?;
        let width = evidence.target.width();
        if let Some(source) = evidence.source
            && source.width() != width
        {
            let (expected, found) = (width, source.width());
            return Err(Error::Shape { what: "width of the source activations", expected, found });
        }
        let statistics = || -> Result<(Statistics, Option<Statistics>)> {
            let of = |moments| Statistics::of(moments, par);
            Ok((of(evidence.target)?, evidence.source.map(of).transpose()?))
        };
        let (mut target, mut source) = statistics()?;
        target.check_variation(evidence.target)?;
        if !is_near_noise(terms.ridge, width) {
            let built = Site { evidence, target, source, range: None, terms }.build(par);
            // Rounding errors of the sums can also make a factorization fail.
            if !matches!(built, Err(Error::NotPositiveDefinite { .. })) {
                return built;
            }
            (target, source) = statistics()?;
        }
        let range = target.remove_noise(par)?;
        if let Some(source) = &mut source {
            source.remove_noise(par)?;
        }
        Site { evidence, target, source, range: Some(range), terms }.build(par)
    }

    /// Bytes that [`Self::new`] needs at its peak for a site of width `d`, and bytes that its result holds.
    ///
    /// The peak is at the eigendecomposition, if there is one: its scratch of `3 d²` numbers, the covariance, the matrix and its
    /// eigenvectors, and with a measured source three further matrices. Otherwise it is at the last factorization.
    pub fn memory(width: u64, terms: Terms, measured_source: bool) -> (u64, u64) {
        let near_noise = is_near_noise(terms.ridge, width as usize);
        let kept_source = u64::from(measured_source);
        let preserved = u64::from(terms.preserve > 0.0);
        // Beside the change, which is its negative otherwise.
        let covariance = u64::from(near_noise || measured_source || terms.coupling != Coupling::Uncorrelated);
        // Matrices in f32, or triangles in f64, which have the same size.
        let peak = match terms.coupling {
            Coupling::Transport if measured_source => 22,
            Coupling::Transport => 15,
            _ if near_noise => 14 + 2 * kept_source,
            Coupling::Uncorrelated | Coupling::Paired => 3 + covariance + kept_source + 2 * preserved,
        };
        let factored = if near_noise { 2 } else { 1 };
        let held = covariance + factored * (2 + preserved);
        let bytes = |matrices: u64| width.saturating_mul(width).saturating_mul(4 * matrices);
        (bytes(peak).saturating_add(cholesky::memory(width)), bytes(held))
    }

    /// `Σ`, divided by the sign that comes with it.
    fn signed_covariance(&self) -> (f64, MatRef<'_, f32>) {
        match (&self.covariance, &self.matrices) {
            (Some(covariance), _) => (1.0, covariance.as_ref()),
            (None, Matrices::Single(matrices)) => (-1.0, matrices.change()),
            (None, Matrices::Double(_)) => unreachable!("it is kept beside matrices in f64"),
        }
    }

    /// The relative dampings that were used.
    pub fn dampings(&self) -> Dampings {
        self.dampings
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
        self.mean.nrows()
    }

    fn apply(&self, norm: Norm, block: MatRef<'_, f32>, par: Par) -> Mat<f32> {
        match &self.matrices {
            Matrices::Single(matrices) => matrices.apply(norm, block, par),
            Matrices::Double(matrices) => matrices.apply(norm, block, par),
        }
    }

    fn apply_transpose(&self, norm: Norm, block: MatRef<'_, f32>, par: Par) -> Mat<f32> {
        match &self.matrices {
            Matrices::Single(matrices) => matrices.apply_transpose(norm, block, par),
            Matrices::Double(matrices) => matrices.apply_transpose(norm, block, par),
        }
    }

    fn leave_norm(&self, norm: Norm, block: MatMut<'_, f32>, par: Par) {
        match (norm, &self.matrices) {
            (Norm::Weights, _) => {}
            (Norm::Activations, Matrices::Single(matrices)) => matrices.leave_metric(block, par),
            (Norm::Activations, Matrices::Double(matrices)) => matrices.leave_metric(block, par),
        }
    }

    fn activation_energy(&self, block: MatRef<'_, f32>, par: Par) -> Vec<f64> {
        let (sign, covariance) = self.signed_covariance();
        // It is symmetric.
        let image = dense::thin_product(covariance.transpose(), block, par);
        let energy = |j: usize| {
            let varying = sign * dot(block.col(j).as_mat(), image.col(j).as_mat());
            varying + energy_of_mean(block.subcols(j, 1).transpose(), self.mean.as_ref())
        };
        (0..block.ncols()).map(energy).collect()
    }

    fn mean_and_covariance(&self) -> Option<(ColRef<'_, f64>, f64, MatRef<'_, f32>)> {
        let (sign, covariance) = self.signed_covariance();
        Some((self.mean.as_ref(), sign, covariance))
    }

    fn output_energy(&self, weight: MatRef<'_, f32>, par: Par) -> f64 {
        /// Rows of `W` at a time, so that the whole product is never in memory.
        const STRIP: usize = 512;
        let mut strip = Mat::zeros(STRIP.min(weight.nrows()), weight.ncols());
        let (sign, covariance) = self.signed_covariance();
        let mut energy = energy_of_mean(weight, self.mean.as_ref());
        for first in (0..weight.nrows()).step_by(STRIP) {
            let rows = weight.subrows(first, STRIP.min(weight.nrows() - first));
            let mut image = strip.as_mut().subrows_mut(0, rows.nrows());
            dense::product_into(image.as_mut(), rows, covariance, par);
            energy += sign * dot(rows, image.as_ref());
        }
        energy
    }
}
