//! From a block of rows to its sums: pack, check, add.

#[cfg(test)]
use super::bf16_dot::DotProduct;
use super::gram::{Memory, Update, pieces, rows_per_piece};
use super::packed::Packed;
use super::pairs::{self, PackPairs};
use super::products::{PairUpdate, Products};
use super::shape::{VECTORS, height};
use super::threads::share_with;
use super::tier::Instructions;
#[cfg(test)]
use super::tiles::Tiles;
use super::{BLOCK_ROWS, Precision, Rows, Sums, Tier, Unsupported, Values};
use crate::element::Element;
use crate::error::Result;

/// The chosen kernels, and the memory they reuse from block to block.
///
/// A block of width `d` needs about `2560 · d` bytes, twice that under [`Precision::Bf16`], and some hundred KB for each thread.
pub struct Workspace {
    instructions: Instructions,
    precision: Precision,
    /// The way to multiply rows of bf16, if not as f32.
    products: Option<Products>,
    rows: Block<f32>,
    pairs: Block<u32>,
}

/// A packed block, and the memory of the threads that multiply it.
#[derive(Default)]
struct Block<W> {
    packed: Packed<W>,
    threads: Vec<Memory<W>>,
}

impl std::fmt::Debug for Workspace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workspace")
            .field("instructions", &self.instructions)
            .field("precision", &self.precision)
            .field("products", &self.products)
            .finish_non_exhaustive()
    }
}

impl Default for Workspace {
    /// The best tier of this processor, in f32.
    fn default() -> Self {
        let instructions = Tier::best().instructions().unwrap_or(Instructions::Scalar(pulp::Scalar));
        Self::with(instructions, Precision::F32, None)
    }
}

impl Workspace {
    /// Kernels of a given tier and precision.
    ///
    /// # Errors
    /// If this processor lacks the instructions of the tier.
    pub fn new(tier: Tier, precision: Precision) -> std::result::Result<Self, Unsupported> {
        let instructions = tier.instructions().ok_or(Unsupported(tier))?;
        Ok(Self::with(instructions, precision, precision.products(tier)))
    }

    fn with(instructions: Instructions, precision: Precision, products: Option<Products>) -> Self {
        Self { instructions, precision, products, rows: Block::default(), pairs: Block::default() }
    }

    /// A workspace for each way to multiply rows of bf16 on this processor, and for the emulation of tiles.
    #[cfg(test)]
    pub(crate) fn all_products() -> impl Iterator<Item = Self> {
        let tier = Tier::best();
        let ways = [
            Some(Products::Emulated),
            DotProduct::of(tier).map(Products::Dot),
            Tiles::of(tier).map(Products::Tiles),
        ];
        let instructions = tier.instructions();
        let of = move |products| Some(Self::with(instructions?, Precision::Bf16, Some(products)));
        ways.into_iter().flatten().filter_map(of).chain([Self::with(
            instructions.unwrap_or(Instructions::Scalar(pulp::Scalar)),
            Precision::Bf16,
            None,
        )])
    }

    /// The name of the way to multiply rows of bf16.
    #[cfg(test)]
    pub(super) fn products_name(&self) -> &'static str {
        self.products.map_or("f32", Products::name)
    }

    /// A workspace with the same kernels, without their memory.
    #[must_use]
    pub fn fresh(&self) -> Self {
        Self::with(self.instructions, self.precision, self.products)
    }

    /// The most rows of a block in this number format.
    pub fn block_rows(&self, format: Element) -> usize {
        self.precision.block_rows(format)
    }

    pub(super) fn accumulate(&mut self, rows: Rows<'_>, mut into: Sums<'_>, threads: usize) -> Result<()> {
        if rows.rows == 0 || rows.width == 0 {
            return Ok(());
        }
        let most = self.products.map_or(BLOCK_ROWS, Products::block_rows);
        if rows.rows > most {
            // On an error nothing is added, also not the rows before the offender.
            rows.check()?;
        }
        rows.blocks(most).try_for_each(|rows| self.accumulate_block(rows, &mut into, threads))
    }

    fn accumulate_block(&mut self, rows: Rows<'_>, into: &mut Sums<'_>, threads: usize) -> Result<()> {
        let instructions = self.instructions;
        if let (Values::Bf16(values), Some(products)) = (rows.values, self.products) {
            let Block { packed, threads: memory } = &mut self.pairs;
            packed.fill(rows, products.lines(rows.rows), pairs::WIDTH, threads, |pack| {
                instructions.run(PackPairs { pack, values });
            });
            packed.check(&rows)?;
            packed.correct(rows.width, threads);
            add(packed, memory, &rows, into, products.height(), threads, |update| {
                instructions.run(PairUpdate { update, products });
            });
        } else {
            let lanes = instructions.lanes();
            let Block { packed, threads: memory } = &mut self.rows;
            packed.fill(rows, rows.rows, VECTORS * lanes, threads, |pack| instructions.run(pack));
            packed.check(&rows)?;
            add(packed, memory, &rows, into, height(lanes), threads, |update| instructions.run(update));
        }
        Ok(())
    }
}

/// Adds a packed block.
fn add<W: Copy + Default + Send + Sync>(
    packed: &Packed<W>,
    memory: &mut Vec<Memory<W>>,
    rows: &Rows<'_>,
    into: &mut Sums<'_>,
    height: usize,
    threads: usize,
    multiply: impl Fn(Update<'_, W>) + Sync,
) {
    for (sum, total) in into.sum.iter_mut().zip(&packed.total) {
        *sum += total;
    }
    for (largest, &magnitude) in into.abs_max.iter_mut().zip(&packed.magnitude) {
        *largest = largest.max(f32::from_bits(magnitude));
    }
    memory.resize_with(threads.max(1), Memory::default);
    let rows_per_piece = rows_per_piece(rows.width, height, threads);
    let pieces = pieces(packed, rows.width, rows_per_piece, into.gram);
    share_with(memory, pieces, |memory, piece| multiply(Update { piece, memory }));
}
