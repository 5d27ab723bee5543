//! From the activations of a site to its factored constraints.

use super::ladder::Ladder;
use super::operands::{Number, Operands, check_fits, convert, is_symmetric};
use super::site::Matrices;
use super::statistics::{Range, Statistics, is_near_noise, noise};
use super::transport::Target;
use super::{Constraint, Coupling, Dampings, Evidence, Terms, cholesky, transport};
use crate::error::{Error, Result};
use faer::Par;

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
    /// The peak is at the eigendecomposition, if there is one, and with a measured source there are further matrices. Otherwise it is at
    /// the last factorization.
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
            _ if near_noise => Statistics::NOISE_REMOVAL + 2 * kept_source,
            // The factor takes the place of the last triangle.
            Coupling::Uncorrelated | Coupling::Paired => 2 + covariance + kept_source + 2 * preserved,
        };
        let factored = if near_noise { 2 } else { 1 };
        let held = covariance + factored * (2 + preserved);
        let bytes = |matrices: u64| width.saturating_mul(width).saturating_mul(4 * matrices);
        (bytes(peak).saturating_add(cholesky::memory(width)), bytes(held))
    }
}

/// The statistics and terms that the constraints of a site are made from.
struct Site<'a> {
    evidence: Evidence<'a>,
    target: Statistics,
    source: Option<Statistics>,
    /// The range of the target, if the noise outside it was removed.
    range: Option<Range>,
    terms: Terms,
}

impl Site<'_> {
    /// Factors the constraints. Without a [`Range`] every factorization is tried once, with the ridge.
    ///
    /// # Errors
    /// As [`Constraint::new`].
    fn build(self, par: Par) -> Result<Constraint> {
        match self.range {
            None => self.factored(Matrices::Single, par),
            Some(_) => self.factored(Matrices::Double, par),
        }
    }

    /// As [`Self::build`], with the matrices in the format `T`.
    fn factored<T: Number>(self, matrices: fn(Operands<T>) -> Matrices, par: Par) -> Result<Constraint> {
        const CHANGE: &str = "cross moment of the activations";
        let Self { evidence, mut target, mut source, range, terms } = self;
        let Terms { ridge, channel_scale, shrinkage, .. } = terms;
        let width = target.mean.nrows();
        let ladder = Ladder::new(ridge, width, range.is_some());
        target.shrink(shrinkage, evidence.target.count(), par);
        let mut source_lambda = 0.0;
        if let (Some(source), Some(moments)) = (&mut source, evidence.source) {
            source.shrink(shrinkage, moments.count(), par);
            source_lambda = ridge * source.channel_variance(channel_scale);
            source.covariance.add_to_diagonal(source_lambda);
        }
        let variance = target.channel_variance(channel_scale);
        let source_mean = source.as_ref().map_or(&target.mean, |source| &source.mean).clone();
        let shift = &source_mean - &target.mean;
        // True if the change is `−Σ`.
        let is_negated = terms.coupling == Coupling::Uncorrelated && shift.norm_max() == 0.0;
        // Nothing is larger, by the inequality of Cauchy and Schwarz.
        let largest = target.covariance.diagonal().fold(0.0, f64::max);

        let (mut covariance_damping, mut frechet_distance) = (None, None);
        let change = match terms.coupling {
            Coupling::Uncorrelated => {
                check_fits::<T>(CHANGE, largest + shift.norm_max() * target.mean.norm_max())?;
                if is_negated {
                    // Without products with zeros, it is converted with vector instructions.
                    target.covariance.whole(|_, _, covariance| T::from_f64(-covariance), par)
                } else {
                    let entry =
                        |i: usize, j: usize, entry: f64| T::from_f64(shift[i] * target.mean[j] - entry);
                    target.covariance.whole(entry, par)
                }
            }
            Coupling::Transport => {
                let dense = |statistics: &Statistics| statistics.covariance.whole(|_, _, entry| entry, par);
                let covariance = dense(&target);
                let (moved, damping) = ladder.climb("covariance of the activations", |damping| {
                    let target = Target { covariance: covariance.as_ref(), lambda: damping * variance };
                    match &source {
                        None => transport::isotropic(target, variance, noise(width), par),
                        Some(source) => {
                            transport::measured(target, dense(source).as_ref(), source_lambda, par)
                        }
                    }
                })?;
                covariance_damping = Some(damping);
                if let (Some(source), Some(overlap)) = (&source, moved.overlap) {
                    let damped = target.variance() + width as f64 * damping * variance;
                    let square = shift.squared_norm_l2() + damped + source.variance() - 2.0 * overlap;
                    frechet_distance = Some(square.max(0.0).sqrt());
                }
                let covariance = covariance.as_ref();
                let entry =
                    |i: usize, j: usize, cross: f64| cross - covariance[(i, j)] + shift[i] * target.mean[j];
                convert(CHANGE, moved.cross.as_ref(), entry, par)?
            }
            Coupling::Paired => {
                // It comes from the same rows as the second moment, and is not shrunk.
                let change = evidence.change.ok_or(Error::MissingSource)?;
                match (&range, &source) {
                    (Some(range), Some(_)) => {
                        let of_means = &shift * target.mean.transpose();
                        let inside = range.restrict(&(change - &of_means), par) + of_means;
                        convert(CHANGE, inside.as_ref(), |_, _, entry| entry, par)?
                    }
                    _ => convert(CHANGE, change, |_, _, entry| entry, par)?,
                }
            }
        };

        let covariance = if is_negated && range.is_none() {
            None
        } else {
            check_fits::<f32>("covariance of the activations", largest)?;
            Some(target.covariance.whole(|_, _, entry| entry as f32, par))
        };
        let channel = channel_scale.of(target.mean_squares());
        // Nothing reads the covariance after the only attempt, if there is one.
        let is_last = range.is_none() && terms.preserve == 0.0;
        let (denominator, denominator_damping) =
            ladder.climb("second moment of the activations", |damping| {
                let mut matrix =
                    if is_last { target.take_second_moment(par) } else { target.second_moment(par) };
                if terms.preserve > 0.0 {
                    let preserved = |i: usize, j: usize| match &source {
                        Some(source) => source.covariance.get(i, j),
                        None if i == j => variance,
                        None => 0.0,
                    };
                    let entry = |i: usize, j: usize, entry: f64| {
                        entry + terms.preserve * (source_mean[i] * source_mean[j] + preserved(i, j))
                    };
                    matrix.map(entry, par);
                }
                matrix.add_to_diagonal(damping * channel);
                Ok(T::cholesky(matrix, par))
            })?;
        let (metric, metric_damping) = if terms.preserve > 0.0 {
            let (metric, damping) = ladder.climb("metric of the activations", |damping| {
                let mut matrix = target.second_moment(par);
                matrix.add_to_diagonal(damping * channel);
                Ok(T::cholesky(matrix, par))
            })?;
            (Some(metric), Some(damping))
        } else {
            (None, None)
        };
        let is_symmetric = is_negated || is_symmetric(change.as_ref());
        let matrices = matrices(Operands { change, is_symmetric, denominator, metric });
        let dampings = Dampings {
            covariance: covariance_damping,
            denominator: denominator_damping,
            metric: metric_damping,
        };
        Ok(Constraint { mean: target.mean, covariance, matrices, dampings, frechet_distance })
    }
}
