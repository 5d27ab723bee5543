//! LoRA: Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang & Chen, *LoRA: Low-Rank Adaptation of Large Language Models*, ICLR 2022,
//! arXiv 2106.09685. A random `A` and `B = 0`, from the shape of the weight alone.
//!
//! `lora` draws `A` as PEFT does by default, by Kaiming's rule with `a = √5`: uniformly from `(−1/√d, 1/√d)`. `gaussian` draws it
//! from a normal distribution with the standard deviation `1/r`, as PEFT's `gaussian` and the training scripts of diffusers. For an
//! embedding both methods use `A = 0` and a standard normal `B`, as PEFT does.
//!
//! Differs from PEFT in the random generator: the seed and the layer's name select the layer's stream.

use super::definition::{Basis, Definition, Form, RankRule, Weight};
use super::{Draft, Nested, Options};
use crate::constraint::SiteEvidence;
use crate::error::Result;
use crate::factors::{Factors, LayerShape, Start};
use crate::random;
use faer::{Mat, Par};

/// The method, with the distribution of the down matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lora(pub Down);

/// The distribution of the down matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Down {
    /// Kaiming's rule.
    Kaiming,
    /// Normal.
    Gaussian,
}

impl Definition for Lora {
    fn description(&self) -> &'static str {
        match self.0 {
            Down::Kaiming => "Kaiming's uniform A, and B = 0: the default of PEFT",
            Down::Gaussian => "A normally distributed A, and B = 0",
        }
    }

    fn starts(&self) -> &'static [Start] {
        &[Start::Zero]
    }

    fn rank_rule(&self) -> RankRule {
        RankRule::Fixed
    }

    fn form(&self, _: Start, shape: &LayerShape) -> Form {
        if *shape == LayerShape::Embedding { Form::ZeroDown } else { Form::ZeroUp }
    }

    fn basis(&self, _: Option<SiteEvidence<'_>>, _: &str, _: &Options, _: Par) -> Result<Box<dyn Basis>> {
        Ok(Box::new(*self))
    }
}

impl Basis for Lora {
    fn decompose(&self, weight: Weight<'_>, options: &Options, _: Par) -> Result<Draft> {
        let (outputs, inputs) = weight.numbers.shape();
        let rank = options.fixed_rank(weight.full_rank());
        let normal = |rows, columns| random::gaussian::<f32>(rows, columns, options.seed, weight.name);
        let factors = match self.0 {
            _ if *weight.shape == LayerShape::Embedding => {
                Factors { a: Mat::zeros(rank, inputs), b: normal(outputs, rank) }
            }
            Down::Kaiming => {
                let unit = random::uniform(rank, inputs, options.seed, weight.name);
                with_down(outputs, unit * faer::Scale(1.0 / (inputs as f32).sqrt()))
            }
            // The rank is that of all parts together.
            Down::Gaussian => {
                let scale = 1.0 / (weight.shape.parts() * rank) as f32;
                with_down(outputs, normal(rank, inputs) * faer::Scale(scale))
            }
        };
        Ok(Draft::Nested(Nested::of_no_energy(factors)))
    }
}

fn with_down(outputs: usize, a: Mat<f32>) -> Factors {
    Factors { b: Mat::zeros(outputs, a.nrows()), a }
}
