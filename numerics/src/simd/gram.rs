//! The Gram matrix of a packed block, added to a packed upper triangle of f64.
//!
//! ```text
//! for piece in pieces of up to 192 rows of the triangle          # threads take one after the other
//!   left = copy of the piece's columns                           # panels of HEIGHT columns, in L2
//!   for group in groups of 4 right panels                        # from the piece's first column on
//!     sums = 0                                                   # f32, in L2
//!     for right in the panels of the group                       # VECTORS vectors wide
//!       for lines in blocks of up to 160 lines                   # of `right` in L1, 20 KB
//!         for tile in the tiles of the piece                     # lines of `left` from L2, 8 KB
//!           triangle[a row, the group before] += its sums        # see below
//!           load sums[tile]                                      # HEIGHT × VECTORS vectors, in registers
//!           for line in lines
//!             sums[tile] += left[line] ⊗ right[line]
//!           store sums[tile]
//!     triangle[remaining rows, the group before] += their sums
//! ```
//!
//! The packed rows are `y = x − c`, where the pilot `c` is the mean of the block, and `s = Σ y`. Sums in f32 are accurate relative to the
//! spread of the columns for all means. In f64, `sums + s cᵀ + c (s + n c)ᵀ` is the product of the rows `x`, and is added to the triangle.
//!
//! Why it is fast:
//!
//! 1. `HEIGHT · VECTORS` fused multiply-adds need `VECTORS` loads and `HEIGHT` broadcasts, all of them from L1. The tile leaves room for
//!    one line of `right` and one broadcast: 12 × 2 of the 32 registers of AVX-512 and NEON, 6 × 2 of the 16 of AVX2.
//! 2. Each element is one chain of fused multiply-adds in the order of the rows, for every position of its tile, every width of vectors
//!    and every number of lines that are multiplied at once. This defines the result.
//! 3. The lines of a tile lie together in `left`, and those of a panel in `right`: the hardware prefetcher sees two streams.
//! 4. `left` and `sums` stay in L2 while the columns of the block pass by, once per piece.
//! 5. Only tiles that touch the upper triangle are computed, and in them only the vectors that do. This skips the vectors left of the
//!    diagonal, and those at the right edge that are only padding.
//! 6. The rows of the triangle are far apart and rarely in a cache. One of them is added before each tile of the next group. A group has
//!    several panels so that each row is long.
//! 7. While a tile is multiplied, its lines prefetch a row of the triangle and a share of the next lines of `right`, a few bytes per line.
//!    So the memory works while the processor multiplies, and no load waits behind many prefetches.
//! 8. A piece is whole rows of the triangle, which are contiguous. So threads write to disjoint slices and need no locks.

use super::kernel::{Ahead, Fused, Kernel};
use super::packed::{Packed, Panels};
use super::prefetch::prefetch;
use super::shape::{PANELS, VECTORS, height};
use super::triangle::row_start;
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// Some rows of the triangle, to be updated by one thread.
pub(super) struct Piece<'a, W> {
    /// All rows of the block.
    pub packed: &'a Packed<W>,
    /// Width of the Gram matrix.
    pub width: usize,
    /// Rows of this piece. The first one is a multiple of the height of a tile.
    pub rows: Range<usize>,
    /// Those rows of the packed triangle.
    pub triangle: &'a mut [f64],
}

/// The most rows of a piece, a multiple of the height of every tile.
const MOST_ROWS: usize = 192;

/// The least rows of a piece, if the triangle has them.
const LEAST_ROWS: usize = 48;

/// The number of rows of a piece: enough that a panel is used often while it is in a cache, and few enough that every thread gets several
/// pieces.
pub(super) fn rows_per_piece(width: usize, height: usize, threads: usize) -> usize {
    const PIECES_PER_THREAD: usize = 4;
    let even = width / (PIECES_PER_THREAD * threads.max(1));
    even.clamp(LEAST_ROWS, MOST_ROWS).next_multiple_of(height)
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

/// The update of a piece by a thread.
pub(super) struct Update<'a, W> {
    pub piece: Piece<'a, W>,
    /// The thread's memory.
    pub memory: &'a mut Memory<W>,
}

/// The memory that a thread uses again for every piece.
#[derive(Default)]
pub(super) struct Memory<W> {
    left: Panels<W>,
    /// The sums of a group, and those of the group before it.
    sums: [Panels<f32>; 2],
}

impl WithSimd for Update<'_, f32> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::F32_LANES {
            16 => self.run(Fused::<S, { height(16) }>(simd)),
            8 => self.run(Fused::<S, { height(8) }>(simd)),
            4 => self.run(Fused::<S, { height(4) }>(simd)),
            _ => self.run(Fused::<S, { height(1) }>(simd)),
        }
    }
}

