//! MiCA: *MiCA*, Minor Component Adaptation, 2026, arXiv 2604.01694, as PEFT's `mica`.
//!
//! With `U S Vᵀ = svd(W)`: `B` is the last `r` columns of `U` and does not change during training, `A = 0`, and the base stays as it
//! is. Both follow from the weight alone, and from no scale.
//!
//! The training program has to keep `B`: PEFT does so if `init_lora_weights` is `mica` in the configuration of the adapter. It does for
//! linear layers, Conv1D and embeddings, so only these have the method.
//!
//! Differs from PEFT's `mica` in the signs of the columns, of which the entry of largest magnitude is positive, and in that the
//! decomposition is computed in f64 instead of f32. If singular values are equal, as in a singular weight, the columns among them are
//! arbitrary, and only their space is unique.

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
pub(crate) struct Mica;

impl Definition for Mica {
    fn description(&self) -> &'static str {
        "The minor left singular vectors of the weight as B, which training keeps, and A = 0"
    }

    fn starts(&self) -> &'static [Start] {
        &[Start::Zero]
    }

    fn rank_rule(&self) -> RankRule {
        RankRule::Fixed
    }

    fn form(&self, _: Start, _: &LayerShape) -> Form {
        Form::OrthonormalUpZeroDown
    }

    fn keeps_up(&self) -> bool {
        true
    }

    fn reason_against(&self, shape: &LayerShape) -> Option<&'static str> {
        match shape {
            LayerShape::Linear | LayerShape::Transposed | LayerShape::Embedding => None,
            LayerShape::Convolution(_) | LayerShape::Group { .. } | LayerShape::Expert { .. } => {
                Some("PEFT keeps B during training only in linear layers and embeddings")
            }
        }
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

impl Basis for Mica {
    fn decompose(&self, weight: Weight<'_>, options: &Options, par: Par) -> Result<Draft> {
        let rank = options.components(weight.full_rank());
        let last = low_rank::last_components(dense::to_f64(weight.numbers).as_ref(), rank, par)?;
        let signs: Vec<f64> = last.u.col_iter().map(|u| sign_of_largest(u.iter().copied())).collect();
        let b = Mat::from_fn(last.u.nrows(), rank, |i, j| (signs[j] * last.u[(i, j)]) as f32);
        let factors = Factors { a: Mat::zeros(rank, weight.numbers.ncols()), b };
        Ok(Draft::Nested(Nested::of_no_energy(factors)))
    }
}
