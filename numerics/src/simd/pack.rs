//! Packing: from rows of any format to panels, with their column statistics.
//!
//! A group of columns is packed in two passes. The first converts the rows to f32, stores them, and takes their sums and maxima. The
//! second, while these panels are still in L2, subtracts the pilot of each column. Pairs of bf16 rows have passes of their own (`pairs`).
//!
//! Three things make the first pass fast. Rows are taken [`ROWS`] at a time through the panels, so that each read of a row is long enough
//! for the hardware prefetcher. The next rows and lines are prefetched. And a line's statistics are taken while it is in registers.

use super::columns::Columns;
use super::convert::Number;
use super::prefetch::prefetch;
use super::shape::VECTORS;
use super::{Rows, Values};
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// Rows that are packed together.
pub(super) const ROWS: usize = 8;

/// The part of a number that its panel does not hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lost {
    pub column: usize,
    pub row: usize,
    pub part: f32,
}

/// A group of columns to pack.
pub(super) struct Pack<'a, W> {
    pub rows: Rows<'a>,
    /// First column of the group.
    pub first_column: usize,
    /// Its panels, one after the other.
    pub panels: &'a mut [W],
    /// Lines of a panel, at least one.
    pub lines: usize,
    /// Receives the sum of each column, in row order.
    pub sum: &'a mut [f32],
    /// Receives the bits of the largest absolute value of each column.
    pub magnitude: &'a mut [u32],
    /// Receives the number that was subtracted from each column.
    pub pilot: &'a mut [f64],
    /// Receives the sum of each column after the subtraction, in row order.
    pub rest: &'a mut [f64],
    /// Receives the parts of numbers that the panels cannot hold.
    pub lost: &'a mut Vec<Lost>,
}

impl WithSimd for Pack<'_, f32> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        match self.rows.values {
            Values::F64(values) => self.pack_f32::<S, _>(values),
            Values::F32(values) => self.pack_f32::<S, _>(values),
            Values::F16(values) => self.pack_f32::<S, _>(values),
            Values::Bf16(values) => self.pack_f32::<S, _>(values),
        }
    }
}

impl Pack<'_, f32> {
    /// A line is one row, converted and then centred.
    #[inline(always)]
    fn pack_f32<S: Simd, N: Number>(self, values: &[N]) {
        match S::F32_LANES {
            16 => self.pack_panels::<{ 16 * VECTORS }, N>(values),
            8 => self.pack_panels::<{ 8 * VECTORS }, N>(values),
            4 => self.pack_panels::<{ 4 * VECTORS }, N>(values),
            _ => self.pack_panels::<VECTORS, N>(values),
        }
    }

    #[inline(always)]
    fn pack_panels<const WIDTH: usize, N: Number>(mut self, values: &[N]) {
        let stride = self.rows.stride;
        self.pack::<WIDTH, 1>(|seen, row, columns, line| {
            let from = &values[row * stride + columns.start..row * stride + columns.end];
            let ahead = (row + ROWS) * stride;
            if let Some(next) = values.get(ahead + columns.start..ahead + columns.end) {
                prefetch(next);
            }
            // A separate case, so that the usual full line has a length that the compiler knows.
            if let Some(from) = from.first_chunk::<WIDTH>() {
                N::convert(from, line);
            } else {
                N::convert(from, &mut line[..from.len()]);
                line[from.len()..].fill(0.0);
            }
            seen.add(line);
        });
        self.centre::<WIDTH, N>(values);
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
pub(super) fn pilot_of(sum: f32, magnitude: u32, rows: usize) -> f32 {
    /// 2⁶⁴, above the root of the largest f32.
    const LARGEST: f32 = 18_446_744_073_709_551_616.0;
    const SMALL: f32 = 0.125;
    let (mean, largest) = (sum / rows as f32, f32::from_bits(magnitude));
    if largest <= LARGEST && mean.abs() >= SMALL * largest { mean } else { 0.0 }
}

impl<W> Pack<'_, W> {
    /// Fills the panels of `WIDTH` columns line by line, `PER_LINE` rows to a line.
    #[inline(always)]
    pub(super) fn pack<const WIDTH: usize, const PER_LINE: usize>(
        &mut self,
        mut pack_line: impl FnMut(&mut Columns<WIDTH>, usize, Range<usize>, &mut [W; WIDTH]),
    ) {
        self.sum.fill(0.0);
        self.magnitude.fill(0);
        for first_row in (0..self.rows.rows).step_by(ROWS) {
            let rows = (first_row..self.rows.rows.min(first_row + ROWS)).step_by(PER_LINE);
            let panels = self.panels.as_chunks_mut::<WIDTH>().0.chunks_exact_mut(self.lines);
            let sums = self.sum.as_chunks_mut::<WIDTH>().0.iter_mut();
            let sums = sums.zip(self.magnitude.as_chunks_mut::<WIDTH>().0);
            let columns = (self.first_column..self.rows.width).step_by(WIDTH);
            for ((panel, (sum, magnitude)), first_column) in panels.zip(sums).zip(columns) {
                let columns = first_column..self.rows.width.min(first_column + WIDTH);
                let mut lines = panel[first_row / PER_LINE..].chunks_mut(ROWS / PER_LINE);
                let now = lines.next().unwrap_or_default();
                prefetch(lines.next().unwrap_or_default().as_flattened());
                let mut seen = Columns::load(sum, magnitude);
                for (row, line) in rows.clone().zip(now) {
                    pack_line(&mut seen, row, columns.clone(), line);
                }
                seen.store(sum, magnitude);
            }
        }
    }
}
