//! What one product of two activations is computed with.

use super::Tier;
use super::bf16_dot::DotProduct;
use crate::names::names;

/// What the Gram matrix of a block is computed with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Rows of every format are taken relative to the mean of their block, in f32, and multiplied by fused multiply-adds.
    #[default]
    F32,
    /// Rows of bf16 are multiplied by the processor's bf16 dot product, `vdpbf16ps`: about twice as fast.
    ///
    /// Products stay exact and are accumulated in f32, but in an order of additions that is the processor's own,
    /// and with subnormal numbers taken as zero. But for these, element `(i, j)` of a block of `n` rows is off by at
    /// most `n · 2⁻²³ · √(G_ii G_jj)`, where `G` is exact; in practice by about as much as under
    /// [`Precision::F32`] for means near zero, 1e-6 for a full block. (The unit tests hold it to both.)
    ///
    /// The rows are not centred, since their differences from a mean are not bf16. So the error of a covariance grows with the square of
    /// the ratio of mean to standard deviation: up to 1e-4 of the standard deviations of its columns at a ratio of 10, 1 % at 100.
    /// [`Moments::lost_in_bf16`](crate::moments::Moments::lost_in_bf16) says where it is too large, and a run warns of that.
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

/// Why a [`Workspace`](super::Workspace) was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsupported {
    /// The processor lacks the instructions of a tier.
    #[error("this processor has no {} instructions; its best are {}", .0.name(), Tier::best().name())]
    Tier(Tier),
    /// [`Precision::Bf16`] where there is no bf16 dot product.
    #[error("precision bf16 needs a processor with AVX-512 BF16, which this one is not; use precision f32")]
    Bf16,
}
