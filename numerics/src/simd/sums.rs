//! From a block of rows to its sums.

use super::{Rows, Workspace, triangle};
use crate::error::Result;

/// The sums that a block is added to.
#[derive(Debug)]
pub struct Sums<'a> {
    /// Upper triangle of the Gram matrix, row after row: `width (width + 1) / 2` numbers. Element `(i, j)` with `i <= j` has index `i ·
    /// width - i (i - 1) / 2 + j - i`.
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

/// Adds the statistics of at most [`Workspace::block_rows`] rows; on an error nothing was added.
///
/// The work is `rows · width · (width + 1)` floating-point operations, shared by up to `threads` threads
/// of the current rayon pool; with one thread (or none) the pool is not touched. The number of threads
/// does not change the result.
///
/// Finite numbers that are further than about 1e18 from the mean of their column overflow when they are multiplied, and so do all numbers
/// of a column with a number beyond 2⁶⁴. The Gram matrix then holds infinities or NaN, and the caller has to check for them.
///
/// # Errors
/// [`Error::NonFiniteRow`](crate::error::Error::NonFiniteRow) for the first number, in row-major order, that is
/// NaN or infinite as an f32.
///
/// # Panics
/// If there are more than [`Workspace::block_rows`] rows, if `stride < width`, or if a slice of `rows` or `into` is
/// not as long as its documentation says.
pub fn accumulate(rows: Rows<'_>, into: Sums<'_>, workspace: &mut Workspace, threads: usize) -> Result<()> {
    rows.assert_consistent(workspace.block_rows(rows.values.element()));
    into.assert_width(rows.width);
    match threads {
        0 | 1 => workspace.accumulate(rows, into, 1),
        // Both passes go to the pool, which is entered once.
        _ => rayon::scope(|_| workspace.accumulate(rows, into, threads)),
    }
}
