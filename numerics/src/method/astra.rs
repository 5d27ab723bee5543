//! Astra: *Astra: Activation-Space Tail-Eigenvector Low-Rank Adaptation of Large Language Models*, Findings of ACL 2026,
//! arXiv 2602.19111.
//!
//! The columns of `Q` are the `r` leading eigenvectors of the second moment of the layer's outputs, `W C Wᵀ`; the authors list eigenvalues
//! in ascending order, and so call them the tail. `B = Q`, `A = Qᵀ W`, and the base becomes `W − s B A`: [`sc_lora`](super::sc_lora) with
//! `β = 0`. Ranks are in proportion to `ln(e + 1)`, where `e` is the effective rank of the outputs: `exp` of the entropy of the eigenvalues'
//! shares. The total is that of rank `r` in every layer ([`Policy::Proportional`](crate::rank::Policy::Proportional)).
//!
//! Differs from the authors' code:
//! - `C` is the mean over all rows. Their code divides the outputs of each call by the largest one, which changes the weights of the calls;
//!   with one call the eigenvectors and the effective ranks agree. They record outputs, with the bias of the layer if it has one;
//!   here outputs are `W x`.
//! - No layer gets more than `ρ r`, with `ρ = 2` unless another is given. Theirs gets at most the larger of `2 r` and 256. Their code
//!   shares ranks out only if it is asked to: `ρ = 1` gives every layer the rank `r`.
//! - It supports linear layers only; this crate supports every kind of layer.
//!
//! Effective ranks need all eigenvalues, so the matrix is decomposed as a whole, in f64. PEFT 0.21 does not have the method.

use super::definition::{Basis, Bytes, Definition, Form, LayerSize, RankRule, SiteSize, Uses, Weight};
use super::sc_lora::{LeadingOutputs, Symmetric};
use super::{Draft, Nested, Options};
use crate::constraint::SiteEvidence;
use crate::error::Result;
use crate::factors::{LayerShape, Start};
use crate::low_rank;
use faer::Par;

/// The method.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Astra;

impl Definition for Astra {
    fn description(&self) -> &'static str {
        "The directions of the largest outputs, with ranks by effective rank; the base keeps the rest"
    }

    fn rank_rule(&self) -> RankRule {
        RankRule::Proportional
    }

    fn form(&self, _: Start, _: &LayerShape) -> Form {
        Form::OrthonormalUp
    }

    fn uses(&self) -> Uses {
        Uses::Target
    }

    fn basis(
        &self,
        evidence: Option<SiteEvidence<'_>>,
        _: &str,
        _: &Options,
        _: Par,
    ) -> Result<Box<dyn Basis>> {
        Ok(Box::new(Moment(Symmetric::of_target(evidence)?)))
    }

    fn basis_memory(&self, site: SiteSize, _: &Options) -> Bytes {
        let held = Symmetric::memory(site);
        Bytes { peak: held.saturating_mul(2), held }
    }

    fn layer_work(&self, layer: LayerSize) -> f64 {
        low_rank::dense_work(layer.outputs, layer.inputs)
    }

    fn layer_memory(&self, outputs: u64, inputs: u64, _: u64) -> u64 {
        low_rank::dense_memory(outputs, inputs)
    }
}

/// `C` of a site.
#[derive(Debug)]
struct Moment(Symmetric);

impl Basis for Moment {
    fn decompose(&self, weight: Weight<'_>, options: &Options, par: Par) -> Result<Draft> {
        let components = options.components(weight.full_rank());
        let leading = LeadingOutputs::of(&self.0, &weight, components, options.seed, par)?;
        // Eigenvalues of a second moment are not negative, apart from rounding.
        let values: Vec<f64> = leading.eigenvalues.iter().map(|value| value.max(0.0)).collect();
        let spectrum = values[..components].iter().map(|value| value.sqrt()).collect();
        let effective_rank = Some(effective_rank(&values));
        let energy = values.iter().sum();
        Ok(Draft::Nested(Nested { factors: leading.factors, spectrum, energy, effective_rank }))
    }
}

/// `exp` of the entropy of the shares of these numbers, none of which is negative: from 1 to their number; 0 if all of them are zero.
fn effective_rank(values: &[f64]) -> f64 {
    let whole: f64 = values.iter().sum();
    if whole <= 0.0 {
        return 0.0;
    }
    let shares = values.iter().map(|value| value / whole).filter(|share| *share > 0.0);
    (-shares.map(|share| share * share.ln()).sum::<f64>()).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Equal values count fully, zeros do not count, and the scale does not matter.
    #[test]
    fn effective_ranks() {
        let near = |found: f64, wanted: f64| assert!((found - wanted).abs() < 1e-12, "{found} for {wanted}");
        near(effective_rank(&[2.0; 5]), 5.0);
        near(effective_rank(&[7.0, 0.0, 0.0]), 1.0);
        // −½ ln ½ − 2 · ¼ ln ¼ = 1.5 ln 2.
        near(effective_rank(&[2e-30, 1e-30, 1e-30]), 8f64.sqrt());
        assert_eq!(effective_rank(&[0.0; 3]), 0.0);
    }
}
