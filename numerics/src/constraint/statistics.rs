//! Mean and covariance of activations as the constraints use them: without the rounding noise of the sums, optionally shrunk, and with
//! one number for the scale of a channel.
//!
//! Noise and shrinkage are judged channel by channel, on the correlation matrix `D^-½ Σ D^-½` with `D = diag Σ`: the rounding
//! errors of a sum of products scale with both of its channels, and neither a loud nor a quiet channel decides for the others.

use super::{ChannelScale, Shrinkage};
use crate::dense;
use crate::error::{Error, Result};
use crate::moments::Moments;
use crate::triangle::Triangle;
use faer::{Col, Mat, Par};

/// Variance below this share of the second moment is the rounding error of `C − μμᵀ`. It was measured on equal rows: at most
/// 3e-17 of the second moment for each block, 4e-13 after 10⁷ rows. Channels with means of 10⁴ standard deviations have 1e-8.
pub(crate) const RESOLUTION: f64 = 1e-10;

/// Rounding error of a covariance, relative to the variances of its two channels: products are summed in f32 within a block.
const ROUNDING: f64 = 4.0 * f32::EPSILON as f64;

/// A channel whose mean square is below this share of the largest one does not count in the median.
const SILENT: f64 = f32::EPSILON as f64 * f32::EPSILON as f64;

/// Statistics of one kind of activations.
#[derive(Clone, Debug)]
pub(super) struct Statistics {
    pub(super) mean: Col<f64>,
    /// `Σ`.
    pub(super) covariance: Triangle,
}

/// The part of the space in which activations vary: `x − μ = D^½ U Uᵀ D^-½ (x − μ)`.
#[derive(Debug)]
pub(super) struct Range {
    /// `D^½ U`.
    scaled: Mat<f64>,
    /// `D^-½ U`.
    unscaled: Mat<f64>,
}

impl Range {
    /// `M D^-½ U Uᵀ D^½`: the rows of `M` without the parts outside the range of centred activations.
    pub(super) fn restrict(&self, matrix: &Mat<f64>, par: Par) -> Mat<f64> {
        let inside = dense::product(matrix.as_ref(), self.unscaled.as_ref(), par);
        dense::product(inside.as_ref(), self.scaled.transpose(), par)
    }
}

impl Statistics {
    /// The statistics of the rows of a site.
    ///
    /// # Errors
    /// [`Error::NoRows`]; [`Error::NonFinite`] if the squares are too large.
    pub(super) fn of(moments: &Moments, par: Par) -> Result<Self> {
        let statistics = Self { mean: moments.mean()?, covariance: moments.covariance_triangle(par)? };
        if !statistics.square().is_finite() {
            return Err(Error::NonFinite { what: "second moment of the activations" });
        }
        Ok(statistics)
    }

    /// Refuses activations that do not vary.
    ///
    /// # Errors
    /// [`Error::NoVariation`] for activations that are all zero, whose squares are too small for f32, or that are all equal.
    pub(super) fn check_variation(&self, moments: &Moments) -> Result<()> {
        let square = self.square();
        // Squares of smaller numbers lose digits in f32, and then underflow.
        if square < f64::from(f32::MIN_POSITIVE) * self.mean.nrows() as f64 {
            let is_zero = moments.abs_max().iter().all(|&value| value == 0.0);
            let tiny = "the squares of the activations are too small for f32";
            return Err(Error::NoVariation { what: if is_zero { "all activations are zero" } else { tiny } });
        }
        if self.variance() <= RESOLUTION * square {
            return Err(Error::NoVariation { what: "all rows of activations are equal" });
        }
        Ok(())
    }

    /// `tr Σ`.
    pub(super) fn variance(&self) -> f64 {
        self.covariance.diagonal().sum()
    }

    /// `tr C = E|x|²`.
    fn square(&self) -> f64 {
        self.variance() + self.mean.squared_norm_l2()
    }

    /// `C = Σ + μμᵀ`.
    pub(super) fn second_moment(&self, par: Par) -> Triangle {
        self.clone().take_second_moment(par)
    }

    /// As [`Self::second_moment`], in the memory of the covariance, which has no entries afterwards.
    pub(super) fn take_second_moment(&mut self, par: Par) -> Triangle {
        let mut second = std::mem::replace(&mut self.covariance, Triangle::zeros(0));
        let mean: Vec<f64> = self.mean.iter().copied().collect();
        let change = |i: usize, row: &mut [f64]| {
            let factor = mean[i];
            row.iter_mut().zip(&mean[i..]).for_each(|(entry, mean)| *entry += factor * mean);
        };
        second.change_rows(change, par);
        second
    }

    /// The diagonal of `C`.
    pub(super) fn mean_squares(&self) -> Vec<f64> {
        let variances = self.covariance.diagonal().zip(self.mean.iter());
        variances.map(|(variance, mean)| variance + mean * mean).collect()
    }

    /// Scale of the variance of a channel.
    pub(super) fn channel_variance(&self, scale: ChannelScale) -> f64 {
        scale.of(self.variances().collect())
    }

    /// The memory of [`Self::remove_noise`] and the statistics at its peak, as a number of matrices in f32. The scratch of the
    /// eigendecomposition is `3 d²` numbers of f64, beside the covariance, the matrix and its eigenvectors.
    pub(super) const NOISE_REMOVAL: u64 = 14;