impl<W: Copy + Default> Update<'_, W> {
    /// Adds the block's products to the piece's rows.
    #[inline(always)]
    pub(super) fn run<K: Kernel<Word = W>>(self, kernel: K) {
        let Self { mut piece, memory: Memory { left, sums } } = self;
        let Piece { packed, width, rows: Range { start, end }, .. } = piece;
        let panel_width = VECTORS * K::LANES;
        let stride = PANELS * panel_width;
        K::copy_left(packed, start..end, left);
        let [mut sums, mut before] = sums.each_mut().map(|panels| Sums {
            columns: 0..0,
            rows: 0..0,
            numbers: panels.resize(stride, stride, (end - start).next_multiple_of(K::HEIGHT)),
        });
        let panels = width.div_ceil(panel_width);
        for first_panel in (start / panel_width..panels).step_by(PANELS) {
            let group = first_panel..panels.min(first_panel + PANELS);
            sums.columns = group.start * panel_width..width.min(group.end * panel_width);
            sums.rows = start..end.min(sums.columns.end);
            sums.numbers.fill(0.0);
            for panel in group {
                let columns = panel * panel_width..width.min((panel + 1) * panel_width);
                let tops = (start..end.min(columns.end)).step_by(K::HEIGHT);
                for (block, right) in packed.panel(panel).chunks(K::LINES * panel_width).enumerate() {
                    let next = packed.words_after(panel, block * K::LINES * panel_width + right.len());
                    let next = &next[..next.len().min(right.len())];
                    let mut next = next.chunks(right.len().div_ceil(tops.len()));
                    for (index, top) in tops.clone().enumerate() {
                        before.add_row(&mut piece, stride);
                        let ahead =
                            Ahead { right: next.next().unwrap_or_default(), row: before.row_ahead(&piece) };
                        let left = &left.get(index)[block * K::LINES * K::HEIGHT..]
                            [..right.len() / panel_width * K::HEIGHT];
                        // The vectors that are entirely below the diagonal.
                        let skip = top.saturating_sub(columns.start) / K::LANES;
                        let vectors = columns.len().div_ceil(K::LANES) - skip;
                        let column = (panel - first_panel) * panel_width + skip * K::LANES;
                        let sums = &mut sums.numbers[(top - start) * stride + column..];
                        match vectors {
                            1 => kernel.multiply::<1>(left, right, skip, sums, ahead),
                            _ => kernel.multiply::<VECTORS>(left, right, 0, sums, ahead),
                        }
                    }
                }
            }
            before.add_rows(&mut piece, stride);
            std::mem::swap(&mut sums, &mut before);
        }
        before.add_rows(&mut piece, stride);
    }
}

/// The sums of a group, of which some rows are still to be added to the triangle.
struct Sums<'a> {
    /// Columns of the group.
    columns: Range<usize>,
    /// The rows to add.
    rows: Range<usize>,
    numbers: &'a mut [f32],
}

impl Sums<'_> {
    /// The row to prefetch while the next ones are added. Empty at the end.
    #[inline(always)]
    fn row_ahead<'a, W>(&self, piece: &'a Piece<'_, W>) -> &'a [f64] {
        const ROWS: usize = 4;
        let row = self.rows.clone().nth(ROWS);
        row.map_or(&[], |row| &piece.triangle[piece.places(row, &self.columns)])
    }

    /// Adds the next row, if there is one.
    #[inline(always)]
    fn add_row<W>(&mut self, piece: &mut Piece<'_, W>, stride: usize) -> bool {
        let Some(row) = self.rows.next() else { return false };
        let first = self.columns.start.max(row);
        let sums = &self.numbers[(row - piece.rows.start) * stride..]
            [first - self.columns.start..self.columns.len()];
        let (packed, places) = (piece.packed, piece.places(row, &self.columns));
        let to = &mut piece.triangle[places];
        add_centred(sums, packed, row, first..self.columns.end, to);
        packed.add_corrections(row, first, to);
        true
    }

    /// Adds the rows that remain.
    #[inline(always)]
    fn add_rows<W>(&mut self, piece: &mut Piece<'_, W>, stride: usize) {
        while self.add_row(piece, stride) {
            prefetch(self.row_ahead(piece));
        }
    }
}

impl<W> Piece<'_, W> {
    /// Where the columns of one row are that belong to the upper triangle. The last one always does.
    #[inline(always)]
    fn places(&self, row: usize, columns: &Range<usize>) -> Range<usize> {
        let diagonal = row_start(self.width, row) - row_start(self.width, self.rows.start);
        let first = columns.start.max(row);
        diagonal + first - row..diagonal + columns.end - row
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
