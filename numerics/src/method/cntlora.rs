//! CNTLoRA: Das, Park, Hayat, Choi, Yun & Porikli, *ConsNoTrainLoRA: Data-driven Weight Initialization of Low-rank
//! Adapters using Constraints*, ICCV 2025, arXiv 2507.08044.
//!
//! From its abstract: initialization as a domain shift; constraints between pre-training and fine-tuning activations; a closed
//! form of the update from pre-trained weights and fine-tuning activations; its decomposition into up and down matrices of
//! variable rank. The equations are this project's own derivation from those statements, and are not the paper's.

use super::definition::{
    Basis, Bytes, Definition, Form, LayerSize, RankRule, SiteSize, Uses, Weight, check_width,
};
use super::{Decomposition, Draft, Options};
use crate::constraint::{
    Constraint, Coupling, Norm, SiteEvidence, SiteOperator, TokenConstraint, energy_of_mean,
};
use crate::error::{Error, Result};
use crate::factors::{Components, LayerShape, Start};
use crate::low_rank::{self, Operator, Product};
use crate::moments::RowsOrTokens;
use faer::{Mat, MatRef, Par};

/// The method.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cntlora;

impl Definition for Cntlora {
    fn description(&self) -> &'static str {
        "Constraints between pre-training and fine-tuning activations; variable ranks"
    }

    fn starts(&self) -> &'static [Start] {
        &[Start::Zero, Start::Mirrored, Start::Update, Start::Residual]
    }

    fn rank_rule(&self) -> RankRule {
        RankRule::Spectrum
    }

    fn form(&self, start: Start, _: &LayerShape) -> Form {
        if start == Start::Zero { Form::OrthonormalDown } else { Form::Balanced }
    }

    fn uses(&self) -> Uses {
        Uses::Constraints
    }

    fn has_ridge(&self) -> bool {
        true
    }

    fn basis(
        &self,
        evidence: Option<SiteEvidence<'_>>,
        _: &str,
        options: &Options,
        par: Par,
    ) -> Result<Box<dyn Basis>> {
        Ok(match evidence.ok_or(Error::NoRows)? {
            RowsOrTokens::Rows(rows) => Box::new(Constraint::new(rows, options.terms(), par)?),
            RowsOrTokens::Tokens(tokens) => Box::new(TokenConstraint::new(tokens, options.terms(), par)?),
        })
    }

    fn basis_memory(&self, site: SiteSize, options: &Options) -> Bytes {
        let SiteSize { width, classes, measured_source } = site;
        let (peak, held) = match classes {
            None => Constraint::memory(width, options.terms(), measured_source),
            Some(classes) => TokenConstraint::memory(width, classes, options.terms(), measured_source),
        };
        Bytes { peak, held }
    }

    fn basis_cubes(&self, site: SiteSize, options: &Options) -> f64 {
        match options.coupling {
            // Measured at width 4096: as many operations as products of matrices have in that time.
            Coupling::Transport => 15.0,
            // All other matrices of tokens are diagonal.
            _ if site.classes.is_some() => 0.0,
            _ => 0.6,
        }
    }

    fn layer_work(&self, layer: LayerSize) -> f64 {
        // The change, and the triangle of the second moment.
        layer.truncated(3.0)
    }

    fn layer_memory(&self, outputs: u64, inputs: u64, components: u64) -> u64 {
        low_rank::memory(outputs, inputs, components)
    }
}

impl Basis for Constraint {
    fn decompose(&self, weight: Weight<'_>, options: &Options, par: Par) -> Result<Draft> {
        decompose(self, weight, options, par).map(Draft::Update)
    }

    fn dampings(&self) -> Vec<(&'static str, f64)> {
        self.dampings().named().collect()
    }

    fn frechet_distance(&self) -> Option<f64> {
        self.frechet_distance()
    }
}

impl Basis for TokenConstraint {
    fn decompose(&self, weight: Weight<'_>, options: &Options, par: Par) -> Result<Draft> {
        decompose(self, weight, options, par).map(Draft::Update)
    }

    fn dampings(&self) -> Vec<(&'static str, f64)> {
        self.dampings().named().collect()
    }

    fn frechet_distance(&self) -> Option<f64> {
        self.frechet_distance()
    }
}

/// The update of a layer, `Δ F = W · (K − C) (C + ρ_p S + λI)⁻¹ F`, applied factor by factor.
struct Update<'a> {
    weight: MatRef<'a, f32>,
    constraint: &'a dyn SiteOperator,
    norm: Norm,
}

impl Operator for Update<'_> {
    fn rows(&self) -> usize {
        self.weight.nrows()
    }
    fn columns(&self) -> usize {
        self.weight.ncols()
    }
    fn apply(&self, block: MatRef<'_, f32>, par: Par) -> Mat<f32> {
        self.weight.apply(self.constraint.apply(self.norm, block, par).as_ref(), par)
    }
    fn apply_transpose(&self, block: MatRef<'_, f32>, par: Par) -> Mat<f32> {
        self.constraint.apply_transpose(self.norm, self.weight.apply_transpose(block, par).as_ref(), par)
    }
}

