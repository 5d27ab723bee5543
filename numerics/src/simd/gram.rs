//! The Gram matrix of a packed block, added to a packed upper triangle of f64.
//!
//! ```text
//! for piece in pieces of up to 144 rows of the triangle       # threads take one after the other
//!   for right in panels from the piece's first column on     # VECTORS vectors wide, in L2
//!     for left in panels of the piece, up to `right`         # in L2
//!       for first in 0, HEIGHT, … of `left`
//!         tile = 0                                           # HEIGHT × VECTORS vectors, in registers
//!         for line in the lines of both panels               # up to BLOCK_ROWS: the whole block
//!           at intervals: prefetch one of triangle[rows of the tile]
//!           tile += left[line][first..][..HEIGHT] ⊗ right[line]
//!         triangle[rows of the tile, columns of right] += tile + s cᵀ + c (s + n c)ᵀ   # in f64
//! ```
//!
//! The packed rows are `y = x − c`, where the pilot `c` is the mean of the block rounded to f32, and `s = Σ y`. A tile in f32 is accurate
//! relative to the spread of the columns for all means, and the last line turns it into the product of the rows `x`. Products of bf16 by
//! the dot product are not centred and are added directly.
//!
//! Why it is fast:
//!
//! 1. A tile stays in registers over the whole block, so its sums are neither loaded nor stored while they grow:
//!    `HEIGHT · VECTORS` fused multiply-adds need `VECTORS` loads and `HEIGHT` broadcasts. The tile leaves
//!    room for one line of `right` and one broadcast: 8 × 3 of the 32 registers of AVX-512, 6 × 3 of the 32 of
//!    NEON, 4 × 3 of the 16 of AVX2.
//! 2. This also defines the result: each element is one chain of fused multiply-adds in the order of the rows, for every position of its
//!    tile and every width of vectors.
//! 3. Rows are packed once. `HEIGHT` divides the width of a panel, so the same panel serves as the left factor,
//!    read a number at a time, and as the right one, read a vector at a time.
//! 4. A line of a panel is whole cache lines, and lines follow one another: the hardware prefetcher sees one stream.
//! 5. `left` stays in L2 while `right` passes by, once per piece: traffic beyond L2 is a small part of the arithmetic.
//! 6. Only tiles that touch the upper triangle are computed, and in them only the vectors that do. This skips the vectors left of the
//!    diagonal, and those at the right edge that are only padding.
//! 7. The rows of the triangle that a tile is added to are far apart and rarely in a cache. They are prefetched while the tile is
//!    computed, one row at a time: all at once they would delay the tile's own loads.
//! 8. A piece is whole rows of the triangle, which are contiguous. So threads write to disjoint slices and
//!    need no locks, and a tile's row is added as one run of neighbours.

use super::bf16_dot::DotProduct;
use super::kernel::{Fused, Kernel, LARGEST_TILE, VECTORS};
use super::packed::Packed;
use super::prefetch::prefetch;
use super::triangle::row_start;
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// Some rows of the triangle, to be updated by one thread.
pub(super) struct Piece<'a, W> {
    /// All rows of the block.
    pub packed: &'a Packed<W>,
    /// Width of the Gram matrix.
    pub width: usize,
    /// Rows of this piece. The first is the first of a panel.
    pub rows: Range<usize>,
    /// Those rows of the packed triangle.
    pub triangle: &'a mut [f64],
}

/// The number of rows of a piece: enough that a panel is used often while it is in a cache, and few enough that every thread gets several
/// pieces.
pub(super) fn rows_per_piece(width: usize, panel_width: usize, threads: usize) -> usize {
    const MOST: usize = 144;
    const PIECES_PER_THREAD: usize = 8;
    let even = width / (PIECES_PER_THREAD * threads.max(1));
    even.clamp(1, MOST).next_multiple_of(panel_width)
}

/// Cuts the triangle into pieces, top to bottom: the largest first, so that threads finish together.
pub(super) fn pieces<'a, W>(
    packed: &'a Packed<W>,
    width: usize,
    rows_per_piece: usize,
    mut triangle: &'a mut [f64],
) -> impl Iterator<Item = Piece<'a, W>> {
    (0..width).step_by(rows_per_piece).map(move |first| {
        let rows = first..width.min(first + rows_per_piece);
        let len = row_start(width, rows.end) - row_start(width, rows.start);
        let (these, rest) = std::mem::take(&mut triangle).split_at_mut(len);
        triangle = rest;
        Piece { packed, width, rows, triangle: these }
    })
}

