//! The constraints between pre-training and fine-tuning activations, and what they make of a site.
//!
//! All constraints are quadratic in the update `Δ`, so together they have one closed form (method.md, "Constraints"):
//!
//! ```text
//! Δ = W (K − C) (C + ρ_p S + λ I)⁻¹
//! ```
//!
//! Everything to the right of `W` depends on activations alone. [`Constraint`] holds it as factors that can be
//! applied to a thin block, computed once per site in f64 and shared by all weights of the site: in f32, and in f64 where the
//! damping is so small that the rounding errors of f32 would be felt beside it. Neither `Δ` nor the inverse is ever formed. Ranks, and how a decomposition uses this, are elsewhere.

mod build;
mod classes;
mod ladder;
mod operands;
mod statistics;
mod tokens;
mod transport;

pub use classes::token_classes;
pub use ladder::LARGEST_RIDGE;
pub(crate) use ladder::check_ridge;
pub(crate) use statistics::RESOLUTION;
pub use tokens::TokenConstraint;

use crate::dense;
use crate::error::{Error, Result};
use crate::moments::Moments;
use crate::names::names;
use build::Site;
use faer::{Col, ColRef, Mat, MatMut, MatRef, Par};
use ladder::Ladder;
use operands::Operands;
use statistics::{Statistics, is_near_noise};

/// How fine-tuning activations `x` and pre-training activations `z` correspond (method.md, "Constraints").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Norm {
    /// What the layer's output feels, `E|(Δ − BA) x|² = |(Δ − BA) F|²_F` with `F Fᵀ = C + λ I`.
    #[default]
    Activations,
    /// The Frobenius norm of the update itself.
    Weights,
}

/// The mean square of a channel that damping and an isotropic source are measured by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChannelScale {
    /// The mean over all channels, which is the mean eigenvalue: `tr C / d`. A few loud channels decide it.
    Mean,
    /// The median over the channels that are not silent.
    #[default]
    Median,
}

/// How covariances are corrected for the number of rows that they come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shrinkage {
    /// Not at all.
    #[default]
    None,
    /// Oracle Approximating Shrinkage of the correlations between channels (Chen, Wiesel, Eldar & Hero 2010).
    Oas,
}

names!(Coupling, "coupling": Uncorrelated = "uncorrelated", Transport = "transport", Paired = "paired");
names!(Norm, "norm": Activations = "activations", Weights = "weights");
names!(ChannelScale, "channel scale": Mean = "mean", Median = "median");
names!(Shrinkage, "shrinkage": None = "none", Oas = "oas");

/// Which constraints, and how much each of them counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// How the two kinds of activations correspond.
    pub coupling: Coupling,
    /// Weight `ρ_p` of the preservation of pre-training inputs.
    pub preserve: f64,
    /// Damping `ρ`, above 0 and at most 1: every `λ` is `ρ` times the scale of a channel of the matrix that it damps.
    pub ridge: f64,
    /// The scale of a channel. Tokens of an embedding have the mean, whatever this is: most tokens of a vocabulary are never met.
    pub channel_scale: ChannelScale,
    /// How covariances are corrected. Of the counts of tokens they are not.
    pub shrinkage: Shrinkage,
}

impl Terms {
    /// Every value that is outside its range.
    pub fn complaints(&self) -> Vec<Error> {
        let (what, expected) = ("the preservation weight", "0 or a positive number");
        let legal = self.preserve.is_finite() && self.preserve >= 0.0;
        let preserve = (!legal).then_some(Error::Option { what, expected, found: self.preserve });
        check_ridge(self.ridge).err().into_iter().chain(preserve).collect()
    }

    /// Refuses values outside their range.
    fn check(&self) -> Result<()> {
        self.complaints().into_iter().next().map_or(Ok(()), Err)
    }
}

/// Rows that a site should have at least, for its width: with fewer, its covariance is partly noise, and so is the update.
pub fn rows_wanted(width: usize) -> u64 {
    const ROWS_PER_CHANNEL: u64 = 4;
    ROWS_PER_CHANNEL * width as u64
}

