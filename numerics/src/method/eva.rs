//! EVA: Paischer, Hauzenberger, Schmied, Alkin, Deisenroth & Hochreiter, *Parameter Efficient Fine-tuning via Explained Variance
//! Adaptation*, NeurIPS 2025, arXiv 2410.07170.
//!
//! The rows of `A` are the leading eigenvectors of the covariance `Σ` of the activations, `B = 0`. Ranks go to the directions that
//! explain the largest shares of the variance of their site. The total is that of rank `r` in every layer, and no layer gets more than
//! `ρ r` ([`Policy::Shared`](crate::rank::Policy::Shared)). The scale is the same for every rank.
//!
//! Differs from PEFT's `eva`: the covariance of all rows is decomposed once, whereas PEFT updates it from batch to batch and stops when
//! directions no longer change. If modules that read one input tie, the first by name gets the larger rank, in PEFT the first in the
//! model. No rank is above the smaller side of its weight. PEFT's `whiten` is not offered. PEFT supports linear layers and Conv1D only;
//! this crate also supports convolutions and fused experts.

use super::definition::{Basis, Bytes, Definition, Form, RankRule, SiteSize, Uses, Weight, check_width};
use super::{Draft, Nested, Options};
use crate::constraint::{RESOLUTION, SiteEvidence};
use crate::dense;
use crate::error::{Error, Result};
use crate::factors::{Factors, LayerShape, Start, sign_of_largest};
use crate::low_rank;
use crate::moments::{Moments, RowsOrTokens};
use faer::{Mat, Par};

/// The method.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Eva;

impl Definition for Eva {
    fn description(&self) -> &'static str {
        "The directions in which the activations vary most, with ranks by explained variance"
    }

    fn starts(&self) -> &'static [Start] {
        &[Start::Zero]
    }

    fn rank_rule(&self) -> RankRule {
        RankRule::Shared
    }

    fn form(&self, _: Start, _: &LayerShape) -> Form {
        Form::OrthonormalDown
    }

    fn uses(&self) -> Uses {
        Uses::Target
    }

    fn reason_against(&self, shape: &LayerShape) -> Option<&'static str> {
        let reason = "tokens that occur equally often vary alike, so they have no leading directions";
        (*shape == LayerShape::Embedding).then_some(reason)
    }

    fn basis(
        &self,
        evidence: Option<SiteEvidence<'_>>,
        name: &str,
        options: &Options,
        par: Par,
    ) -> Result<Box<dyn Basis>> {
        let rows = evidence.and_then(RowsOrTokens::rows).ok_or(Error::NoRows)?;
        Ok(Box::new(Directions::new(rows.target, name, options, par)?))
    }

    fn basis_memory(&self, site: SiteSize, options: &Options) -> Bytes {
        let components = options.components(site.width as usize) as u64;
        let squares = site.width.saturating_mul(site.width).saturating_mul(8 * 2);
        let peak = squares.saturating_add(low_rank::memory(site.width, site.width, components));
        Bytes { peak, held: site.width.saturating_mul(components).saturating_mul(4) }
    }

    fn basis_cubes(&self, _: SiteSize, _: &Options) -> f64 {
        1.0
    }
}

/// The leading directions of the activations of a site.
#[derive(Debug)]
struct Directions {
    /// Unit eigenvectors as rows, `k × d`, the entry of largest magnitude of each positive.
    rows: Mat<f32>,
    /// Standard deviation along each.
    deviations: Vec<f64>,
    /// `tr Σ`.
    variance: f64,
}

impl Directions {
    /// Decomposes the covariance of a site. `name` selects its random stream.
    ///
    /// # Errors
    /// [`Error::NoRows`]; [`Error::NoVariation`] if all rows are equal; the errors of the decomposition.
    fn new(moments: &Moments, name: &str, options: &Options, par: Par) -> Result<Self> {
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
}

impl Basis for Directions {
    fn decompose(&self, weight: Weight<'_>, _: &Options, _: Par) -> Result<Draft> {
        check_width(weight.numbers, self.rows.ncols())?;
        let outputs = weight.numbers.nrows();
        let components = self.rows.nrows().min(outputs);
        let factors =
            Factors { a: self.rows.subrows(0, components).to_owned(), b: Mat::zeros(outputs, components) };
        let spectrum = self.deviations[..components].to_vec();
        Ok(Draft::Nested(Nested { factors, spectrum, energy: self.variance, effective_rank: None }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::Method;
    use crate::random::gaussian;
    use crate::rank::{Limits, Policy};

    /// Activations of any size have the same directions, also at widths that the iteration decomposes.
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
