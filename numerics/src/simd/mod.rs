//! The kernels of the activation statistics, behind one dispatch.
//!
//! [`accumulate`] takes one block of rows, in whatever format they were read, and adds to a [`Sums`]
//! everything that is remembered of them: the Gram matrix `Xᵀ X` (upper triangle), the column sums and
//! the largest absolute value of each column. The rows are read from memory once: converting, packing,
//! summing, and looking for NaN and infinity all happen on that pass, and a few columns at a time are then centred while they
//! are in a cache (`pack`). The Gram matrix is computed from the packed copy (`gram`, where the kernel is explained).
//!
//! **Centred.** Products of f32 numbers far from zero would round away the covariance, which is what the sums are for. So
//! each column of a block is taken relative to a pilot `c`, its mean in the block. The products of the
//! differences `y = x − c` are accumulated in f32, and what makes them products of `x` is added in f64. The sums
//! that result are those of the rows as they are. A covariance that is formed from them in f64 was off by at most 1e-6 of the
//! product of two standard deviations in the tests, and by 6e-6 where the numbers of a column are few different ones,
//! whose products are all rounded alike; up to means of 10⁴ standard deviations (`moments::accuracy`). Beyond
//! that the digits of f64 end.
//!
//! **One result.** For a block of `n` rows, with every operation rounded once:
//!
//! - `c = (x₁ + x₂ + …) / n`, one chain of f32 additions over the rows in order; 0 where that is below an eighth of the
//!   largest `|x|` of the column, and where a `|x|` is above 2⁶⁴.
//! - `y = x − c` in f32 (of f64 rows in f64, then rounded to f32).
//! - `s = y₁ + y₂ + …`, one chain of f64 additions; `t = s + n c` in f64 is added to the column sum.
//! - `g_ij`, one chain of fused multiply-adds of f32 from zero; `fma(c_i, t_j, fma(s_i, c_j, g_ij))` in f64 is added to the Gram
//!   element.
//!
//! So the bits depend neither on the [`Tier`] of instructions nor on the number of threads. ([`Precision::Bf16`] is not
//! centred, rounds differently, and has to be asked for.)
//!
//! Nothing here knows of files, of layers, or of what the sums are for.

#[allow(unsafe_code, reason = "an instruction that pulp does not offer")]
mod bf16_dot;
mod columns;
mod convert;
mod gram;
mod kernel;
mod pack;
mod packed;
pub mod peak;
mod precision;
#[allow(unsafe_code, reason = "an instruction that pulp does not offer")]
mod prefetch;
#[cfg(test)]
mod tests;
pub mod threads;
mod tier;
mod triangle;
mod workspace;

pub use precision::{Precision, Unsupported};
pub use tier::Tier;
pub use workspace::Workspace;

use crate::error::Result;
use convert::Number;
use half::{bf16, f16};

/// Rows per block: within a block the Gram accumulates in f32, across blocks in f64.
///
/// It is part of the definition of the result, and the same for every tier and precision. Larger blocks
/// spend less on the f64 triangle, and round more: this size was measured (see `benches/README.md`).
pub const BLOCK_ROWS: usize = 640;

