//! PiSSA: Meng, Wang & Zhang, *PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models*,
//! NeurIPS 2024, arXiv 2404.02948. The adapter takes over the principal part of the weight, and the base keeps the rest.
//!
//! With `U S Vᵀ = svd(W)`: `B = U_r √(S_r / s)`, `A = √(S_r / s) V_rᵀ`, base `W − s B A`.
//!
//! Differs from PEFT's `pissa` in the signs of the singular vectors, which do not change the product, and in that large weights are
//! decomposed by a Krylov method with a residual check instead of a full decomposition. PEFT supports linear layers and Conv1D only; this
//! crate also supports convolutions, embeddings and fused experts.

use super::definition::{Basis, Definition, Form, LayerSize, RankRule, Weight};
use super::{Decomposition, Draft, Options};
use crate::constraint::SiteEvidence;
use crate::error::Result;
use crate::factors::{Components, LayerShape, Start};
use crate::low_rank::{self, TruncatedSvd};
use faer::Par;

/// The method.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pissa;

impl Definition for Pissa {
    fn description(&self) -> &'static str {
        "The principal singular triplets of the weight; the base keeps the rest"
    }

    fn rank_rule(&self) -> RankRule {
        RankRule::Spectrum
    }

    fn form(&self, _: Start, _: &LayerShape) -> Form {
        Form::Balanced
    }

    fn basis(&self, _: Option<SiteEvidence<'_>>, _: &str, _: &Options, _: Par) -> Result<Box<dyn Basis>> {
        Ok(Box::new(*self))
    }

    fn layer_work(&self, layer: LayerSize) -> f64 {
        layer.truncated(0.0)
    }

    fn layer_memory(&self, outputs: u64, inputs: u64, components: u64) -> u64 {
        low_rank::memory(outputs, inputs, components)
    }
}

impl Basis for Pissa {
    fn decompose(&self, weight: Weight<'_>, options: &Options, par: Par) -> Result<Draft> {
        let components = options.components(weight.full_rank());
        let svd = low_rank::truncated_svd(&weight.numbers, components, options.seed, weight.name, par)?;
        Ok(Draft::Update(of_weight(svd)))
    }
}

/// The components of a weight's own decomposition. There are no data, and so no energies of activations.
pub(super) fn of_weight(svd: TruncatedSvd) -> Decomposition {
    let TruncatedSvd { u, s, v, energy, energy_exact, residual } = svd;
    let components = Components { u, sigma: s, a: v, activation_energy: Vec::new(), output_energy: 0.0 };
    Decomposition { components, energy, energy_exact, residual }
}
