//! The arithmetic of products of activations.

use super::Tier;
use super::bf16_dot::DotProduct;
use crate::names::names;

/// The arithmetic of the Gram matrix of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// The mean of the block is subtracted from rows of every format, in f32, and the differences are multiplied by fused multiply-adds.
    #[default]
    F32,
    /// Rows of bf16 are multiplied by the processor's bf16 dot product, `vdpbf16ps`: about twice as fast.
    ///
    /// Products stay exact and are accumulated in f32, but the processor determines the order of additions, and takes subnormal numbers
    /// as zero. Apart from these, the error of element `(i, j)` of a block of `n` rows is at most `n · 2⁻²³ · √(G_ii G_jj)`, where `G`
    /// is exact; in practice it is about that of [`Precision::F32`] for means near zero, 1e-6 for a full block. (The unit tests check
    /// both.)
    ///
    /// The rows are not centred, since their differences from a mean are not bf16. So the error of a covariance grows with the square
    /// of the ratio of mean to standard deviation: up to 1e-4 of the standard deviations of its columns at a ratio of 10, 1 % at 100.
    /// [`Moments::lost_in_bf16`](crate::moments::Moments::lost_in_bf16) finds columns for which it is too large, and a run warns about
    /// them.
    ///
    /// Rows of other formats, and the maxima, are computed as under [`Precision::F32`]; the column sums of a block are sums in f32.
    Bf16,
}

names!(Precision, "precision": F32 = "f32", Bf16 = "bf16");

impl Precision {
    /// True if this processor has the instructions for it.
    pub fn supported(self) -> bool {
        match self {
            Precision::F32 => true,
            Precision::Bf16 => DotProduct::of(Tier::best()).is_some(),
        }
    }
}

/// The reason why a [`Workspace`](super::Workspace) was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsupported {
    /// The processor lacks the instructions of a tier.
    #[error("this processor has no {} instructions; its best are {}", .0.name(), Tier::best().name())]
    Tier(Tier),
    /// [`Precision::Bf16`] on a processor without a bf16 dot product.
    #[error("this processor has no AVX-512 BF16 instructions, which precision bf16 needs; use precision f32")]
    Bf16,
}
