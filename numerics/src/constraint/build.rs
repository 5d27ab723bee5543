//! From the statistics of a site to its factored constraints.

use super::damped::Damped;
use super::ladder::Ladder;
use super::operands::{Number, Operands, convert, convert_columns};
use super::site::Matrices;
use super::statistics::{Range, Statistics, noise};
use super::transport::Target;
use super::{Constraint, Coupling, Dampings, Evidence, Terms, transport};
use crate::dense;
use crate::error::{Error, Result};
use faer::Par;

/// The statistics and terms that the constraints of a site are made from.
pub(super) struct Site<'a> {
    pub(super) evidence: Evidence<'a>,
    pub(super) target: Statistics,
    pub(super) source: Option<Statistics>,
    /// The range of the target, if the noise outside it was removed.
    pub(super) range: Option<Range>,
    pub(super) terms: Terms,
}

impl Site<'_> {
    /// Factors the constraints. Without a [`Range`] every factorization is tried once, with the ridge.
    ///
    /// # Errors
    /// As [`Constraint::new`].
    pub(super) fn build(self, par: Par) -> Result<Constraint> {
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
        target.shrink(shrinkage, evidence.target.count());
        let mut source_lambda = 0.0;
        if let (Some(source), Some(moments)) = (&mut source, evidence.source) {
            source.shrink(shrinkage, moments.count());
            source_lambda = ridge * source.channel_variance(channel_scale);
            source.covariance.add_to_diagonal(source_lambda);
        }
        let variance = target.channel_variance(channel_scale);
        let source_mean = source.as_ref().map_or(&target.mean, |source| &source.mean).clone();
        let shift = &source_mean - &target.mean;

        let (mut covariance_damping, mut frechet_distance) = (None, None);
        let change = match terms.coupling {
            Coupling::Uncorrelated => {
                let column = |j: usize| {
                    let mean = target.mean[j];
                    let entries = target.covariance.col(j).iter().zip(shift.iter());
                    entries.map(move |(covariance, shift)| shift * mean - covariance)
                };
                convert_columns(CHANGE, width, width, column, par)?
            }
            Coupling::Transport => {
                let (moved, damping) = ladder.climb("covariance of the activations", |damping| {
                    let target =
                        Target { covariance: target.covariance.as_ref(), lambda: damping * variance };
                    match &source {
                        None => transport::isotropic(target, variance, noise(width), par),
                        Some(source) => {
                            transport::measured(target, source.covariance.as_ref(), source_lambda, par)
                        }
                    }
                })?;
                covariance_damping = Some(damping);
                if let (Some(source), Some(overlap)) = (&source, moved.overlap) {
                    let damped = target.variance() + width as f64 * damping * variance;
                    let square = shift.squared_norm_l2() + damped + source.variance() - 2.0 * overlap;
                    frechet_distance = Some(square.max(0.0).sqrt());
                }
                let change = moved.cross - &target.covariance + &shift * target.mean.transpose();
                convert(CHANGE, change.as_ref(), par)?
            }
            Coupling::Paired => {
                // It comes from the same rows as the second moment, and is not shrunk.
                let change = evidence.change.ok_or(Error::MissingSource)?;
                match (&range, &source) {
                    (Some(range), Some(_)) => {
                        let of_means = &shift * target.mean.transpose();
                        let inside = range.restrict(&(change - &of_means), par) + of_means;
                        convert(CHANGE, inside.as_ref(), par)?
                    }
                    _ => convert(CHANGE, change, par)?,
                }
            }
        };

        let covariance = convert("covariance of the activations", target.covariance.as_ref(), par)?;
        let channel = channel_scale.of(target.mean_squares());
        // Nothing reads the covariance after the only attempt, if there is one.
        let is_last = range.is_none() && terms.preserve == 0.0;
        let (denominator, denominator_damping) =
            ladder.climb("second moment of the activations", |damping| {
                let mut matrix =
                    if is_last { target.take_second_moment(par) } else { target.second_moment(par) };
                if terms.preserve > 0.0 {
                    matrix += &source_mean * source_mean.transpose() * faer::Scale(terms.preserve);
                    match &source {
                        Some(source) => matrix += &source.covariance * faer::Scale(terms.preserve),
                        None => matrix.add_to_diagonal(terms.preserve * variance),
                    }
                }
                matrix.add_to_diagonal(damping * channel);
                Ok(dense::cholesky(matrix, par))
            })?;
        let (metric, metric_damping) = if terms.preserve > 0.0 {
            let (metric, damping) = ladder.climb("metric of the activations", |damping| {
                let mut matrix = target.second_moment(par);
                matrix.add_to_diagonal(damping * channel);
                Ok(dense::cholesky(matrix, par))
            })?;
            (Some(metric), Some(damping))
        } else {
            (None, None)
        };
        let matrices = matrices(Operands::new(change, denominator, metric, par)?);
        let dampings = Dampings {
            covariance: covariance_damping,
            denominator: denominator_damping,
            metric: metric_damping,
        };
        Ok(Constraint { mean: target.mean, covariance, matrices, dampings, frechet_distance })
    }
}
