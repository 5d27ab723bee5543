//! OLoRA: Büyükakyüz, *OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models*, 2024, arXiv 2406.01775.
//!
//! With `Q R = W`: `B` is the first `r` columns of `Q`, `A` the first `r` rows of `R`, and the base becomes `W − s B A`: as
//! in PEFT's `olora`, nothing is divided by `s`.
//!
//! Differs from PEFT in the signs of the columns of `Q`, which do not change the product. Only the first `r` columns of `W` are
//! decomposed: they determine `B`, and `A = Bᵀ W`. PEFT supports linear layers only; this crate supports every kind of layer.

use super::definition::{Basis, Definition, Form, RankRule, Weight};
use super::{Draft, Nested, Options};
use crate::constraint::SiteEvidence;
use crate::dense;
use crate::error::Result;
use crate::factors::{Factors, LayerShape, Start};
use faer::Par;

/// The method.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Olora;

impl Definition for Olora {
    fn description(&self) -> &'static str {
        "The first columns of an orthonormal basis of the weight; the base keeps the rest"
    }

    fn rank_rule(&self) -> RankRule {
        RankRule::Fixed
    }

    fn form(&self, _: Start, _: &LayerShape) -> Form {
        Form::OrthonormalUp
    }

    fn basis(&self, _: Option<SiteEvidence<'_>>, _: &str, _: &Options, _: Par) -> Result<Box<dyn Basis>> {
        Ok(Box::new(*self))
    }
}

impl Basis for Olora {
    fn decompose(&self, weight: Weight<'_>, options: &Options, par: Par) -> Result<Draft> {
        let rank = options.components(weight.full_rank());
        let weight = weight.numbers;
        let (b, _) = dense::thin_qr("the weight", dense::to_f64(weight.subcols(0, rank)), par)?;
        let b = dense::to_f32(b.as_ref());
        let a = dense::product(b.transpose(), weight, par);
        // B is orthonormal, so the rows of A hold the energy of the product.
        let spectrum = (0..rank).map(|row| f64::from(a.row(row).norm_l2())).collect();
        let energy = f64::from(weight.norm_l2()).powi(2);
        Ok(Draft::Nested(Nested { factors: Factors { a, b }, spectrum, energy, effective_rank: None }))
    }
}
