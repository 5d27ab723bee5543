//! LoRA: Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang & Chen, *LoRA: Low-Rank Adaptation of Large Language Models*, ICLR 2022,
//! arXiv 2106.09685. A random `A` and `B = 0`, from the shape of the weight alone.
//!
//! `lora` draws `A` as PEFT does by default, by Kaiming's rule with `a = √5`: uniformly from `(−1/√d, 1/√d)`. `gaussian` draws it
//! from a normal distribution with the standard deviation `1/r`, as PEFT's `gaussian` and the training scripts of diffusers. Of an
//! embedding it is the other factor that is random, for both: `A = 0`, and a standard normal `B`, as in PEFT.
//!
//! Differs from PEFT in the generator: each layer has a stream of its own, which follows from the seed and its name.

use super::{Nested, Options};
use crate::factors::Factors;
use crate::random;
use faer::Mat;

/// Factors of one layer, `W (m × d)`, with `A` by Kaiming's rule.
pub(super) fn kaiming(outputs: usize, inputs: usize, name: &str, options: &Options) -> Nested {
    let rank = options.fixed_rank(outputs.min(inputs));
    let bound = 1.0 / (inputs as f32).sqrt();
    let unit = random::uniform(rank, inputs, options.seed, name);
    with_down(outputs, unit * faer::Scale(bound))
}

/// Factors of one layer, `W (m × d)`, with a normally distributed `A`: one of `parts` parts, whose `r` is that of all together.
pub(super) fn gaussian(outputs: usize, inputs: usize, parts: usize, name: &str, options: &Options) -> Nested {
    let rank = options.fixed_rank(outputs.min(inputs));
    let unit = random::gaussian::<f32>(rank, inputs, options.seed, name);
    with_down(outputs, unit * faer::Scale(1.0 / (parts * rank) as f32))
}

/// Factors of an embedding, `W (m × V)`, with a normally distributed `B`.
pub(super) fn embedding(outputs: usize, tokens: usize, name: &str, options: &Options) -> Nested {
    let rank = options.fixed_rank(outputs.min(tokens));
    let b = random::gaussian::<f32>(outputs, rank, options.seed, name);
    Nested::of_no_energy(Factors { a: Mat::zeros(rank, tokens), b })
}

fn with_down(outputs: usize, a: Mat<f32>) -> Nested {
    let b = Mat::zeros(outputs, a.nrows());
    Nested::of_no_energy(Factors { a, b })
}