/// Relative dampings that were used: the one asked for, or the first of the ladder with which the factorization worked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dampings {
    /// Of the covariance, in [`Coupling::Transport`].
    pub covariance: Option<f64>,
    /// Of the denominator `C + ρ_p S + λ I`.
    pub denominator: f64,
    /// Of the metric `C + λ I`, where that is another matrix.
    pub metric: Option<f64>,
}

impl Dampings {
    /// Each damping with the name of its matrix.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let covariance = self.covariance.map(|damping| ("covariance of the activations", damping));
        let denominator = ("second moment of the activations", self.denominator);
        let metric = self.metric.map(|damping| ("metric of the activations", damping));
        covariance.into_iter().chain([denominator]).chain(metric)
    }

    /// The largest of them.
    pub fn largest(&self) -> f64 {
        self.named().map(|(_, damping)| damping).fold(0.0, f64::max)
    }
}

/// What was measured at a site.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// Fine-tuning activations.
    pub target: &'a Moments,
    /// Pre-training activations. Without them the source is isotropic about the target mean.
    pub source: Option<&'a Moments>,
    /// Measured change `E[(z − x) xᵀ] = K − C`, `d × d`: what [`Coupling::Paired`] needs.
    pub change: Option<MatRef<'a, f64>>,
}

/// The constraints of one site, factored.
#[derive(Debug)]
pub struct Constraint {
    /// `μ`.
    mean: Col<f64>,
    /// `Σ = C − μμᵀ`. Energies are those of `Σ` and of `μ` added up: in `C` a large mean would hide what varies.
    covariance: Mat<f32>,
    matrices: Matrices,
    dampings: Dampings,
    frechet_distance: Option<f64>,
}

/// The other matrices of a site.
#[derive(Debug)]
enum Matrices {
    Single(Operands<f32>),
    /// Where the damping is small.
    Double(Operands<f64>),
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
    /// `μ` and `Σ`, where `Σ` is a matrix whose products with a weight are dear.
    fn mean_and_covariance(&self) -> Option<(ColRef<'_, f64>, MatRef<'_, f32>)>;
}

impl Constraint {
    /// Factors the constraints of a site. `O(d³)` operations in f64.
    ///
    /// Where the ridge is small, eigenvalues below the rounding errors of the sums are removed from the covariances first, at the
    /// cost of an eigendecomposition: otherwise the update would be amplified noise in directions that no row has.
    ///
    /// # Errors
    /// [`Error::Option`] for terms outside their ranges; [`Error::NoRows`]; [`Error::Shape`] for statistics of different widths;
    /// [`Error::NoVariation`] for activations that are all zero or whose squares are too small for f32, or all equal;
    /// [`Error::NonFinite`] where their squares are too large; [`Error::MissingSource`] for [`Coupling::Paired`] without a measured
    /// change; [`Error::NotPositiveDefinite`] when even the largest damping does not help.
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
            Ok((Statistics::of(evidence.target)?, evidence.source.map(Statistics::of).transpose()?))
        };
        let (mut target, mut source) = statistics()?;
        target.check_variation(evidence.target)?;
        if !is_near_noise(terms.ridge, width) {
            let built = Site { evidence, target, source, range: None, terms }.build(par);
            // Rounding errors of the sums can cost a factorization too.
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
    /// The peak is that of the eigendecomposition, where there is one: with its scratch of `3 d²` numbers it stands beside
    /// the covariance, the matrix and its eigenvectors, and with a measured source beside three further matrices.
    pub fn memory(width: u64, terms: Terms, measured_source: bool) -> (u64, u64) {
        let square = width * width;
        let kept_source = u64::from(measured_source);
        let preserved = u64::from(terms.preserve > 0.0);
        let near_noise = is_near_noise(terms.ridge, width as usize);
        let double = match terms.coupling {
            Coupling::Transport if measured_source => 10,
            Coupling::Transport => 7,
            _ if near_noise => 7 + kept_source,
            Coupling::Uncorrelated | Coupling::Paired => 3 + kept_source + preserved,
        };
        let factored = if near_noise { 8 } else { 4 };
        (8 * double * square, (4 + factored * (2 + preserved)) * square)
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
        let image = dense::thin_product(self.covariance.as_ref(), block, par);
        let energy = |j: usize| {
            let varying = dot(block.col(j).as_mat(), image.col(j).as_mat());
            varying + energy_of_mean(block.subcols(j, 1).transpose(), self.mean.as_ref())
        };
        (0..block.ncols()).map(energy).collect()
    }

    fn mean_and_covariance(&self) -> Option<(ColRef<'_, f64>, MatRef<'_, f32>)> {
        Some((self.mean.as_ref(), self.covariance.as_ref()))
    }

    fn output_energy(&self, weight: MatRef<'_, f32>, par: Par) -> f64 {
        /// Rows of `W` at a time, so that the product is never held whole.
        const STRIP: usize = 512;
        let mut strip = Mat::zeros(STRIP.min(weight.nrows()), weight.ncols());
        let mut energy = energy_of_mean(weight, self.mean.as_ref());
        for first in (0..weight.nrows()).step_by(STRIP) {
            let rows = weight.subrows(first, STRIP.min(weight.nrows() - first));
            let mut image = strip.as_mut().subrows_mut(0, rows.nrows());
            dense::product_into(image.as_mut(), rows, self.covariance.as_ref(), par);
            energy += dot(rows, image.as_ref());
        }
        energy
    }
}

