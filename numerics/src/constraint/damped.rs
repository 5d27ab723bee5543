//! Damped matrices.

use super::ladder::{Ladder, check_ridge};
use super::statistics::{Statistics, is_near_noise};
use crate::dense;
use crate::error::{Error, Result};
use crate::moments::Moments;
use faer::{Mat, Par};

/// `C' = C + λ I` with `λ = ρ tr C / d`, which is positive definite, with the first damping of the ladder that makes it so, and
/// that damping. Where the ridge is small, the noise of the sums is removed first, as in [`Constraint::new`](super::Constraint::new).
///
/// # Errors
/// [`Error::Option`] for a ridge outside its range; [`Error::NoRows`]; [`Error::NoVariation`] for activations that are all zero;
/// [`Error::NonFinite`] where their squares are too large; [`Error::NotPositiveDefinite`] when even the largest damping does
/// not help.
pub(crate) fn damped_second_moment(moments: &Moments, ridge: f64, par: Par) -> Result<(Mat<f64>, f64)> {
    check_ridge(ridge)?;
    let damped = |mut second: Mat<f64>, climbs| {
        let mean = second.trace_mean();
        if mean <= 0.0 {
            return Err(Error::NoVariation { what: "all activations are zero" });
        }
        let ladder = Ladder::new(ridge, moments.width(), climbs);
        let ((), damping) = ladder.climb("second moment of the activations", |damping| {
            let mut damped = second.clone();
            damped.add_to_diagonal(damping * mean);
            Ok(dense::cholesky(damped, par).map(drop))
        })?;
        second.add_to_diagonal(damping * mean);
        Ok((second, damping))
    };
    if !is_near_noise(ridge, moments.width()) {
        match damped(moments.second_moment()?, false) {
            Err(Error::NotPositiveDefinite { .. }) => {}
            result => return result,
        }
    }
    let mut statistics = Statistics::of(moments, par)?;
    statistics.remove_noise(par)?;
    damped(statistics.take_second_moment(par).whole(|_, _, entry| entry, par), true)
}

/// A square matrix that can be damped.
pub(super) trait Damped {
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
