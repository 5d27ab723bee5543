//! Orthogonal initialization: Datta, *Rethinking LoRA initialization*, 2024 (datta0.github.io/posts/rethink-lora-init), as PEFT's
//! `orthogonal`. Both factors are random and not zero, but their product is zero: one factor uses the odd rows of an orthogonal matrix `Q
//! (r × r)`, the other the even rows.
//!
//! `A = (G₁ Q_odd)ᵀ / 10`, `B = G₂ᵀ Q_even / 10` with standard normal `G₁ (d × r/2)` and `G₂ (r/2 × m)`; `r` must be even.
//!
//! Differs from PEFT in the random generator: the seed and the layer's name select the layer's stream. PEFT supports linear layers and
//! Conv1D only; this crate also supports convolutions and fused experts, with a `Q` for each group or expert.

use super::definition::{Basis, Definition, Form, RankRule, Weight};
use super::{Draft, Method, Nested, Options};
use crate::constraint::SiteEvidence;
use crate::dense;
use crate::error::{Error, Result};
use crate::factors::{Factors, LayerShape, Start};
use crate::random;
use faer::{Mat, Par};

/// The method.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Orthogonal;

impl Definition for Orthogonal {
    fn description(&self) -> &'static str {
        "Random factors whose product is zero"
    }

    fn starts(&self) -> &'static [Start] {
        &[Start::Zero]
    }

    fn rank_rule(&self) -> RankRule {
        RankRule::Fixed
    }

    fn form(&self, _: Start, _: &LayerShape) -> Form {
        Form::ZeroProduct
    }

    fn has_pairs(&self) -> bool {
        true
    }

    fn reason_against(&self, shape: &LayerShape) -> Option<&'static str> {
        let reason = "PEFT supports it for other layers only, and gives embeddings the factors of lora";
        (*shape == LayerShape::Embedding).then_some(reason)
    }

    fn basis(&self, _: Option<SiteEvidence<'_>>, _: &str, _: &Options, _: Par) -> Result<Box<dyn Basis>> {
        Ok(Box::new(*self))
    }
}

impl Basis for Orthogonal {
    fn decompose(&self, weight: Weight<'_>, options: &Options, _: Par) -> Result<Draft> {
        const SIZE: f32 = 0.1;
        let (outputs, inputs) = weight.numbers.shape();
        // Units come in pairs: if the full rank is odd, one unit is left out.
        let half = options.fixed_rank(weight.full_rank()) / 2;
        if half == 0 {
            let (method, what) = (Method::Orthogonal.name(), "a rank below 2".to_owned());
            return Err(Error::Combination { method, what, instead: "its factors come in pairs".into() });
        }
        let draw = |rows, columns, what: &str| {
            random::gaussian::<f32>(rows, columns, options.seed, &format!("{} {what}", weight.name))
        };
        let rotation = dense::to_f64(draw(2 * half, 2 * half, "rotation").as_ref());
        let (q, _) = dense::thin_qr("the orthogonal matrix", rotation, Par::Seq)?;
        let q = dense::to_f32(q.as_ref());
        let every_second = |first: usize| Mat::from_fn(half, 2 * half, |i, j| SIZE * q[(2 * i + first, j)]);
        let a = (draw(inputs, half, "down") * every_second(0)).transpose().to_owned();
        let b = draw(half, outputs, "up").transpose() * every_second(1);
        Ok(Draft::Nested(Nested::of_no_energy(Factors { a, b })))
    }
}
