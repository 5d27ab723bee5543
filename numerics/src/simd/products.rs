//! The ways to multiply rows of bf16, and the choice of the fastest.

use super::BLOCK_ROWS;
use super::bf16_dot::DotProduct;
use super::gram::Update;
use super::kernel::{Ahead, Fused, Kernel};
use super::shape::{PANELS, VECTORS, height};
use super::tier::Tier;
#[cfg(test)]
use super::tiles::emulation::Emulated;
use super::tiles::{self, Tiles};
use pulp::{Simd, WithSimd};
use std::hint::black_box;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A way to multiply pairs of bf16 rows.
#[derive(Clone, Copy, Debug)]
pub(super) enum Products {
    Dot(DotProduct),
    Tiles(Tiles),
    #[cfg(test)]
    Emulated,
}

impl Products {
    /// The fastest way that goes with a tier, if one is faster than the conversion to f32.
    pub(super) fn fastest(tier: Tier) -> Option<Self> {
        Tiles::of(tier).map(Self::Tiles).or_else(|| {
            let (dot_product, instructions) = (DotProduct::of(tier)?, tier.instructions()?);
            static FASTER: OnceLock<bool> = OnceLock::new();
            let faster = *FASTER.get_or_init(|| instructions.run(Race { dot_product }));
            faster.then_some(Self::Dot(dot_product))
        })
    }

    /// The name to print.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Dot(_) => "bf16 dot products",
            Self::Tiles(_) => "bf16 matrix tiles",
            #[cfg(test)]
            Self::Emulated => "emulated tiles",
        }
    }

    /// The most rows of a block. The sums of tiles are short chains, one addition for 32 rows, so that their blocks can be longer.
    pub(super) fn block_rows(self) -> usize {
        match self {
            Self::Dot(_) => BLOCK_ROWS,
            _ => 4 * BLOCK_ROWS,
        }
    }

    /// Lines of a block with so many rows.
    pub(super) fn lines(self, rows: usize) -> usize {
        match self {
            Self::Dot(_) => rows.div_ceil(2),
            _ => rows.div_ceil(2).next_multiple_of(tiles::LINES),
        }
    }

    /// Rows of a tile.
    pub(super) fn height(self) -> usize {
        match self {
            Self::Dot(_) => DotProduct::HEIGHT,
            _ => Tiles::HEIGHT,
        }
    }
}

/// Measures whether the dot product is faster than the multiply-add of f32: it is twice as fast on some processors, and several times
/// slower on others. A fraction of a millisecond tells them apart.
struct Race {
    dot_product: DotProduct,
}

impl WithSimd for Race {
    type Output = bool;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> bool {
        // A dot product multiplies the numbers of two rows.
        time(self.dot_product) < time(Fused::<S, { height(16) }>(simd)).mul_f64(1.6)
    }
}

/// The time of some products of panels that are in L1, the best of a few tries.
#[inline(always)]
fn time<K: Kernel>(kernel: K) -> Duration {
    let left = vec![K::Word::default(); K::LINES * K::HEIGHT];
    let right = vec![K::Word::default(); K::LINES * VECTORS * K::LANES];
    let mut sums = vec![0.0; K::HEIGHT * PANELS * VECTORS * K::LANES];
    let mut once = || {
        let start = Instant::now();
        for _ in 0..16 {
            let ahead = Ahead { right: &[], row: &[] };
            kernel.multiply::<VECTORS>(black_box(&left), black_box(&right), 0, black_box(&mut sums), ahead);
        }
        start.elapsed()
    };
    (0..4).map(|_| once()).min().unwrap_or_default()
}

/// An update by products of pairs: the additions to the triangle also use the widest instructions.
pub(super) struct PairUpdate<'a> {
    pub update: Update<'a, u32>,
    pub products: Products,
}

impl WithSimd for PairUpdate<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        match self.products {
            Products::Dot(dot_product) => self.update.run(dot_product),
            Products::Tiles(tiles) => {
                let _configured = tiles.configure();
                self.update.run(tiles);
            }
            #[cfg(test)]
            Products::Emulated => self.update.run(Emulated),
        }
    }
}
