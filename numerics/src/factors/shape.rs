//! The shape of a stored weight, and of its factors in an adapter.
//!
//! All other code uses `W (m × d)`, `A (r × d)` and `B (m × r)`.

use super::Factors;

/// The most blocks of one weight: experts, or groups of a convolution. Each block is a layer with a name of its own, so a file of a few
/// megabytes could otherwise fill the memory.
pub const MOST_BLOCKS: usize = 1 << 16;

/// How a weight `W (m × d)` is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerShape {
    /// As `[m, d]`: a linear layer.
    #[default]
    Linear,
    /// As `[d, m]`: a Conv1D layer of GPT-2, which is a linear layer.
    Transposed,
    /// As `[d, m]`: an embedding of `d` tokens, whose activations are unit vectors.
    Embedding,
    /// As `[m, channels, kernel…]` with `d = channels · Π kernel`: a convolution in one group, whose rows of activations are
    /// the unfolded patches of its input. The kernel has one number for each axis of space.
    Convolution(Vec<u64>),
    /// As `[m, channels, kernel…]` with `d = count · channels · Π kernel`: one of `count` groups of a convolution. Its rows of
    /// activations are patches of all channels. The weight reads its own channels and the factors read all, as in PEFT.
    Group {
        /// How many groups there are.
        count: usize,
        /// One number for each axis of space.
        kernel: Vec<u64>,
    },
    /// As `[m, d]`, or as `[d, m]`: one of `count` experts in one parameter.
    Expert {
        /// How many experts there are.
        count: usize,
        /// True if it is stored as `[d, m]`.
        transposed: bool,
    },
}

impl LayerShape {
    /// The shape of the stored `W`.
    pub fn of_weight(&self, outputs: u64, inputs: u64) -> Vec<u64> {
        match self {
            Self::Linear => vec![outputs, inputs],
            Self::Transposed | Self::Embedding => vec![inputs, outputs],
            Self::Convolution(kernel) => with_kernel(outputs, inputs, kernel),
            Self::Group { count, kernel } => with_kernel(outputs, inputs / (*count as u64).max(1), kernel),
            Self::Expert { transposed: false, .. } => vec![outputs, inputs],
            Self::Expert { transposed: true, .. } => vec![inputs, outputs],
        }
    }

    /// The shape of `A` in an adapter, of all blocks together.
    pub fn of_down(&self, rank: u64, inputs: u64) -> Vec<u64> {
        match self {
            Self::Linear | Self::Transposed | Self::Embedding | Self::Expert { .. } => vec![rank, inputs],
            Self::Convolution(kernel) | Self::Group { kernel, .. } => with_kernel(rank, inputs, kernel),
        }
    }

    /// The shape of `B` in an adapter, of all blocks together.
    pub fn of_up(&self, outputs: u64, rank: u64) -> Vec<u64> {
        match self {
            Self::Linear | Self::Transposed | Self::Embedding | Self::Expert { .. } => vec![outputs, rank],
            Self::Convolution(kernel) | Self::Group { kernel, .. } => {
                [outputs, rank].into_iter().chain(kernel.iter().map(|_| 1)).collect()
            }
        }
    }

    /// Returns whether `Wᵀ` is stored.
    pub fn is_transposed(&self) -> bool {
        matches!(self, Self::Transposed | Self::Embedding | Self::Expert { transposed: true, .. })
    }

    /// Factors of the weight as it is stored: those of `Wᵀ` if that is stored.
    pub fn of_stored_weight(&self, factors: &Factors) -> Factors {
        match self.is_transposed() {
            false => factors.clone(),
            true => Factors { a: factors.b.transpose().to_owned(), b: factors.a.transpose().to_owned() },
        }
    }

    /// Layers of this shape, in words.
    pub fn plural(&self) -> &'static str {
        match self {
            Self::Linear | Self::Transposed => "linear layers",
            Self::Embedding => "embeddings",
            Self::Convolution(_) => "convolutions",
            Self::Group { .. } => "convolutions in groups",
            Self::Expert { .. } => "experts in one parameter",
        }
    }

    /// The number of blocks in the module, if it has blocks. Each block has factors of its own, and all have one rank.
    pub fn blocks(&self) -> Option<usize> {
        match self {
            Self::Linear | Self::Transposed | Self::Convolution(_) | Self::Embedding => None,
            Self::Group { count, .. } | Self::Expert { count, .. } => Some(*count),
        }
    }

    /// The number of blocks that divide the rank of the module: the rank of a convolution in groups is the sum of the ranks of its groups.
    pub fn parts(&self) -> usize {
        match self {
            Self::Group { count, .. } => *count,
            _ => 1,
        }
    }
}

/// `[first, channels, kernel…]`.
fn with_kernel(first: u64, inputs: u64, kernel: &[u64]) -> Vec<u64> {
    let places = kernel.iter().copied().fold(1, u64::saturating_mul);
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
        assert_eq!(shapes(LayerShape::Embedding), (vec![18, 8], vec![3, 18], vec![8, 3]));
        let convolution = shapes(LayerShape::Convolution(vec![3, 3]));
        assert_eq!(convolution, (vec![8, 2, 3, 3], vec![3, 2, 3, 3], vec![8, 3, 1, 1]));
        let group = shapes(LayerShape::Group { count: 2, kernel: vec![3, 3] });
        assert_eq!(group, (vec![8, 1, 3, 3], vec![3, 2, 3, 3], vec![8, 3, 1, 1]));
        let expert = |transposed| shapes(LayerShape::Expert { count: 4, transposed });
        assert_eq!(expert(false), shapes(LayerShape::Linear));
        assert_eq!(expert(true), shapes(LayerShape::Transposed));
    }

    /// The product for a stored weight has the order in which the weight is stored.
    #[test]
    fn factors_of_a_transposed_weight_multiply_to_the_transposed_product() {
        let factors = Factors { a: gaussian(2, 5, 0, "a"), b: gaussian(4, 2, 0, "b") };
        let product = |factors: &Factors| &factors.b * &factors.a;
        let stored = LayerShape::Transposed.of_stored_weight(&factors);
        assert!((product(&stored).transpose() - product(&factors)).norm_max() < 1e-6);
        assert_eq!(product(&LayerShape::Linear.of_stored_weight(&factors)), product(&factors));
    }
}