/// Numbers as they were read, row after row.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// Double precision. Each number is rounded to f32 after the mean of its column in the block was subtracted.
    F64(&'a [f64]),
    /// Single precision.
    F32(&'a [f32]),
    /// Half precision.
    F16(&'a [f16]),
    /// Brain float.
    Bf16(&'a [bf16]),
}

impl Values<'_> {
    fn len(&self) -> usize {
        match self {
            Values::F64(values) => values.len(),
            Values::F32(values) => values.len(),
            Values::F16(values) => values.len(),
            Values::Bf16(values) => values.len(),
        }
    }

    /// One number, rounded to f32.
    fn get(&self, index: usize) -> f32 {
        match self {
            Values::F64(values) => values[index] as f32,
            Values::F32(values) => values[index],
            Values::F16(values) => values[index].to_f32(),
            Values::Bf16(values) => values[index].to_f32(),
        }
    }
}

/// A block of activations: `rows × width` numbers, `stride` apart from row to row.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The numbers: at least `(rows - 1) · stride + width` of them, unless there are no rows.
    pub values: Values<'a>,
    /// How many rows.
    pub rows: usize,
    /// Length of a row.
    pub width: usize,
    /// Distance between the starts of two rows, at least `width`.
    pub stride: usize,
}

impl Rows<'_> {
    fn assert_consistent(&self) {
        let Rows { values, rows, width, stride } = *self;
        assert!(rows <= BLOCK_ROWS, "a block has at most {BLOCK_ROWS} rows, found {rows}");
        assert!(stride >= width, "rows of {width} numbers cannot start {stride} numbers apart");
        let needed = match rows {
            0 => Some(0),
            _ => (rows - 1).checked_mul(stride).and_then(|start| start.checked_add(width)),
        };
        assert!(
            needed.is_some_and(|needed| needed <= values.len()),
            "{rows} rows of {width} numbers, {stride} apart, do not fit in {} numbers",
            values.len()
        );
    }

    /// One row, exactly.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not as long as a row.
    pub fn copy_row(&self, row: usize, out: &mut [f64]) {
        fn widen<N: Number>(from: &[N], to: &mut [f64]) {
            to.iter_mut().zip(from).for_each(|(to, &from)| *to = from.into());
        }
        assert_eq!(out.len(), self.width, "room for a row");
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let range = row * self.stride..row * self.stride + self.width;
        match self.values {
            Values::F64(values) => widen(&values[range], out),
            Values::F32(values) => widen(&values[range], out),
            Values::F16(values) => widen(&values[range], out),
            Values::Bf16(values) => widen(&values[range], out),
        }
    }

    /// Row and column of the first number, in row-major order, that is not finite as an f32.
    fn first_non_finite(&self) -> Option<(usize, usize)> {
        let mut positions = (0..self.rows).flat_map(|row| (0..self.width).map(move |column| (row, column)));
        positions.find(|(row, column)| !self.values.get(row * self.stride + column).is_finite())
    }
}

/// Where a block's statistics are added.
#[derive(Debug)]
pub struct Sums<'a> {
    /// Upper triangle of the Gram matrix, row after row: `width (width + 1) / 2` numbers, of which
    /// element `(i, j)` with `i <= j` has index `i · width - i (i - 1) / 2 + j - i`.
    pub gram: &'a mut [f64],
    /// Column sums.
    pub sum: &'a mut [f64],
    /// Largest absolute value of each column.
    pub abs_max: &'a mut [f32],
}

impl Sums<'_> {
    fn assert_width(&self, width: usize) {
        assert_eq!(self.sum.len(), width, "number of column sums");
        assert_eq!(self.abs_max.len(), width, "number of absolute maxima");
        let len = triangle::checked_len(width);
        assert_eq!(Some(self.gram.len()), len, "length of the triangle of a Gram matrix of width {width}");
    }
}

/// Adds the statistics of at most [`BLOCK_ROWS`] rows; on an error nothing was added.
///
/// The work is `rows · width · (width + 1)` floating-point operations, shared by up to `threads` threads
/// of the current rayon pool; with one thread (or none) the pool is not touched. The number of threads
/// does not change the result.
///
/// Finite numbers that are further than about 1e18 from the mean of their column overflow when they are multiplied, and so do all
/// numbers of a column with one beyond 2⁶⁴: the Gram matrix then holds infinities or NaN, which whoever uses it has to look for.
///
/// # Errors
/// [`Error::NonFiniteRow`](crate::error::Error::NonFiniteRow) for the first number, in row-major order, that is
/// NaN or infinite as an f32.
///
/// # Panics
/// If there are more than [`BLOCK_ROWS`] rows, if `stride < width`, or if a slice of `rows` or `into` is
/// not as long as its documentation says.
pub fn accumulate(rows: Rows<'_>, into: Sums<'_>, workspace: &mut Workspace, threads: usize) -> Result<()> {
    rows.assert_consistent();
    into.assert_width(rows.width);
    match threads {
        0 | 1 => workspace.accumulate(rows, into, 1),
        // Both passes go to the pool, which is entered once.
        _ => rayon::scope(|_| workspace.accumulate(rows, into, threads)),
    }
}
