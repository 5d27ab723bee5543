//! Packing: from rows of any format to panels, and the column statistics on the way.
//!
//! Two things make it fast. Rows are taken [`ROWS`] at a time through a few panels ([`PANELS`]), so that what is
//! read of one row is long enough for the hardware prefetcher. And a line's statistics are taken while
//! it is in registers.

use super::columns::Columns;
use super::convert::Number;
use super::kernel::VECTORS;
use super::{Rows, Values};
use half::bf16;
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// Panels that are packed together, by one thread.
pub(super) const PANELS: usize = 4;

/// Rows that are packed together.
const ROWS: usize = 8;

/// A few neighbouring panels to fill.
pub(super) struct Pack<'a, W> {
    pub rows: Rows<'a>,
    /// First column of the first panel.
    pub first_column: usize,
    /// The panels, one after the other; each at least a line long.
    pub panels: &'a mut [W],
    /// Receives the sum of each column, in row order.
    pub sum: &'a mut [f32],
    /// Receives the bits of the largest absolute value of each column.
    pub magnitude: &'a mut [u32],
}

impl WithSimd for Pack<'_, f32> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.rows.values {
            Values::F64(values) => self.pack_f32(simd, values),
            Values::F32(values) => self.pack_f32(simd, values),
            Values::F16(values) => self.pack_f32(simd, values),
            Values::Bf16(values) => self.pack_f32(simd, values),
        }
    }
}

impl Pack<'_, f32> {
    /// A line is one row, converted.
    #[inline(always)]
    fn pack_f32<S: Simd, N: Number>(self, simd: S, values: &[N]) {
        let stride = self.rows.stride;
        self.pack::<S, 1>(|seen, row, columns, line| {
            let from = &values[row * stride + columns.start..row * stride + columns.end];
            // Told apart so that the usual, full line has a length that the compiler knows.
            if from.len() == VECTORS * S::F32_LANES {
                N::convert(&from[..VECTORS * S::F32_LANES], line);
            } else {
                N::convert(from, &mut line[..from.len()]);
                line[from.len()..].fill(0.0);
            }
            let vectors = S::as_simd_f32s(line).0;
            seen.add(simd, std::array::from_fn(|v| vectors[v]));
        });
    }
}

/// The bf16 of two rows in one word, the earlier row in the lower half.
pub(super) struct PackPairs<'a> {
    pub pack: Pack<'a, u32>,
    pub values: &'a [bf16],
}

impl WithSimd for PackPairs<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Rows { rows, stride, .. } = self.pack.rows;
        let values = self.values;
        let (shift, upper) = (simd.splat_u32s(16), simd.splat_u32s(0xffff_0000));
        self.pack.pack::<S, 2>(|seen, row, columns, line| {
            let row_of = |row: usize| &values[row * stride + columns.start..row * stride + columns.end];
            let even = row_of(row);
            if row + 1 < rows {
                for ((word, even), odd) in line.iter_mut().zip(even).zip(row_of(row + 1)) {
                    *word = u32::from(even.to_bits()) | u32::from(odd.to_bits()) << 16;
                }
            } else {
                for (word, even) in line.iter_mut().zip(even) {
                    *word = u32::from(even.to_bits());
                }
            }
            line[columns.len()..].fill(0);
            // A bf16 is the upper half of the f32 of the same value.
            let words = S::as_simd_u32s(line).0;
            let even = |v: usize| simd.transmute_f32s_u32s(simd.wrapping_dyn_shl_u32s(words[v], shift));
            let odd = |v: usize| simd.transmute_f32s_u32s(simd.and_u32s(words[v], upper));
            seen.add(simd, std::array::from_fn(even));
            seen.add(simd, std::array::from_fn(odd));
        });
    }
}

impl<W> Pack<'_, W> {
    /// Fills the panels line by line, `PER_LINE` rows to a line.
    #[inline(always)]
    fn pack<S: Simd, const PER_LINE: usize>(
        self,
        mut pack_line: impl FnMut(&mut Columns<S>, usize, Range<usize>, &mut [W]),
    ) {
        let panel_width = VECTORS * S::F32_LANES;
        let panel_len = self.rows.rows.div_ceil(PER_LINE) * panel_width;
        self.sum.fill(0.0);
        self.magnitude.fill(0);
        for first_row in (0..self.rows.rows).step_by(ROWS) {
            let rows = (first_row..self.rows.rows.min(first_row + ROWS)).step_by(PER_LINE);
            let panels = self.panels.chunks_exact_mut(panel_len);
            let sums =
                self.sum.chunks_exact_mut(panel_width).zip(self.magnitude.chunks_exact_mut(panel_width));
            let columns = (self.first_column..self.rows.width).step_by(panel_width);
            for ((panel, (sum, magnitude)), first_column) in panels.zip(sums).zip(columns) {
                let columns = first_column..self.rows.width.min(first_column + panel_width);
                let lines = panel[first_row / PER_LINE * panel_width..].chunks_exact_mut(panel_width);
                let mut seen = Columns::load(sum, magnitude);
                for (row, line) in rows.clone().zip(lines) {
                    pack_line(&mut seen, row, columns.clone(), line);
                }
                seen.store(sum, magnitude);
            }
        }
    }
}
