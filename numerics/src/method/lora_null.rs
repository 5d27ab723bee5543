//! LoRA-Null: Tang, Hu, Liu, Ding, Zhang, Wu & Zhang, *Put the Space of LoRA Initialization to the Extreme to Preserve Pre-trained
//! Knowledge*, AAAI 2026, arXiv 2503.02659.
//!
//! With the last `r` eigenvectors `U` of the second moment `S` of the pre-training activations, and `X Σ Yᵀ = svd(W U Uᵀ)`:
//! `B = X √(Σ / s)`, `A = √(Σ / s) Yᵀ`, base `W − s B A`. The rows of `A` lie where pre-training activations have the smallest part.
//! The authors' second version freezes `A` during training, so that the layer's outputs for such activations stay almost the same; here
//! that is left to the training program.
//!
//! Differs from the authors' code: `S` is the mean over all rows, and the pre-training activations are the data whose knowledge
//! should be kept. Their code divides the rows of each call by the largest one. The method does not use fine-tuning activations.
//!
//! All eigenvectors are computed, in f64: nothing cheaper finds the last ones. Eigenvalues below the rounding errors of the sums, about
//! 1e-6 of the variances of the channels, are not told apart: any directions among them have hardly a part in the activations. If several
//! eigenvalues are equal, as for channels that are always zero, the directions among them are arbitrary. PEFT does not have the method.

use super::definition::{
    Basis, Bytes, Definition, Form, LayerSize, RankRule, SiteSize, Uses, Weight, check_width,
};
use super::sc_lora::{SOURCE, second_moment};
use super::{Decomposition, Draft, Options};
use crate::constraint::SiteEvidence;
use crate::dense;
use crate::error::{Error, Result};
use crate::factors::{Components, LayerShape, Start};
use crate::low_rank;
use crate::moments::RowsOrTokens;
use faer::{Mat, Par};

/// The method.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoraNull;

impl Definition for LoraNull {
    fn description(&self) -> &'static str {
        "The part of the weight that reads what pre-training activations use least; the base keeps the rest"
    }

    fn rank_rule(&self) -> RankRule {
        RankRule::Fixed
    }

    fn form(&self, _: Start, _: &LayerShape) -> Form {
        Form::Balanced
    }

    fn uses(&self) -> Uses {
        Uses::Source
    }

    fn reason_against(&self, shape: &LayerShape) -> Option<&'static str> {
        let reason = "tokens that do not occur are all alike, so there are no last directions";
        (*shape == LayerShape::Embedding).then_some(reason)
    }

    fn basis(
        &self,
        evidence: Option<SiteEvidence<'_>>,
        _: &str,
        options: &Options,
        par: Par,
    ) -> Result<Box<dyn Basis>> {
        let rows = evidence.and_then(RowsOrTokens::rows).ok_or(Error::NoRows)?;
        let source = rows.source.ok_or(Error::NeedsSource { method: options.method.name() })?;
        let moment = second_moment(source, SOURCE)?;
        let (_, vectors) =
            dense::self_adjoint_eigen("second moment of the activations", moment.as_ref(), par)?;
        let count = options.components(moment.nrows());
        Ok(Box::new(LastDirections(vectors.subcols(0, count).to_owned())))
    }

    fn basis_memory(&self, SiteSize { width, .. }: SiteSize, options: &Options) -> Bytes {
        let held = width.saturating_mul(options.components(width as usize) as u64).saturating_mul(8);
        Bytes { peak: low_rank::dense_memory(width, width), held }
    }

    fn basis_cubes(&self, _: SiteSize, _: &Options) -> f64 {
        9.0
    }

    fn layer_work(&self, layer: LayerSize) -> f64 {
        low_rank::dense_work(layer.outputs, layer.inputs)
    }

    fn layer_memory(&self, outputs: u64, inputs: u64, components: u64) -> u64 {
        let whole = outputs.saturating_mul(inputs).saturating_mul(8);
        whole.saturating_add(low_rank::dense_memory(outputs.max(inputs), components))
    }
}

/// The eigenvectors of `S` as columns, the last first.
#[derive(Debug)]
struct LastDirections(Mat<f64>);

impl Basis for LastDirections {
    fn decompose(&self, weight: Weight<'_>, options: &Options, par: Par) -> Result<Draft> {
        let rank = options.components(weight.full_rank());
        check_width(weight.numbers, self.0.nrows())?;
        let directions = self.0.subcols(0, rank);
        // The singular values of W U Uᵀ are those of W U, because the columns of U are orthonormal.
        let response = dense::product(dense::to_f64(weight.numbers).as_ref(), directions, par);
        let svd = dense::thin_svd("the part of the weight", response.as_ref(), par)?;
        let rows = dense::product(directions, svd.v.as_ref(), par);
        let energy = svd.s.iter().map(|sigma| sigma * sigma).sum();
        let components = Components {
            u: dense::to_f32(svd.u.as_ref()),
            sigma: svd.s,
            a: dense::to_f32(rows.as_ref()),
            activation_energy: Vec::new(),
            output_energy: 0.0,
        };
        Ok(Draft::Update(Decomposition { components, energy, energy_exact: true, residual: 0.0 }))
    }
}
