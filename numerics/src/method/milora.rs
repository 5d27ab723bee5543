//! MiLoRA: Wang, Xiong, Wang, Zhang, Hu & Liu, *MiLoRA: Harnessing Minor Singular Components for Parameter-Efficient LLM
//! Finetuning*, NAACL 2025, arXiv 2406.09044. The adapter takes over the minor part of the weight, and the base keeps the
//! principal part.
//!
//! As PiSSA, with the last `r` singular triplets of `svd(W)`. They are computed in f64: in f32 they would be lost in
//! the rounding of the largest one. PEFT does not have it.

use super::definition::{Basis, Definition, Form, LayerSize, RankRule, Weight};
use super::{Draft, Options, pissa};
use crate::constraint::SiteEvidence;
use crate::dense;
use crate::error::Result;
use crate::factors::{LayerShape, Start};
use crate::low_rank::{self, TruncatedSvd};
use faer::Par;

/// The method.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Milora;

impl Definition for Milora {
    fn description(&self) -> &'static str {
        "The minor singular triplets of the weight; the base keeps the rest"
    }

    fn rank_rule(&self) -> RankRule {
        RankRule::Fixed
    }

    fn form(&self, _: Start, _: &LayerShape) -> Form {
        Form::Balanced
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

impl Basis for Milora {
    fn decompose(&self, weight: Weight<'_>, options: &Options, par: Par) -> Result<Draft> {
        let rank = options.components(weight.full_rank());
        let TruncatedSvd { u, s, v, energy, energy_exact, residual } =
            low_rank::last_components(dense::to_f64(weight.numbers).as_ref(), rank, par)?;
        let (u, v) = (dense::to_f32(u.as_ref()), dense::to_f32(v.as_ref()));
        Ok(Draft::Update(pissa::of_weight(TruncatedSvd { u, s, v, energy, energy_exact, residual })))
    }
}

#[cfg(test)]
mod tests {
    use crate::dense::{to_f32, to_f64};
    use crate::initializer::Initializer;
    use crate::method::{Method, Options};
    use crate::oracle::{jacobi, orthonormal};
    use crate::rank::{Limits, Policy};
    use faer::Mat;

    const RANK: usize = 4;

    /// The last singular values and the product of the factors.
    fn made(weight: &Mat<f32>) -> (Vec<f64>, Mat<f64>) {
        let options = Options {
            method: Method::Milora,
            start: Method::Milora.starts()[0],
            ranks: Policy::Fixed(RANK),
            limits: Limits { min: 0, max: RANK, multiple: 1 },
            ..Options::default()
        };
        let site = Initializer::new(options).unwrap().site_without_activations().unwrap();
        let layer = site.layer("w", weight.as_ref()).unwrap();
        let factors = layer.factors().unwrap();
        (layer.spectrum().to_vec(), to_f64(factors.b.as_ref()) * to_f64(factors.a.as_ref()))
    }

    fn same(label: &str, weight: &Mat<f32>, s: &[f64], product: &Mat<f64>) {
        let (found_s, found) = made(weight);
        for (found, wanted) in found_s.iter().zip(s) {
            assert!((found / wanted - 1.0).abs() < 1e-5, "{label}: singular value {found:e} for {wanted:e}");
        }
        let error = (&found - product).norm_l2() / product.norm_l2();
        assert!(error < 2e-5, "{label}: the product is off by {error:e}");
    }

    /// If the rows of `Q` are orthonormal, the last triplets of `D Q` are the rows that `D` scales least. Rounding to f32 changes
    /// no singular value by more than 1e-6 of itself.
    #[test]
    fn rows_of_very_different_size() {
        let q = orthonormal(36, 30, 0, "rows");
        for condition in [1e4f64, 1e6, 1e8] {
            // Out of order.
            let place = |i: usize| (7 * i + 3) % 30;
            let value = |i: usize| condition.powf(-(place(i) as f64) / 29.0);
            let weight = Mat::from_fn(30, 36, |i, j| (value(i) * q[(j, i)]) as f32);
            let product =
                Mat::from_fn(
                    30,
                    36,
                    |i, j| if place(i) >= 30 - RANK { f64::from(weight[(i, j)]) } else { 0.0 },
                );
            let s: Vec<f64> = (30 - RANK..30).map(|t| condition.powf(-(t as f64) / 29.0)).collect();
            same(&format!("D Q, condition {condition:e}"), &weight, &s, &product);
            let transposed = weight.transpose().to_owned();
            same(
                &format!("(D Q)ᵀ, condition {condition:e}"),
                &transposed,
                &s,
                &product.transpose().to_owned(),
            );
        }
    }

    /// Dense weights with random singular vectors, whose last singular values come partly from rounding to f32.
    #[test]
    fn weights_of_large_condition() {
        for (condition, m, n) in [(1e4f64, 40, 30), (1e6, 30, 40), (1e8, 30, 30)] {
            let side = m.min(n);
            let value = |t: usize| condition.powf(-(t as f64) / (side - 1) as f64);
            let left = orthonormal(m, side, 0, "left");
            let scaled = Mat::from_fn(m, side, |i, j| left[(i, j)] * value(j));
            let weight = to_f32((scaled * orthonormal(n, side, 0, "right").transpose()).as_ref());
            let wide = to_f64(weight.as_ref());
            let (u, s, v) = if m >= n {
                jacobi(wide.as_ref())
            } else {
                let (v, s, u) = jacobi(wide.transpose());
                (u, s, v)
            };
            let first = side - RANK;
            let scaled = Mat::from_fn(m, RANK, |i, j| u[(i, first + j)] * s[first + j]);
            let product = scaled * v.subcols(first, RANK).transpose();
            same(&format!("condition {condition:e}"), &weight, &s[first..], &product);
        }
    }
}
