//! The arithmetic of products of activations.

use super::products::Products;
use super::{BLOCK_ROWS, Tier};
use crate::element::Element;
use crate::names::names;

/// The arithmetic of the Gram matrix of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// The mean of the block is subtracted from rows of every format, in f32, and the differences are multiplied by fused multiply-adds.
    #[default]
    F32,
    /// Rows of bf16 are multiplied as bf16, in the fastest way that the processor has: by the matrix tiles of AMX, by the dot product
    /// `vdpbf16ps`, or as f32 if that is faster than the dot product or if there is neither. [`Precision::products_name`] names the way.
    ///
    /// Products of bf16 are exact in f32. A mean is subtracted from a column if all differences are bf16 again, or if it is above four
    /// standard deviations; then rounded differences are corrected. The sums are accumulated in f32, in the order that the instruction
    /// determines, over blocks of up to 2560 rows by tiles and of 640 otherwise. The processor takes subnormal numbers as zero.
    /// In the tests, a covariance has an error of at most 2e-5 of the product of two standard deviations, and of 3e-5 by the dot product,
    /// up to means of 10⁴ standard deviations. Elements of the Gram matrix of columns around zero are as accurate as in f32.
    ///
    /// Rows of other formats are computed as under [`Precision::F32`]. The column sums are sums in f32 for each block.
    Bf16,
}

names!(Precision, "precision": F32 = "f32", Bf16 = "bf16");

impl Precision {
    /// The most rows of a block in this number format. Products of bf16 are fast, so their blocks are longer, to add to the Gram matrix
    /// less often.
    pub fn block_rows(self, format: Element) -> usize {
        match (self, format) {
            (Precision::Bf16, Element::Bf16) => 4 * BLOCK_ROWS,
            _ => BLOCK_ROWS,
        }
    }

    /// The way in which this processor multiplies rows of bf16: `bf16 matrix tiles`, `bf16 dot products`, or `f32`.
    pub fn products_name(self) -> &'static str {
        self.products(Tier::best()).map_or("f32", Products::name)
    }

    /// The way to multiply rows of bf16, if not as f32.
    pub(super) fn products(self, tier: Tier) -> Option<Products> {
        match self {
            Precision::F32 => None,
            Precision::Bf16 => Products::fastest(tier),
        }
    }
}

/// A [`Workspace`](super::Workspace) was refused, because the processor lacks the instructions of a tier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this processor has no {} instructions; its best are {}", .0.name(), Tier::best().name())]
pub struct Unsupported(pub Tier);
