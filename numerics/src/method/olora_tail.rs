//! OLoRA's tail: the last singular vectors of the weight, both orthonormal, without their singular values; for reinforcement learning,
//! where PiSSA and MiLoRA are unstable. arXiv 2606.02437, 2026.
//!
//! With `U S Vᵀ = svd(W)`: `B` is the last `r` columns of `U`, `A` the last `r` rows of `Vᵀ`, and the base becomes `W − s B A`, so that the
//! model starts unchanged. As in OLoRA, nothing is divided by `s`. The text of the paper was not available when this was written: the
//! form of the factors is known from a comparison of methods, and the base follows from it.
//!
//! The triplets are computed in f64, as for [`milora`](super::milora). If singular values are equal, the vectors among them are
//! arbitrary. For equal values other than zero the product is still unique if the rank takes all of them. Those that are zero can be
//! paired in any way, and then only the two spaces are unique. PEFT does not have the method.

use super::definition::{Basis, Definition, Form, LayerSize, RankRule, Weight};
use super::{Draft, Nested, Options};
use crate::constraint::SiteEvidence;
use crate::dense;
use crate::error::Result;
use crate::factors::{Factors, LayerShape, Start, sign_of_largest};
use crate::low_rank;
use faer::{Mat, Par};

/// The method.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OloraTail;

impl Definition for OloraTail {
    fn description(&self) -> &'static str {
        "The minor singular vectors of the weight, without the singular values; the base changes by them"
    }

    fn rank_rule(&self) -> RankRule {
        RankRule::Fixed
    }

    fn form(&self, _: Start, _: &LayerShape) -> Form {
        Form::Orthonormal
    }

    fn basis(&self, _: Option<SiteEvidence<'_>>, _: &str, _: &Options, _: Par) -> Result<Box<dyn Basis>> {
        Ok(Box::new(*self))
    }

    fn layer_work(&self, layer: LayerSize) -> f64 {
        low_rank::last_work(layer.outputs, layer.inputs, layer.components)
    }

    fn layer_memory(&self, outputs: u64, inputs: u64, _: u64) -> u64 {
        low_rank::dense_memory(outputs, inputs)
    }
}

impl Basis for OloraTail {
    fn decompose(&self, weight: Weight<'_>, options: &Options, par: Par) -> Result<Draft> {
        let rank = options.components(weight.full_rank());
        let last = low_rank::last_components(dense::to_f64(weight.numbers).as_ref(), rank, par)?;
        // One sign for both vectors of a pair, so that the product does not change.
        let signs: Vec<f64> = last.v.col_iter().map(|v| sign_of_largest(v.iter().copied())).collect();
        let a = Mat::from_fn(rank, last.v.nrows(), |i, j| (signs[i] * last.v[(j, i)]) as f32);
        let b = Mat::from_fn(last.u.nrows(), rank, |i, j| (signs[j] * last.u[(i, j)]) as f32);
        let factors = Factors { a, b };
        Ok(Draft::Nested(Nested { factors, spectrum: last.s, energy: last.energy, effective_rank: None }))
    }
}