    /// Removes noise: eigenvalues of the correlation matrix below the rounding error of the sums become zero. Returns the remaining
    /// range. `O(d³)` operations.
    ///
    /// # Errors
    /// The errors of the eigendecomposition.
    pub(super) fn remove_noise(&mut self, par: Par) -> Result<Range> {
        let width = self.mean.nrows();
        let deviations = self.deviations();
        let correlation = self.correlation(&deviations).whole(|_, _, entry| entry, par);
        let (values, vectors) =
            dense::self_adjoint_eigen("covariance of the activations", correlation.as_ref(), par)?;
        let first = values.partition_point(|value| *value <= noise(width));
        let kept = vectors.subcols(first, width - first);
        let scaled = Mat::from_fn(width, kept.ncols(), |i, j| kept[(i, j)] * deviations[i]);
        let inverse = |deviation: f64| if deviation > 0.0 { deviation.recip() } else { 0.0 };
        let unscaled = Mat::from_fn(width, kept.ncols(), |i, j| kept[(i, j)] * inverse(deviations[i]));
        let weighted = Mat::from_fn(width, kept.ncols(), |i, j| scaled[(i, j)] * values[first + j]);
        let product = dense::product(weighted.as_ref(), scaled.transpose(), par);
        self.covariance.map(|i, j, _| 0.5 * (product[(i, j)] + product[(j, i)]), par);
        Ok(Range { scaled, unscaled })
    }

    /// Shrinks the covariance of `count` rows toward its diagonal, by the Oracle Approximating Shrinkage of Chen, Wiesel, Eldar &
    /// Hero, *Shrinkage Algorithms for MMSE Covariance Estimation*, 2010, equation 23, of the correlation matrix: its target there,
    /// `(tr / d) I`, is the identity.
    pub(super) fn shrink(&mut self, shrinkage: Shrinkage, count: u64, par: Par) {
        if shrinkage == Shrinkage::None {
            return;
        }
        let deviations = self.deviations();
        let square = self.correlation(&deviations).squared_norm();
        let live = deviations.iter().filter(|deviation| **deviation > 0.0).count() as f64;
        let kept = 1.0 - oracle_approximating(count as f64, live, square);
        self.covariance.map(|i, j, entry| if i == j { entry } else { entry * kept }, par);
    }

    /// Variance of each channel; zero where it is the rounding error of the mean square.
    fn variances(&self) -> impl Iterator<Item = f64> {
        self.covariance.diagonal().zip(self.mean.iter()).map(|(variance, mean)| {
            if variance > RESOLUTION * (variance + mean.powi(2)) { variance } else { 0.0 }
        })
    }

    /// Standard deviation of each channel.
    fn deviations(&self) -> Vec<f64> {
        self.variances().map(f64::sqrt).collect()
    }

    /// `D^-½ Σ D^-½`, with zeros for channels that do not vary.
    fn correlation(&self, deviations: &[f64]) -> Triangle {
        let mut correlation = self.covariance.clone();
        let entry = |i: usize, j: usize, entry: f64| {
            let scale = deviations[i] * deviations[j];
            if scale > 0.0 { entry / scale } else { 0.0 }
        };
        correlation.map(entry, Par::Seq);
        correlation
    }
}

/// Eigenvalues of a correlation matrix at or below this are rounding errors of sums that were accumulated in f32 within blocks:
/// errors of independent signs in `d × d` entries have a spectral norm in proportion to `√d`.
pub(super) fn noise(width: usize) -> f64 {
    ROUNDING * (width as f64).sqrt().max(4.0)
}

/// True if a relative damping is so small that the rounding errors of the sums would matter beside it.
pub(super) fn is_near_noise(ridge: f64, width: usize) -> bool {
    /// Errors below a hundredth of the damping do no harm.
    const MARGIN: f64 = 100.0;
    ridge < MARGIN * noise(width)
}

/// Share of the target in the Oracle Approximating Shrinkage of a correlation matrix of `d` channels from `n` rows, whose trace is
/// `d` and whose squared Frobenius norm is given.
fn oracle_approximating(n: f64, d: f64, square: f64) -> f64 {
    let numerator = (1.0 - 2.0 / d) * square + d * d;
    let denominator = (n + 1.0 - 2.0 / d) * (square - d);
    if numerator < denominator { numerator / denominator } else { 1.0 }
}

impl ChannelScale {
    /// The scale of these mean squares, one per channel.
    pub(super) fn of(self, mut values: Vec<f64>) -> f64 {
        match self {
            Self::Mean => values.iter().sum::<f64>() / values.len() as f64,
            Self::Median => {
                let loudest = values.iter().copied().fold(0.0, f64::max);
                values.retain(|value| *value > SILENT * loudest);
                values.sort_unstable_by(f64::total_cmp);
                match values.len() {
                    0 => 0.0,
                    live => 0.5 * (values[(live - 1) / 2] + values[live / 2]),
                }
            }
        }
    }
}

/// Rows that a site should have at least, for its width: with fewer, its covariance is partly noise, and so is the update.
pub fn rows_wanted(width: usize) -> u64 {
    const ROWS_PER_CHANNEL: u64 = 4;
    ROWS_PER_CHANNEL.saturating_mul(width as u64)
}
