//! Damped matrices.

use super::cholesky;
use super::ladder::{Ladder, check_ridge};
use super::operands::Number;
use super::statistics::{Statistics, is_near_noise};
use crate::error::{Error, Result};
use crate::moments::Moments;
use crate::triangle::Triangle;
use faer::{Mat, Par};

/// `C' = C + λ I` with `λ = ρ tr C / d`, which is positive definite, with the first damping of the ladder that makes it so, and
/// that damping. Where the ridge is small, the noise of the sums is removed first, as in [`Constraint::new`](super::Constraint::new).
///
/// # Errors
/// [`Error::Option`] for a ridge outside its range; [`Error::NoRows`]; [`Error::NoVariation`] for activations that are all zero;
/// [`Error::NonFinite`] where their squares are too large; [`Error::NotPositiveDefinite`] when even the largest damping does
/// not help.
pub(crate) fn damped_second_moment(moments: &Moments, ridge: f64, par: Par) -> Result<(Triangle, f64)> {
    check_ridge(ridge)?;
    if !is_near_noise(ridge, moments.width()) {
        let second = moments.second_moment_triangle(par)?;
        match damped::<f32>(second, Ladder::new(ridge, moments.width(), false), par) {
            Err(Error::NotPositiveDefinite { .. }) => {}
            result => return result,
        }
    }
    let mut statistics = Statistics::of(moments, par)?;
    statistics.remove_noise(par)?;
    damped::<f64>(statistics.take_second_moment(par), Ladder::new(ridge, moments.width(), true), par)
}

/// Bytes that [`damped_second_moment`] needs at its peak for a site of width `d`: two triangles and the factor. If the noise of the sums is
/// removed, the peak is there.
pub(crate) fn damped_memory(width: u64, ridge: f64) -> u64 {
    // Matrices in f32, or triangles in f64, which have the same size.
    let matrices = if is_near_noise(ridge, width as usize) { Statistics::NOISE_REMOVAL } else { 3 };
    width.saturating_mul(width).saturating_mul(4 * matrices).saturating_add(cholesky::memory(width))
}

/// As [`damped_second_moment`], of a second moment that is factored in the format `T`.
fn damped<T: Number>(mut second: Triangle, ladder: Ladder, par: Par) -> Result<(Triangle, f64)> {
    let mean = second.diagonal().sum::<f64>() / second.width() as f64;
    if mean <= 0.0 {
        return Err(Error::NoVariation { what: "all activations are zero" });
    }
    let ((), damping) = ladder.climb("second moment of the activations", |damping| {
        let mut damped = second.clone();
        damped.add_to_diagonal(damping * mean);
        Ok(T::cholesky(damped, par).map(drop))
    })?;
    second.add_to_diagonal(damping * mean);
    Ok((second, damping))
}

/// A square matrix that can be damped.
pub(super) trait Damped {
    /// `M + λ I`.
    fn add_to_diagonal(&mut self, lambda: f64);
}

impl Damped for Mat<f64> {
    fn add_to_diagonal(&mut self, lambda: f64) {
        for i in 0..self.nrows() {
            self[(i, i)] += lambda;
        }
    }
}
