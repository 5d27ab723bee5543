//! A panel: a few columns that are stored row after row.

use super::kernel::widest;
use crate::Real;
use faer::{Mat, MatMut, MatRef};

/// Columns of a block, at most as many as fit in two vectors of 64 bytes, stored row after row. [`by_panels`] makes it.
#[derive(Debug)]
pub struct Panel<T> {
    columns: usize,
    /// Numbers in a row, the last of them zeros.
    pub(super) stride: usize,
    pub(super) numbers: Vec<T>,
}

impl<T: Real> Panel<T> {
    pub(super) fn zeros(rows: usize, columns: usize) -> Self {
        assert!(columns <= widest::<T>(), "columns of a panel");
        let stride = columns.max(1).next_multiple_of(widest::<T>() / 2);
        Self { columns, stride, numbers: vec![T::zeroed(); rows * stride] }
    }

    /// As many zeros, for another number of rows.
    pub(super) fn zeros_like(&self, rows: usize) -> Self {
        Self::zeros(rows, self.columns)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.numbers.len() / self.stride
    }

    fn read<U: Copy>(block: MatRef<'_, U>, convert: &impl Fn(U) -> T) -> Self {
        let mut panel = Self::zeros(block.nrows(), block.ncols());
        let stride = panel.stride;
        for (first, rows) in (0..).step_by(TOGETHER).zip(panel.numbers.chunks_mut(TOGETHER * stride)) {
            for (j, column) in block.subrows(first, rows.len() / stride).col_iter().enumerate() {
                for (row, value) in rows.chunks_exact_mut(stride).zip(column.iter()) {
                    row[j] = convert(*value);
                }
            }
        }
        panel
    }

    fn write<U: Copy>(&self, mut block: MatMut<'_, U>, convert: &impl Fn(T) -> U) {
        let stride = self.stride;
        for (first, rows) in (0..).step_by(TOGETHER).zip(self.numbers.chunks(TOGETHER * stride)) {
            let block = block.as_mut().subrows_mut(first, rows.len() / stride);
            for (j, column) in block.col_iter_mut().enumerate() {
                for (row, value) in rows.chunks_exact(stride).zip(column.iter_mut()) {
                    *value = convert(row[j]);
                }
            }
        }
    }
}

/// Rows that are transposed together.
const TOGETHER: usize = 64;

/// The result of an operation on the columns of a block `(n × k)`, with so many rows. The operation is called for one panel after the other,
/// whose numbers are converted for it and back.
///
/// ```
/// use cntlora_dense::by_panels;
/// use faer::{Mat, Par};
///
/// let l = Mat::from_fn(3, 3, |i, j| if i >= j { 2.0 } else { 0.0 });
/// let block = Mat::from_fn(3, 2, |i, j| (i + j) as f32);
/// let convert = (f64::from, |number| number as f32);
/// let solved = by_panels(block.as_ref(), 3, convert, |x| x.solve_lower(l.as_ref(), Par::Seq));
/// assert_eq!(solved[(0, 1)], 0.5);
/// assert_eq!(solved[(2, 1)], 0.5);
/// ```
///
/// # Panics
/// If the operation returns a panel with another number of rows.
pub fn by_panels<T: Real, U: Real>(
    block: MatRef<'_, U>,
    rows: usize,
    (to, from): (impl Fn(U) -> T, impl Fn(T) -> U),
    operation: impl Fn(Panel<T>) -> Panel<T>,
) -> Mat<U> {
    let mut out = Mat::zeros(rows, block.ncols());
    for first in (0..block.ncols()).step_by(widest::<T>()) {
        let columns = widest::<T>().min(block.ncols() - first);
        let panel = operation(Panel::read(block.subcols(first, columns), &to));
        assert_eq!(panel.rows(), rows, "rows of the result");
        panel.write(out.as_mut().subcols_mut(first, columns), &from);
    }
    out
}
