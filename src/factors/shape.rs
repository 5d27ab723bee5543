//! What a layer's weight looks like where it is stored, and what the factors then look like in an adapter.
//!
//! Everything else sees `W (m × d)`, `A (r × d)` and `B (m × r)`.

use super::Factors;

/// How a weight `W (m × d)` is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerShape {
    /// As `[m, d]`: a linear layer.
    #[default]
    Linear,
    /// As `[d, m]`: the Conv1D layers of GPT-2, which are linear layers for all that.
    Transposed,
    /// As `[m, channels, kernel…]` with `d = channels · Π kernel`: a convolution in one group, whose rows of activations are
    /// the unfolded patches of its input. The kernel has one number for each axis of space.
    Convolution(Vec<u64>),
}

impl LayerShape {
    /// The shape of `W` where it is stored.
    pub fn of_weight(&self, outputs: u64, inputs: u64) -> Vec<u64> {
        match self {
            Self::Linear => vec![outputs, inputs],
            Self::Transposed => vec![inputs, outputs],
            Self::Convolution(kernel) => with_kernel(outputs, inputs, kernel),
        }
    }

    /// The shape of `A` in an adapter.
    pub fn of_down(&self, rank: u64, inputs: u64) -> Vec<u64> {
        match self {
            Self::Linear | Self::Transposed => vec![rank, inputs],
            Self::Convolution(kernel) => with_kernel(rank, inputs, kernel),
        }
    }

    /// The shape of `B` in an adapter.
    pub fn of_up(&self, outputs: u64, rank: u64) -> Vec<u64> {
        match self {
            Self::Linear | Self::Transposed => vec![outputs, rank],
            Self::Convolution(kernel) => {
                [outputs, rank].into_iter().chain(kernel.iter().map(|_| 1)).collect()
            }
        }
    }

    /// Factors of the weight as it is stored: those of `Wᵀ` where that is what is stored.
    pub fn of_stored_weight(&self, factors: &Factors) -> Factors {
        match self {
            Self::Linear | Self::Convolution(_) => factors.clone(),
            Self::Transposed => {
                Factors { a: factors.b.transpose().to_owned(), b: factors.a.transpose().to_owned() }
            }
        }
    }
}

/// `[first, channels, kernel…]`.
fn with_kernel(first: u64, inputs: u64, kernel: &[u64]) -> Vec<u64> {
    let places: u64 = kernel.iter().product();
    [first, inputs / places.max(1)].into_iter().chain(kernel.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::gaussian;

    #[test]
    fn shapes_of_weights_and_factors() {
        let shapes = |shape: LayerShape| (shape.of_weight(8, 18), shape.of_down(3, 18), shape.of_up(8, 3));
        assert_eq!(shapes(LayerShape::Linear), (vec![8, 18], vec![3, 18], vec![8, 3]));
        assert_eq!(shapes(LayerShape::Transposed), (vec![18, 8], vec![3, 18], vec![8, 3]));
        let convolution = shapes(LayerShape::Convolution(vec![3, 3]));
        assert_eq!(convolution, (vec![8, 2, 3, 3], vec![3, 2, 3, 3], vec![8, 3, 1, 1]));
    }

    /// What is taken from a stored weight is the product in the order in which the weight is stored.
    #[test]
    fn factors_of_a_transposed_weight_multiply_to_the_transposed_product() {
        let factors = Factors { a: gaussian(2, 5, 0, "a"), b: gaussian(4, 2, 0, "b") };
        let product = |factors: &Factors| &factors.b * &factors.a;
        let stored = LayerShape::Transposed.of_stored_weight(&factors);
        assert!((product(&stored).transpose() - product(&factors)).norm_max() < 1e-6);
        assert_eq!(product(&LayerShape::Linear.of_stored_weight(&factors)), product(&factors));
    }
}
