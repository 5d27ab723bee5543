//! CNTLoRA: Das, Park, Hayat, Choi, Yun & Porikli, *ConsNoTrainLoRA: Data-driven Weight Initialization of Low-rank
//! Adapters using Constraints*, ICCV 2025, arXiv 2507.08044.
//!
//! From its abstract: initialization as a domain shift; constraints between pre-training and fine-tuning activations; a closed
//! form of the update from pre-trained weights and fine-tuning activations; its decomposition into up and down matrices of
//! variable rank. The equations are this project's own derivation from those statements, and are not the paper's.

use super::{Decomposition, Options, check_width};
use crate::constraint::{Constraint, Evidence, Norm, SiteOperator, energy_of_mean};
use crate::error::Result;
use crate::factors::{Components, Initialization};
use crate::low_rank::{self, Operator, Product};
use crate::rank;
use faer::{Mat, MatRef, Par};

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

/// Decomposes the update of one layer, `W (m × d)`. `name` gives its random stream.
///
/// # Errors
/// The first complaint of the options; [`Error::Shape`](crate::error::Error::Shape) if the weight does not read activations of this width;
/// [`Error::NonFinite`](crate::error::Error::NonFinite) for a weight with NaN or infinity; what the decomposition returns.
pub fn decompose(
    constraint: &dyn SiteOperator,
    weight: MatRef<'_, f32>,
    name: &str,
    options: &Options,
    par: Par,
) -> Result<Decomposition> {
    options.check()?;
    decompose_part(constraint, weight, name, options, par)
}

/// As [`decompose`], with the options of a part of a layer: its share of the rank may be outside the limits.
pub(super) fn decompose_part(
    constraint: &dyn SiteOperator,
    weight: MatRef<'_, f32>,
    name: &str,
    options: &Options,
    par: Par,
) -> Result<Decomposition> {
    let width = constraint.width();
    check_width(weight, width)?;
    crate::dense::check_finite("the weight", weight)?;
    let components = options.components(weight.nrows().min(width));
    let update = Update { weight, constraint, norm: options.norm };
    let svd = low_rank::truncated_svd(&update, components, options.seed, name, par)?;
    let mut a = svd.v;
    constraint.leave_norm(options.norm, a.as_mut(), par);
    let activation_energy = constraint.activation_energy(a.as_ref(), par);
    let output_energy = output_energy(constraint, weight, name, options.seed, par)?;
    Ok(Decomposition {
        components: Components { u: svd.u, sigma: svd.s, a, activation_energy, output_energy },
        energy: svd.energy,
        energy_exact: svd.energy_exact,
        residual: svd.residual,
    })
}

/// `E|W x|²`, which the trust region is a share of: exact up to a side that a product of `W` and `Σ` is cheap for, and
/// beyond it estimated, to a fraction of a per cent.
fn output_energy(
    constraint: &dyn SiteOperator,
    weight: MatRef<'_, f32>,
    name: &str,
    seed: u64,
    par: Par,
) -> Result<f64> {
    const EXACT_SIDE: usize = 2048;
    let is_small = weight.nrows().min(weight.ncols()) <= EXACT_SIDE;
    let Some((mean, covariance)) = constraint.mean_and_covariance().filter(|_| !is_small) else {
        return Ok(constraint.output_energy(weight, par));
    };
    let transposed = weight.transpose();
    let moved = Product { left: &covariance, right: &transposed };
    let varying = low_rank::trace(&Product { left: &weight, right: &moved }, seed, name, par)?;
    Ok(varying + energy_of_mean(weight, mean))
}

/// The whole method for one layer on its own: from what was measured at its site to its factors.
///
/// Where several weights read one site, build its [`Constraint`] once and call [`decompose`] for each of them; where
/// ranks are to be shared out among layers, decompose all of them before [`rank::allocate`].
///
/// # Errors
/// The first complaint of the options; what [`Constraint::new`], [`decompose`], [`rank::allocate`] and [`Components::initialize`] return.
pub fn initialize(
    evidence: Evidence<'_>,
    weight: MatRef<'_, f32>,
    name: &str,
    options: &Options,
    par: Par,
) -> Result<Initialization> {
    options.check()?;
    let constraint = Constraint::new(evidence, options.terms(), par)?;
    let decomposition = decompose(&constraint, weight, name, options, par)?;
    let rank = rank::allocate(options.ranks, options.limits, &[decomposition.as_layer(options.start)])?[0];
    decomposition.components.initialize(rank, options.strength, options.start, options.scale)
}

#[cfg(test)]
mod zero_features;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::constraint::ChannelScale;
    use crate::error::Error;
    use crate::factors::{Start, Strength};
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

    quickcheck! {
        /// Cutting in the activations' norm leaves the least error in it: what the singular values beyond the rank say, and no
        /// more than cutting the update itself leaves.
        fn the_norm_that_is_asked_for_is_minimized(width: u8, outputs: u8, rank: u8, seed: u64) -> bool {
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
                let made = initialize(evidence, weight.as_ref(), "layer", &options, Par::Seq).unwrap();
                let rest = &update - &made.factors.b * &made.factors.a;
                constraint.output_energy(rest.as_ref(), Par::Seq) + lambda * f64::from(rest.squared_norm_l2())
            };
            let options = options(Norm::Activations, rank);
            let cut = decompose(&constraint, weight.as_ref(), "layer", &options, Par::Seq).unwrap();
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
        let refusal = |weight: Mat<f32>| {
            initialize(evidence, weight.as_ref(), "layer", &Options::default(), Par::Seq).unwrap_err()
        };
        let shape = Error::Shape { what: "input features of the weight", expected: 5, found: 4 };
        assert_eq!(refusal(Mat::zeros(3, 4)), shape);
        let nan = Mat::from_fn(3, 5, |_, _| f32::NAN);
        assert_eq!(refusal(nan), Error::NonFinite { what: "the weight" });
    }
}
