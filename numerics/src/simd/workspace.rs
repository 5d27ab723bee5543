//! From a block of rows to its sums: pack, check, add.

use super::bf16_dot::DotProduct;
use super::columns::all_finite;
use super::gram::{DotUpdate, Update, pieces, rows_per_piece};
use super::kernel::height;
use super::pack::PackPairs;
use super::packed::{Packed, Panels};
use super::threads::share_with;
use super::tier::Instructions;
use super::{Precision, Rows, Sums, Tier, Unsupported, Values};
use crate::error::{Error, Result};

/// The chosen kernels, and the memory they reuse from block to block.
///
/// A block of width `d` needs about `2560 · d` bytes, half of that under [`Precision::Bf16`].
pub struct Workspace {
    instructions: Instructions,
    dot_product: Option<DotProduct>,
    rows: Block<f32>,
    /// Rows of bf16, for the dot product.
    pairs: Block<u32>,
}

/// A packed block, and the left factors that are copied from it.
#[derive(Default)]
struct Block<W> {
    packed: Packed<W>,
    /// One for each thread.
    left: Vec<Panels<W>>,
}

impl std::fmt::Debug for Workspace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (instructions, dot_product) = (self.instructions, self.dot_product.is_some());
        f.debug_struct("Workspace")
            .field("instructions", &instructions)
            .field("dot_product", &dot_product)
            .finish_non_exhaustive()
    }
}

impl Default for Workspace {
    /// The best tier of this processor, in f32.
    fn default() -> Self {
        let instructions = Tier::best().instructions().unwrap_or(Instructions::Scalar(pulp::Scalar));
        Self::with(instructions, None)
    }
}

impl Workspace {
    /// Kernels of a given tier and precision.
    ///
    /// # Errors
    /// If this processor lacks the instructions. [`Precision::Bf16`] goes with [`Tier::Avx512`] only.
    pub fn new(tier: Tier, precision: Precision) -> std::result::Result<Self, Unsupported> {
        let instructions = tier.instructions().ok_or(Unsupported::Tier(tier))?;
        let dot_product = match precision {
            Precision::F32 => None,
            Precision::Bf16 => Some(DotProduct::of(tier).ok_or(Unsupported::Bf16)?),
        };
        Ok(Self::with(instructions, dot_product))
    }

    fn with(instructions: Instructions, dot_product: Option<DotProduct>) -> Self {
        Self { instructions, dot_product, rows: Block::default(), pairs: Block::default() }
    }

    /// A workspace with the same kernels, without their memory.
    #[must_use]
    pub fn fresh(&self) -> Self {
        Self::with(self.instructions, self.dot_product)
    }

    pub(super) fn accumulate(&mut self, rows: Rows<'_>, into: Sums<'_>, threads: usize) -> Result<()> {
        if rows.rows == 0 || rows.width == 0 {
            return Ok(());
        }
        let instructions = self.instructions;
        let lanes = instructions.lanes();
        match (rows.values, self.dot_product) {
            (Values::Bf16(values), Some(dot_product)) => {
                self.pairs.packed.fill(rows, 2, lanes, threads, |pack| {
                    instructions.run(PackPairs { pack, values });
                });
                self.pairs.add(&rows, into, lanes, threads, |update| {
                    instructions.run(DotUpdate { update, dot_product });
                })
            }
            _ => {
                self.rows.packed.fill(rows, 1, lanes, threads, |pack| instructions.run(pack));
                self.rows.add(&rows, into, lanes, threads, |update| instructions.run(update))
            }
        }
    }
}

impl<W: Default + Send + Sync> Block<W> {
    /// Adds the packed block, if all of it is finite.
    fn add(
        &mut self,
        rows: &Rows<'_>,
        into: Sums<'_>,
        lanes: usize,
        threads: usize,
        multiply: impl Fn(Update<'_, W>) + Sync,
    ) -> Result<()> {
        let Self { packed, left } = self;
        if !all_finite(&packed.magnitude)
            && let Some((row, column)) = rows.first_non_finite()
        {
            return Err(Error::NonFiniteRow { row, column });
        }
        for (sum, total) in into.sum.iter_mut().zip(&packed.total) {
            *sum += total;
        }
        for (largest, &magnitude) in into.abs_max.iter_mut().zip(&packed.magnitude) {
            *largest = largest.max(f32::from_bits(magnitude));
        }
        let rows_per_piece = rows_per_piece(rows.width, height(lanes), threads);
        left.resize_with(threads.max(1), Panels::default);
        let pieces = pieces(packed, rows.width, rows_per_piece, into.gram);
        share_with(left, pieces, |left, piece| multiply(Update { piece, left }));
        Ok(())
    }
}