impl WithSimd for Piece<'_, f32> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::F32_LANES {
            16 => self.update(Fused::<S, 8>(simd)),
            8 => self.update(Fused::<S, 4>(simd)),
            4 => self.update(Fused::<S, 6>(simd)),
            _ => self.update(Fused::<S, 3>(simd)),
        }
    }
}

/// A piece for the bf16 dot product: the additions to the triangle also use the widest instructions.
pub(super) struct DotPiece<'a> {
    pub piece: Piece<'a, u32>,
    pub dot_product: DotProduct,
}

impl WithSimd for DotPiece<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        self.piece.update(self.dot_product);
    }
}

impl<W> Piece<'_, W> {
    /// Adds the block's products to the piece's rows.
    #[inline(always)]
    fn update<K: Kernel<Word = W>>(mut self, kernel: K) {
        let panel_width = VECTORS * K::LANES;
        let first_panel = self.rows.start / panel_width;
        let packed = self.packed;
        let mut tile = [0f32; LARGEST_TILE];
        for right in first_panel..self.width.div_ceil(panel_width) {
            for left in first_panel..self.rows.end.div_ceil(panel_width).min(right + 1) {
                for first in (0..panel_width).step_by(K::HEIGHT) {
                    let top = left * panel_width + first;
                    if top >= self.rows.end {
                        break;
                    }
                    let skip = if left == right { first / K::LANES } else { 0 };
                    let columns =
                        right * panel_width + skip * K::LANES..self.width.min((right + 1) * panel_width);
                    let rows = top..self.rows.end.min(top + K::HEIGHT);
                    let vectors = columns.len().div_ceil(K::LANES);
                    let (left, right) = (packed.panel(left), packed.panel(right));
                    let mut requests = rows.clone();
                    let meanwhile = || {
                        if let Some(row) = requests.next() {
                            prefetch(self.triangle_row(row, &columns));
                        }
                    };
                    match vectors {
                        1 => kernel.multiply::<1>(left, first, right, skip, &mut tile, meanwhile),
                        2 => kernel.multiply::<2>(left, first, right, skip, &mut tile, meanwhile),
                        _ => kernel.multiply::<VECTORS>(left, first, right, 0, &mut tile, meanwhile),
                    }
                    for (row, sums) in rows.zip(tile.chunks_exact(vectors * K::LANES)) {
                        let below = row.saturating_sub(columns.start);
                        let (sums, right) = (&sums[below..columns.len()], columns.start + below..columns.end);
                        let to = self.triangle_row(row, &columns);
                        if K::CENTRED {
                            add_centred(sums, packed, row, right, to);
                        } else {
                            add(sums, to);
                        }
                    }
                }
            }
        }
    }

    /// The columns of one row that are in the upper triangle. The last one always is.
    #[inline(always)]
    fn triangle_row(&mut self, row: usize, columns: &Range<usize>) -> &mut [f64] {
        let diagonal = row_start(self.width, row) - row_start(self.width, self.rows.start);
        let first = columns.start.max(row);
        &mut self.triangle[diagonal + first - row..diagonal + columns.end - row]
    }
}

/// Adds products of centred columns as products of the original columns: with `x = y + c`, `n` rows and `s = Σ y`,
/// `Σ x_i x_j = Σ y_i y_j + s_i c_j + c_i (s_j + n c_j)`.
#[inline(always)]
fn add_centred<W>(sums: &[f32], packed: &Packed<W>, left: usize, right: Range<usize>, to: &mut [f64]) {
    let (pilot, rest) = (packed.pilot[left], packed.rest[left]);
    let (pilots, totals) = (&packed.pilot[right.clone()], &packed.total[right]);
    for (((to, &sum), &right_pilot), &total) in to.iter_mut().zip(sums).zip(pilots).zip(totals) {
        *to += pilot.mul_add(total, rest.mul_add(right_pilot, f64::from(sum)));
    }
}

#[inline(always)]
fn add(sums: &[f32], to: &mut [f64]) {
    for (to, &sum) in to.iter_mut().zip(sums) {
        *to += f64::from(sum);
    }
}
