//! Packing: from rows of any format to panels, with their column statistics.
//!
//! A group of columns is packed in two passes. The first converts the rows to f32, stores them, and takes their sums and maxima. The
//! second, while these panels are still in L2, subtracts the pilot of each column. The dot product of bf16 uses the first pass only.
//!
//! Three things make the first pass fast. Rows are taken [`ROWS`] at a time through the panels, so that each read of a row is long enough
//! for the hardware prefetcher. The next rows and lines are prefetched. And a line's statistics are taken while it is in registers.

use super::columns::Columns;
use super::convert::Number;
use super::kernel::VECTORS;
use super::prefetch::prefetch;
use super::{Rows, Values};
use half::bf16;
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// Rows that are packed together.
const ROWS: usize = 8;

/// A group of columns to pack.
pub(super) struct Pack<'a, W> {
    pub rows: Rows<'a>,
    /// First column of the group.
    pub first_column: usize,
    /// Its panels, one after the other; each at least a line long.
    pub panels: &'a mut [W],
    /// Receives the sum of each column, in row order.
    pub sum: &'a mut [f32],
    /// Receives the bits of the largest absolute value of each column.
    pub magnitude: &'a mut [u32],
    /// Receives the number that was subtracted from each column.
    pub pilot: &'a mut [f64],
    /// Receives the sum of each column after the subtraction, in row order.
    pub rest: &'a mut [f64],
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
    /// A line is one row, converted and then centred.
    #[inline(always)]
    fn pack_f32<S: Simd, N: Number>(mut self, simd: S, values: &[N]) {
        let stride = self.rows.stride;
        self.pack::<S, 1>(|seen, row, columns, line| {
            let from = &values[row * stride + columns.start..row * stride + columns.end];
            let ahead = (row + ROWS) * stride;
            if let Some(next) = values.get(ahead + columns.start..ahead + columns.end) {
                prefetch(next);
            }
            // A separate case, so that the usual full line has a length that the compiler knows.
            if from.len() == VECTORS * S::F32_LANES {
                N::convert(&from[..VECTORS * S::F32_LANES], line);
            } else {
                N::convert(from, &mut line[..from.len()]);
                line[from.len()..].fill(0.0);
            }
            let vectors = S::as_simd_f32s(line).0;
            seen.add(simd, std::array::from_fn(|v| vectors[v]));
        });
        match S::F32_LANES {
            16 => self.centre::<{ 16 * VECTORS }, N>(values),
            8 => self.centre::<{ 8 * VECTORS }, N>(values),
            4 => self.centre::<{ 4 * VECTORS }, N>(values),
            _ => self.centre::<VECTORS, N>(values),
        }
    }

    /// Subtracts the pilot of each column, in panels of `WIDTH` columns, and sums the differences.
    #[inline(always)]
    fn centre<const WIDTH: usize, N: Number>(self, values: &[N]) {
        let Rows { rows, width, stride, .. } = self.rows;
        let panels = self.panels.chunks_exact_mut(rows * WIDTH);
        let seen = self.sum.as_chunks::<WIDTH>().0.iter().zip(self.magnitude.as_chunks::<WIDTH>().0);
        let pilots = self.pilot.as_chunks_mut::<WIDTH>().0.iter_mut();
        let centres = pilots.zip(self.rest.as_chunks_mut::<WIDTH>().0);
        let columns = (self.first_column..width).step_by(WIDTH);
        for (((panel, (sum, magnitude)), (pilot, rest)), first) in panels.zip(seen).zip(centres).zip(columns)
        {
            let subtrahend: [f32; WIDTH] = std::array::from_fn(|k| pilot_of(sum[k], magnitude[k], rows));
            let mut left = [0f64; WIDTH];
            let lines = panel.as_chunks_mut::<WIDTH>().0;
            if N::FITS_F32 {
                for line in lines {
                    for ((number, pilot), left) in line.iter_mut().zip(&subtrahend).zip(&mut left) {
                        *number -= pilot;
                        *left += f64::from(*number);
                    }
                }
            } else {
                // The panel holds rounded numbers. So the difference is computed from the exact ones and then rounded.
                let columns = first..width.min(first + WIDTH);
                for (row, line) in lines.iter_mut().enumerate() {
                    let from = &values[row * stride + columns.start..row * stride + columns.end];
                    for (((number, &from), &pilot), left) in
                        line.iter_mut().zip(from).zip(&subtrahend).zip(&mut left)
                    {
                        *number = (from.into() - f64::from(pilot)) as f32;
                        *left += f64::from(*number);
                    }
                }
            }
            *pilot = subtrahend.map(f64::from);
            *rest = left;
        }
    }
}

/// The number that is subtracted from a column: its mean, as accurate as a sum in f32, or zero.
///
/// It is zero if the mean is small beside the largest number of the column. Then deviations are large, and numbers may be short or often
/// zero, as after a ReLU: their products add up with less rounding without the subtraction. It is also zero for a column whose squares
/// overflow, because its differences may overflow as well.
fn pilot_of(sum: f32, magnitude: u32, rows: usize) -> f32 {
    /// 2⁶⁴, above the root of the largest f32.
    const LARGEST: f32 = 18_446_744_073_709_551_616.0;
    const SMALL: f32 = 0.125;
    let (mean, largest) = (sum / rows as f32, f32::from_bits(magnitude));
    if largest <= LARGEST && mean.abs() >= SMALL * largest { mean } else { 0.0 }
}

/// The bf16 of two rows in one word, the earlier row in the lower half.
pub(super) struct PackPairs<'a> {
    pub pack: Pack<'a, u32>,
    pub values: &'a [bf16],
}

impl WithSimd for PackPairs<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
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
        self.pack.pilot.fill(0.0);
        for (rest, &sum) in self.pack.rest.iter_mut().zip(&*self.pack.sum) {
            *rest = f64::from(sum);
        }
    }
}

impl<W> Pack<'_, W> {
    /// Fills the panels line by line, `PER_LINE` rows to a line.
    #[inline(always)]
    fn pack<S: Simd, const PER_LINE: usize>(
        &mut self,
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
                let mut lines =
                    panel[first_row / PER_LINE * panel_width..].chunks_mut(ROWS / PER_LINE * panel_width);
                let now = lines.next().unwrap_or_default();
                prefetch(lines.next().unwrap_or_default());
                let lines = now.chunks_exact_mut(panel_width);
                let mut seen = Columns::load(sum, magnitude);
                for (row, line) in rows.clone().zip(lines) {
                    pack_line(&mut seen, row, columns.clone(), line);
                }
                seen.store(sum, magnitude);
            }
        }
    }
}
