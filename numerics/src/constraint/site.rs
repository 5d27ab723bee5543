//! The constraints of a site whose activations are rows of numbers, factored.

use super::energy::{dot, energy_of_mean};
use super::operands::Operands;
use super::{Dampings, Norm, SiteOperator};
use crate::dense::{self, Square};
use faer::{Col, ColRef, Mat, MatMut, MatRef, Par};

/// The constraints of one site, factored.
#[derive(Debug)]
pub struct Constraint {
    /// `μ`.
    pub(super) mean: Col<f64>,
    /// `Σ = C − μμᵀ`. Energies are sums of those of `Σ` and of `μ`: in `C` a large mean would hide the variation.
    /// `None` if it is the negative of the change, in f32.
    pub(super) covariance: Option<Square<f32>>,
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
    /// [`Coupling::Transport`](super::Coupling::Transport) with measured pre-training activations; otherwise there is `None`. (Dowson and
    /// Landau 1982.)
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
