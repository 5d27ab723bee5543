//! EVA: Paischer, Hauzenberger, Schmied, Alkin, Deisenroth & Hochreiter, *Parameter Efficient Fine-tuning via Explained Variance
//! Adaptation*, NeurIPS 2025, arXiv 2410.07170.
//!
//! The rows of `A` are the leading eigenvectors of the covariance `Σ` of the activations, `B = 0`. Ranks go where a direction
//! explains the largest share of its site's variance: as many in all as `r` everywhere, and at most `ρ r` in a layer
//! ([`Policy::Shared`](crate::rank::Policy::Shared)). The scale is the same for every rank.
//!
//! Differs from PEFT's `eva`: the covariance of all rows is decomposed once, where PEFT follows it from batch to batch and stops
//! when directions no longer change; where modules that read one input tie, the first by name gets the larger rank, in PEFT
//! the first of the model; and no rank is above the smaller side of its weight. PEFT's `whiten` is not offered. PEFT has it for
//! linear layers and Conv1D only; here also for convolutions and fused experts.

use super::{Nested, Options, check_width};
use crate::constraint::RESOLUTION;
use crate::dense;
use crate::error::{Error, Result};
use crate::factors::{Factors, sign_of_largest};
use crate::low_rank;
use crate::moments::Moments;
use faer::{Mat, MatRef, Par};

/// The leading directions of the activations of a site.
#[derive(Debug)]
pub struct Directions {
    /// Unit eigenvectors as rows, `k × d`, the entry of largest magnitude of each positive.
    rows: Mat<f32>,
    /// Standard deviation along each.
    deviations: Vec<f64>,
    /// `tr Σ`.
    variance: f64,
}

impl Directions {
    /// Decomposes the covariance of a site. `name` gives its random stream.
    ///
    /// # Errors
    /// The first complaint of the options; [`Error::NoRows`]; [`Error::NoVariation`] if all rows are equal; what the decomposition
    /// returns.
    pub fn new(moments: &Moments, name: &str, options: &Options, par: Par) -> Result<Self> {
        options.check()?;
        let mean = moments.mean()?;
        let covariance = moments.covariance()?;
        let variance: f64 = covariance.diagonal().column_vector().iter().sum();
        if variance <= RESOLUTION * (variance + mean.squared_norm_l2()) {
            return Err(Error::NoVariation { what: "all rows of activations are equal" });
        }
        let width = covariance.nrows();
        let (covariance, scale) = dense::normalized(covariance.as_ref());
        let components = options.components(width);
        let svd = low_rank::truncated_svd(&covariance.as_ref(), components, options.seed, name, par)?;
        let signs: Vec<f64> = (0..components)
            .map(|i| sign_of_largest(svd.v.col(i).iter().map(|value| f64::from(*value))))
            .collect();
        let rows = Mat::from_fn(components, width, |i, j| signs[i] as f32 * svd.v[(j, i)]);
        let deviations = svd.s.iter().map(|eigenvalue| (scale * eigenvalue).sqrt()).collect();
        Ok(Self { rows, deviations, variance })
    }

    /// Bytes that [`Self::new`] needs at its peak for a site of width `d`, and bytes that its result holds.
    pub fn memory(width: u64, options: &Options) -> (u64, u64) {
        let components = options.components(width as usize) as u64;
        let building = 8 * 2 * width * width + low_rank::memory(width, width, components);
        (building, 4 * components * width)
    }
}

/// The factors of one weight, `W (m × d)`, of which the shape alone matters.
///
/// # Errors
/// [`Error::Shape`] for a weight of another width.
pub(super) fn decompose(directions: &Directions, weight: MatRef<'_, f32>) -> Result<Nested> {
    check_width(weight, directions.rows.ncols())?;
    let components = directions.rows.nrows().min(weight.nrows());
    Ok(Nested {
        factors: Factors {
            a: directions.rows.subrows(0, components).to_owned(),
            b: Mat::zeros(weight.nrows(), components),
        },
        spectrum: directions.deviations[..components].to_vec(),
        energy: directions.variance,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::Method;
    use crate::random::gaussian;
    use crate::rank::{Limits, Policy};

    /// Activations of any size have the same directions, of a width that is decomposed by the iteration too.
    #[test]
    fn directions_of_any_scale() {
        for width in [24, 600] {
            let rows = gaussian::<f32>(2 * width, width, 3, "rows");
            let directions = |scale: f32| {
                let rows = Mat::from_fn(2 * width, width, |i, j| scale * rows[(i, j)] / (j + 1) as f32);
                let moments = Moments::of(rows.as_ref()).unwrap();
                let options = Options {
                    method: Method::Eva,
                    start: Method::Eva.starts()[0],
                    ranks: Policy::Fixed(4),
                    limits: Limits { min: 0, max: 4, multiple: 1 },
                    ..Options::default()
                };
                Directions::new(&moments, "site", &options, Par::Seq).unwrap()
            };
            let wanted = directions(1.0);
            for exponent in [-48, 36] {
                let scale = (exponent as f32).exp2();
                let found = directions(scale);
                assert_eq!(found.rows, wanted.rows, "{width} channels, 2^{exponent}");
                for (found, wanted) in found.deviations.iter().zip(&wanted.deviations) {
                    let found = found / f64::from(scale);
                    assert!((found / wanted - 1.0).abs() < 1e-12, "2^{exponent}: {found} and {wanted}");
                }
            }
        }
    }
}
