//! The micro-kernel of bf16 rows on matrix tiles: `tdpbf16ps` of Intel's AMX, which neither pulp nor the standard library provides.
//!
//! A tile register holds 16 rows of 64 bytes. One instruction multiplies 16 columns of the left factor with 16 of the right one over 16
//! lines, 32 rows of the block, and adds the products to 16 × 16 sums. Four registers of sums, two of the left factor and two of the right
//! one use all eight, and need one load for each product.
//!
//! The right factor is read from the panels as they are. The left one needs the lines of a column side by side, so its copy is transposed,
//! 16 × 16 words at a time.
//!
//! Each element of the result is, for every 16 lines in their order, the sum of two chains of fused multiply-adds from zero, one for the
//! earlier and one for the later rows of the pairs; this sum is added to the element. Subnormal numbers are taken as zero. The tests
//! compare the processor with this definition, bit for bit.

#[cfg(test)]
pub(super) mod emulation;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod x86;

use super::Tier;
use super::kernel::{Ahead, Kernel};
use super::packed::{Packed, Panels};
use super::prefetch::prefetch;
use super::shape::VECTORS;
use std::ops::Range;

/// Rows, and words in a row, of a tile.
const SIDE: usize = 16;

/// Width of the panels of both factors.
const WIDTH: usize = VECTORS * SIDE;

/// Words of 16 lines of a panel.
const STEP: usize = WIDTH * SIDE;

/// Lines of a block are a multiple of this.
pub(super) const LINES: usize = SIDE;

/// Matrix tiles. A value of this type proves that the processor has them, and that the system lets this process use them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiles(Proof);

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
type Proof = x86::Permission;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) use x86::Configured;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
type Proof = std::convert::Infallible;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub(super) type Configured = std::convert::Infallible;

impl Tiles {
    /// The tiles that go with a tier, if there are any.
    pub(super) fn of(tier: Tier) -> Option<Self> {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if tier == Tier::Avx512 && tier.instructions().is_some() {
            return x86::Permission::get().map(Self);
        }
        let _ = tier;
        None
    }

    /// Configures the tiles of this thread, until the result is dropped.
    #[inline(always)]
    pub(super) fn configure(self) -> Configured {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        return Configured::new(self.0);
        #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
        match self.0 {}
    }
}

impl Kernel for Tiles {
    type Word = u32;
    const LANES: usize = SIDE;
    const HEIGHT: usize = WIDTH;
    /// 16 KB of each panel.
    const LINES: usize = 128;

    #[inline(always)]
    fn copy_left(packed: &Packed<u32>, columns: Range<usize>, into: &mut Panels<u32>) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        copy_transposed(packed, columns, into, x86::transpose);
        #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
        let _ = (packed, columns, into);
    }

    #[inline(always)]
    fn multiply<const V: usize>(
        self,
        left: &[u32],
        right: &[u32],
        skip: usize,
        sums: &mut [f32],
        ahead: Ahead<'_, u32>,
    ) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        {
            // Tiles are as high as a panel is wide, so that none begins inside a panel. A panel at the right edge is padded.
            assert!(skip == 0 && V <= VECTORS);
            prefetch(ahead.row);
            x86::multiply(self.0, left, right, sums);
        }
        #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
        {
            let _ = (left, right, skip, sums, ahead);
            match self.0 {}
        }
    }
}

/// 16 lines of 16 columns, or 16 columns of 16 lines.
type Tile = [[u32; SIDE]; SIDE];

/// Copies columns to left panels: for every 16 lines two tiles, in which a row is a column of the block.
#[inline(always)]
fn copy_transposed(
    packed: &Packed<u32>,
    columns: Range<usize>,
    into: &mut Panels<u32>,
    transpose: impl Fn([&[u32; SIDE]; SIDE], &mut Tile),
) {
    let lines = packed.panel(0).len() / WIDTH;
    let panels = into.resize(columns.len().next_multiple_of(WIDTH), WIDTH, lines);
    for (index, panel) in panels.chunks_exact_mut(WIDTH * lines).enumerate() {
        let from = packed.panel(columns.start / WIDTH + index).as_chunks::<STEP>().0;
        let to = panel.as_chunks_mut::<SIDE>().0.as_chunks_mut::<SIDE>().0;
        for (from, to) in from.iter().zip(to.chunks_exact_mut(VECTORS)) {
            let from = from.as_chunks::<SIDE>().0;
            for (half, to) in to.iter_mut().enumerate() {
                transpose(std::array::from_fn(|line| &from[VECTORS * line + half]), to);
            }
        }
    }
}
