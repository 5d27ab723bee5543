//! The micro-kernel: one tile of the Gram matrix of a block, kept in registers from the first row to the last.

use super::left;
use super::packed::{Packed, Panels};
use super::prefetch::Steps;
use super::shape::{PANELS, VECTORS};
use pulp::Simd;
use std::ops::Range;

/// Multiplies packed panels.
pub(super) trait Kernel: Copy {
    /// The word of a panel: an f32, or the bf16 of two rows.
    type Word: Copy + Default;
    /// Numbers in a vector of f32.
    const LANES: usize;
    /// Rows of a tile: the width of a left panel.
    const HEIGHT: usize;
    /// Lines of both panels that are multiplied while they are in the 32 KiB of an L1 cache: at most 20 KB of the right panel, 8 KB of
    /// the left one.
    const LINES: usize = 160;

    /// Fills left panels with some columns of a block.
    #[inline(always)]
    fn copy_left(packed: &Packed<Self::Word>, columns: Range<usize>, into: &mut Panels<Self::Word>) {
        left::copy(packed, columns, VECTORS * Self::LANES, Self::HEIGHT, into);
    }

    /// Adds to one tile the products of the columns of a left panel with the vectors of columns `skip .. skip + V` of a right one, summed
    /// over some lines of both. Prefetches meanwhile.
    ///
    /// The tile is `HEIGHT` rows of `V` vectors at the start of `sums`. A row starts [`PANELS`] `·` [`VECTORS`] vectors after the one
    /// before it.
    fn multiply<const V: usize>(
        self,
        left: &[Self::Word],
        right: &[Self::Word],
        skip: usize,
        sums: &mut [f32],
        ahead: Ahead<'_, Self::Word>,
    );
}

/// Memory that the next tiles need.
#[derive(Clone, Copy)]
pub(super) struct Ahead<'a, W> {
    /// Lines of the right panel.
    pub right: &'a [W],
    /// A row of the triangle.
    pub row: &'a [f64],
}

impl<W> Ahead<'_, W> {
    /// Divides both into as many steps as a tile has lines.
    #[inline(always)]
    pub(super) fn steps(self, lines: usize) -> [Steps; 2] {
        [Steps::of(self.right, lines), Steps::of(self.row, lines)]
    }
}

/// Fused multiply-adds of f32.
#[derive(Clone, Copy)]
pub(super) struct Fused<S, const HEIGHT: usize>(pub S);

impl<S: Simd, const HEIGHT: usize> Kernel for Fused<S, HEIGHT> {
    type Word = f32;
    const LANES: usize = S::F32_LANES;
    const HEIGHT: usize = HEIGHT;

    #[inline(always)]
    fn multiply<const V: usize>(
        self,
        left: &[f32],
        right: &[f32],
        skip: usize,
        sums: &mut [f32],
        ahead: Ahead<'_, f32>,
    ) {
        let simd = self.0;
        let ahead = ahead.steps(left.len() / HEIGHT);
        let right = S::as_simd_f32s(right).0;
        // Of a known length, so that the tile is loaded into registers without checks between them.
        let sums = &mut S::as_mut_simd_f32s(sums).0[..(HEIGHT - 1) * PANELS * VECTORS + V];
        let mut tile: [[_; V]; HEIGHT] =
            std::array::from_fn(|i| std::array::from_fn(|j| sums[i * PANELS * VECTORS + j]));
        let lines = left.as_chunks::<HEIGHT>().0.iter().zip(right.chunks_exact(VECTORS));
        for (line, (left, right)) in lines.enumerate() {
            ahead.iter().for_each(|ahead| ahead.prefetch(line));
            let right = &right[skip..skip + V];
            for (sums, &factor) in tile.iter_mut().zip(left) {
                let factor = simd.splat_f32s(factor);
                for (sum, &numbers) in sums.iter_mut().zip(right) {
                    *sum = simd.mul_add_f32s(factor, numbers, *sum);
                }
            }
        }
        for (i, tile) in tile.into_iter().enumerate() {
            sums[i * PANELS * VECTORS..][..V].copy_from_slice(&tile);
        }
    }
}
