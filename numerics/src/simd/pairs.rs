//! Packing rows of bf16: two rows in one word, with their column statistics.
//!
//! The first pass interleaves the rows and takes their sums and maxima, as for f32 (`pack`). The second subtracts a pilot from the columns
//! for which this matters, so that offsets cost no accuracy here either. Most columns need no second pass.
//!
//! A difference of two bf16 numbers is often a bf16 number itself: always if both lie within a factor of two of one another. If it is
//! not, the panel holds the rounded difference, and the rest is a correction ([`Lost`]).

use super::Rows;
use super::pack::{Lost, Pack, ROWS, pilot_of};
use super::prefetch::prefetch;
use super::shape::VECTORS;
use half::bf16;
use pulp::{Simd, WithSimd};

/// Width of a panel of pairs.
pub(super) const WIDTH: usize = 16 * VECTORS;

/// Packs the bf16 of two rows in one word, the earlier row in the lower half.
pub(super) struct PackPairs<'a> {
    pub pack: Pack<'a, u32>,
    pub values: &'a [bf16],
}

impl WithSimd for PackPairs<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Self { mut pack, values } = self;
        let Rows { rows, stride, .. } = pack.rows;
        pack.pack::<WIDTH, 2>(|seen, row, columns, line| {
            let row_of = |row: usize| &values[row * stride + columns.start..row * stride + columns.end];
            let ahead = |row: usize| values.get((row + ROWS) * stride + columns.start..).unwrap_or_default();
            prefetch(&ahead(row)[..ahead(row).len().min(columns.len())]);
            prefetch(&ahead(row + 1)[..ahead(row + 1).len().min(columns.len())]);
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
            let (even, odd) = halves(line);
            seen.add(&even);
            seen.add(&odd);
        });
        centre(&mut pack);
    }
}

/// A bf16 is the upper half of the f32 of the same value.
#[inline(always)]
pub(super) fn earlier(word: u32) -> f32 {
    f32::from_bits(word << 16)
}

#[inline(always)]
pub(super) fn later(word: u32) -> f32 {
    f32::from_bits(word & 0xffff_0000)
}

/// The numbers of the earlier and of the later row of a line. Here and below, loops are written out, since a closure given to a function
/// of the standard library may lose the vector instructions of its surroundings.
#[inline(always)]
fn halves(line: &[u32; WIDTH]) -> ([f32; WIDTH], [f32; WIDTH]) {
    let mut halves = ([0.0; WIDTH], [0.0; WIDTH]);
    for ((even, odd), &word) in halves.0.iter_mut().zip(&mut halves.1).zip(line) {
        *even = earlier(word);
        *odd = later(word);
    }
    halves
}

/// Rounds to the nearest bf16, ties to even. The number is finite.
#[inline(always)]
fn round(number: f32) -> f32 {
    let bits = number.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

/// Fills the lines after the last row with zeros, and subtracts the pilots.
#[inline(always)]
fn centre(pack: &mut Pack<'_, u32>) {
    let rows = pack.rows.rows;
    let panels = pack.panels.as_chunks_mut::<WIDTH>().0.chunks_exact_mut(pack.lines);
    let seen = pack.sum.as_chunks::<WIDTH>().0.iter().zip(pack.magnitude.as_chunks::<WIDTH>().0);
    let pilots = pack.pilot.as_chunks_mut::<WIDTH>().0.iter_mut();
    let centres = pilots.zip(pack.rest.as_chunks_mut::<WIDTH>().0);
    let columns = (pack.first_column..pack.rows.width).step_by(WIDTH);
    for (((panel, (sum, magnitude)), (pilot, rest)), first_column) in
        panels.zip(seen).zip(centres).zip(columns)
    {
        panel[rows.div_ceil(2)..].fill([0; WIDTH]);
        let mut subtrahend: [f32; WIDTH] =
            std::array::from_fn(|k| round(pilot_of(sum[k], magnitude[k], rows)));
        let mut sum = sum.map(f64::from);
        if subtrahend != [0.0; WIDTH] {
            let differences = Differences::of(panel, rows, &subtrahend);
            for k in 0..WIDTH {
                if differences.are_worth(rows, k, subtrahend[k]) {
                    sum[k] = differences.sum[k];
                } else {
                    subtrahend[k] = 0.0;
                }
            }
            subtract(panel, rows, &subtrahend, first_column, pack.lost);
        }
        (*pilot, *rest) = (subtrahend.map(f64::from), sum);
    }
}

/// The differences of the columns of a panel from their pilots.
struct Differences {
    sum: [f64; WIDTH],
    squares: [f32; WIDTH],
    /// Number of differences that are no bf16.
    inexact: [u32; WIDTH],
}

impl Differences {
    #[inline(always)]
    fn of(panel: &[[u32; WIDTH]], rows: usize, pilot: &[f32; WIDTH]) -> Self {
        let mut found = Self { sum: [0.0; WIDTH], squares: [0.0; WIDTH], inexact: [0; WIDTH] };
        for (index, line) in panel[..rows.div_ceil(2)].iter().enumerate() {
            let (even, odd) = halves(line);
            found.add(&even, pilot);
            if 2 * index + 1 < rows {
                found.add(&odd, pilot);
            }
        }
        found
    }

    #[inline(always)]
    fn add(&mut self, row: &[f32; WIDTH], pilot: &[f32; WIDTH]) {
        let sums = self.sum.iter_mut().zip(&mut self.squares).zip(&mut self.inexact);
        for (((sum, squares), inexact), (number, pilot)) in sums.zip(row.iter().zip(pilot)) {
            let difference = number - pilot;
            *sum += f64::from(difference);
            *squares += difference * difference;
            *inexact += u32::from(difference.to_bits() & 0xffff != 0);
        }
    }

    /// True if the pilot of a column is subtracted: if that is exact, or if the mean is more than four standard deviations. Below that,
    /// products without the subtraction are accurate enough, and many differences may be inexact.
    fn are_worth(&self, rows: usize, k: usize, pilot: f32) -> bool {
        const LARGE: f32 = 16.0;
        self.inexact[k] == 0 || pilot * pilot * rows as f32 > LARGE * self.squares[k]
    }
}

/// Subtracts the pilots, and lists the parts of the differences that bf16 does not hold.
#[inline(always)]
fn subtract(
    panel: &mut [[u32; WIDTH]],
    rows: usize,
    pilot: &[f32; WIDTH],
    first_column: usize,
    lost: &mut Vec<Lost>,
) {
    for (index, line) in panel[..rows.div_ceil(2)].iter_mut().enumerate() {
        let (mut even, mut odd) = halves(line);
        let mut inexact = false;
        for (half, numbers) in [&mut even, &mut odd].into_iter().enumerate() {
            if 2 * index + half == rows {
                break;
            }
            for (number, pilot) in numbers.iter_mut().zip(pilot) {
                *number -= pilot;
                inexact |= number.to_bits() & 0xffff != 0;
            }
        }
        if inexact {
            for (half, numbers) in [&mut even, &mut odd].into_iter().enumerate() {
                for (k, number) in numbers.iter_mut().enumerate() {
                    let rounded = round(*number);
                    if rounded != *number {
                        lost.push(Lost {
                            column: first_column + k,
                            row: 2 * index + half,
                            part: *number - rounded,
                        });
                    }
                    *number = rounded;
                }
            }
        }
        for ((word, even), odd) in line.iter_mut().zip(even).zip(odd) {
            *word = even.to_bits() >> 16 | odd.to_bits();
        }
    }
}