/// `C' = C + λ I` with `λ = ρ tr C / d`, which is positive definite, with the first damping of the ladder that makes it so, and
/// that damping. Where the ridge is small, the noise of the sums is removed first, as in [`Constraint::new`].
///
/// # Errors
/// [`Error::Option`] for a ridge outside its range; [`Error::NoRows`]; [`Error::NoVariation`] for activations that are all zero;
/// [`Error::NonFinite`] where their squares are too large; [`Error::NotPositiveDefinite`] when even the largest damping does
/// not help.
pub(crate) fn damped_second_moment(moments: &Moments, ridge: f64, par: Par) -> Result<(Mat<f64>, f64)> {
    check_ridge(ridge)?;
    let damped = |second: &Mat<f64>, climbs| {
        if second.trace_mean() <= 0.0 {
            return Err(Error::NoVariation { what: "all activations are zero" });
        }
        Ladder::new(ridge, moments.width(), climbs).climb("second moment of the activations", |damping| {
            let mut damped = second.clone();
            damped.add_to_diagonal(damping * second.trace_mean());
            Ok(dense::cholesky(damped.clone(), par).map(|_| damped))
        })
    };
    if !is_near_noise(ridge, moments.width()) {
        match damped(&moments.second_moment()?, false) {
            Err(Error::NotPositiveDefinite { .. }) => {}
            result => return result,
        }
    }
    let mut statistics = Statistics::of(moments)?;
    statistics.remove_noise(par)?;
    damped(&statistics.second_moment(), true)
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

/// `|W μ|²`.
pub(crate) fn energy_of_mean(weight: MatRef<'_, f32>, mean: ColRef<'_, f64>) -> f64 {
    let mut image = vec![0.0; weight.nrows()];
    for (column, mean) in weight.col_iter().zip(mean.iter()) {
        for (image, weight) in image.iter_mut().zip(column.iter()) {
            *image += f64::from(*weight) * mean;
        }
    }
    image.iter().map(|image| image * image).sum()
}

/// Sum of the products of corresponding entries, in f64.
fn dot(a: MatRef<'_, f32>, b: MatRef<'_, f32>) -> f64 {
    let column = |j: usize| a.col(j).iter().zip(b.col(j).iter()).map(|(a, b)| f64::from(*a) * f64::from(*b));
    (0..a.ncols()).map(|j| column(j).sum::<f64>()).sum()
}

#[cfg(test)]
mod tests;