/// Decomposes the update of one layer.
///
/// # Errors
/// [`Error::Shape`] if the weight does not read activations of this width; the errors of the decomposition.
fn decompose(
    constraint: &dyn SiteOperator,
    weight: Weight<'_>,
    options: &Options,
    par: Par,
) -> Result<Decomposition> {
    let components = options.components(weight.full_rank());
    let Weight { numbers: weight, name, .. } = weight;
    check_width(weight, constraint.width())?;
    let update = Update { weight, constraint, norm: options.norm };
    let svd = low_rank::truncated_svd(&update, components, options.seed, name, par)?;
    let mut a = svd.v;
    constraint.leave_norm(options.norm, a.as_mut(), par);
    // Only this start has a limit for the size of the update.
    let (activation_energy, output_energy) = if options.start == Start::Update {
        (
            constraint.activation_energy(a.as_ref(), par),
            output_energy(constraint, weight, name, options.seed, par)?,
        )
    } else {
        (Vec::new(), 0.0)
    };
    Ok(Decomposition {
        components: Components { u: svd.u, sigma: svd.s, a, activation_energy, output_energy },
        energy: svd.energy,
        energy_exact: svd.energy_exact,
        residual: svd.residual,
    })
}

/// `E|W x|²`, the base of the trust region: exact if a product of `W` and `Σ` is cheap, otherwise estimated with an error well
/// below one per cent.
fn output_energy(
    constraint: &dyn SiteOperator,
    weight: MatRef<'_, f32>,
    name: &str,
    seed: u64,
    par: Par,
) -> Result<f64> {
    const EXACT_SIDE: usize = 2048;
    let is_small = weight.nrows().min(weight.ncols()) <= EXACT_SIDE;
    let Some((mean, sign, covariance)) = constraint.mean_and_covariance().filter(|_| !is_small) else {
        return Ok(constraint.output_energy(weight, par));
    };
    let transposed = weight.transpose();
    // It is symmetric, and faster in this layout.
    let covariance = covariance.transpose();
    let moved = Product { left: &covariance, right: &transposed };
    let varying = low_rank::trace(&Product { left: &weight, right: &moved }, seed, name, par)?;
    Ok(sign * varying + energy_of_mean(weight, mean))
}

#[cfg(test)]
mod zero_features;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::constraint::{ChannelScale, Evidence};
    use crate::factors::Strength;
    use crate::initializer::{Initializer, Layer};
    use crate::moments::Moments;
    use crate::random::gaussian;
    use crate::rank::{Limits, Policy};
    use quickcheck::quickcheck;

    const RIDGE: f64 = 0.05;

    fn options(norm: Norm, rank: usize) -> Options {
        Options {
            norm,
            ridge: RIDGE,
            channel_scale: ChannelScale::Mean,
            strength: Strength::Fixed(1.0),
            start: Start::Update,
            ranks: Policy::Fixed(rank),
            limits: Limits { min: 0, max: rank, multiple: 1 },
            ..Options::default()
        }
    }

    /// The update of one layer.
    pub(super) fn decomposed(evidence: Evidence<'_>, weight: &Mat<f32>, options: &Options) -> Decomposition {
        match layer(evidence, weight, options).unwrap().into_draft() {
            Draft::Update(update) => update,
            Draft::Nested(_) => unreachable!("the method makes updates"),
        }
    }

    pub(super) fn layer(evidence: Evidence<'_>, weight: &Mat<f32>, options: &Options) -> Result<Layer> {
        Initializer::new(options.clone())?.site(evidence)?.layer("layer", weight.as_ref())
    }

    quickcheck! {
        /// Truncation in the activations' norm has the least error in that norm: the error is that of the singular values beyond the
        /// rank, and at most that of truncating the update itself.
        fn truncation_minimizes_the_error_in_its_norm(width: u8, outputs: u8, rank: u8, seed: u64) -> bool {
            let (width, outputs) = (usize::from(width % 10) + 3, usize::from(outputs % 10) + 2);
            let rank = usize::from(rank) % (width.min(outputs) - 1) + 1;
            let mixing = gaussian::<f32>(width, width, seed, "mixing");
            let rows = gaussian::<f32>(80, width, seed, "rows") * mixing;
            let target = Moments::of(rows.as_ref()).unwrap();
            let weight = gaussian::<f32>(outputs, width, seed, "weight");
            let evidence = Evidence { target: &target, source: None, change: None };
            let constraint = Constraint::new(evidence, options(Norm::Weights, rank).terms(), Par::Seq).unwrap();
            let identity = Mat::<f32>::identity(width, width);
            let update = &weight * constraint.apply(Norm::Weights, identity.as_ref(), Par::Seq);
            let trace: f64 = target.second_moment().unwrap().diagonal().column_vector().iter().sum();
            let lambda = RIDGE * trace / width as f64;

            let error = |norm| {
                let options = options(norm, rank);
                let made = layer(evidence, &weight, &options).unwrap().factors().unwrap();
                let rest = &update - &made.b * &made.a;
                constraint.output_energy(rest.as_ref(), Par::Seq) + lambda * f64::from(rest.squared_norm_l2())
            };
            let options = options(Norm::Activations, rank);
            let cut = decomposed(evidence, &weight, &options);
            let left = cut.energy - cut.components.sigma[..rank].iter().map(|sigma| sigma * sigma).sum::<f64>();
            let (least, other) = (error(Norm::Activations), error(Norm::Weights));
            let rounding = 1e-4 * cut.energy;
            least <= other + rounding && (least - left).abs() <= rounding
        }
    }

    /// A weight of another width is refused before anything is computed.
    #[test]
    fn weights_that_do_not_fit_are_refused() {
        let target = Moments::of(gaussian::<f32>(30, 5, 0, "rows").as_ref()).unwrap();
        let evidence = Evidence { target: &target, source: None, change: None };
        let refusal = |weight: Mat<f32>| layer(evidence, &weight, &Options::default()).unwrap_err();
        let shape = Error::Shape { what: "input features of the weight", expected: 5, found: 4 };
        assert_eq!(refusal(Mat::zeros(3, 4)), shape);
        let nan = Mat::from_fn(3, 5, |_, _| f32::NAN);
        assert_eq!(refusal(nan), Error::NonFinite { what: "the weight" });
    }
}
