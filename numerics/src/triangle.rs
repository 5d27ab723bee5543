//! Symmetric matrices as their upper triangle, row after row, in f64: half of the memory of the whole matrix.

use crate::dense::{self, Buffer, Real, Square};
use crate::simd::row_start;
use crate::simd::threads::share;
use faer::prelude::ReborrowMut;
use faer::{Mat, MatMut, Par};
use pulp::{Arch, NullaryFnOnce};

/// A symmetric matrix.
#[derive(Clone, Debug)]
pub(crate) struct Triangle {
    width: usize,
    /// Row `i` holds the columns from `i` on.
    entries: Buffer<f64>,
}

impl Triangle {
    /// The zero matrix.
    ///
    /// # Panics
    /// If there is not enough memory.
    pub(crate) fn zeros(width: usize) -> Self {
        let entries = Buffer::zeros(row_start(width, width)).expect("memory for a triangle");
        Self { width, entries }
    }

    /// The upper triangle of a symmetric matrix.
    #[cfg(test)]
    pub(crate) fn of(matrix: &Mat<f64>, par: Par) -> Self {
        let width = matrix.nrows();
        let mut triangle = Self::zeros(width);
        // Columns lie together in memory, and are those rows.
        triangle.map(|i, j, _| matrix[(j, i)], par);
        triangle
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// The entry `(i, j)`.
    pub(crate) fn get(&self, i: usize, j: usize) -> f64 {
        let (i, j) = (i.min(j), i.max(j));
        self.entries[row_start(self.width, i) + j - i]
    }

    pub(crate) fn diagonal(&self) -> impl Iterator<Item = f64> {
        (0..self.width).map(|i| self.entries[row_start(self.width, i)])
    }

    pub(crate) fn add_to_diagonal(&mut self, value: f64) {
        (0..self.width).for_each(|i| self.entries[row_start(self.width, i)] += value);
    }

    /// Changes every row, from the diagonal on. The function gets its number too.
    pub(crate) fn change_rows(&mut self, change: impl Fn(usize, &mut [f64]) + Sync, par: Par) {
        let mut rest = &mut self.entries[..];
        let rows = (0..self.width).map(|i| {
            let (row, later) = std::mem::take(&mut rest).split_at_mut(self.width - i);
            rest = later;
            (i, row)
        });
        share(par.degree(), rows, |(i, row)| Arch::new().dispatch(ChangeRow { i, row, change: &change }));
    }

    /// Replaces every entry `(i, j)`, `i ≤ j`, by a function of it.
    pub(crate) fn map(&mut self, entry: impl Fn(usize, usize, f64) -> f64 + Sync, par: Par) {
        let change = |i: usize, row: &mut [f64]| {
            for (j, value) in (i..).zip(row) {
                *value = entry(i, j, *value);
            }
        };
        self.change_rows(change, par);
    }

    /// The whole matrix, by a function of row, column and entry.
    pub(crate) fn whole<T: Real>(
        &self,
        entry: impl Fn(usize, usize, f64) -> T + Sync,
        par: Par,
    ) -> Square<T> {
        let mut out = Square::zeros(self.width);
        self.write_whole(out.as_mut(), entry, par);
        out
    }

    /// The whole matrix, by itself.
    pub(crate) fn to_mat(&self) -> Mat<f64> {
        let mut out = Mat::zeros(self.width, self.width);
        self.write_whole(out.as_mut(), |_, _, entry| entry, Par::Seq);
        out
    }

    fn write_whole<T: Real>(
        &self,
        out: MatMut<'_, T>,
        entry: impl Fn(usize, usize, f64) -> T + Sync,
        par: Par,
    ) {
        let strip = |first: usize, strip: MatMut<'_, T>| {
            Arch::new().dispatch(WriteStrip { first, strip, triangle: &self.entries, entry: &entry });
        };
        dense::in_strips(out, TOGETHER, &strip, par);
    }

    /// `|A|²_F`.
    pub(crate) fn squared_norm(&self) -> f64 {
        let all: f64 = self.entries.iter().map(|entry| entry * entry).sum();
        2.0 * all - self.diagonal().map(|entry| entry * entry).sum::<f64>()
    }

    /// The entries.
    pub(crate) fn into_entries(self) -> Buffer<f64> {
        self.entries
    }
}

/// A change of a row, with the instructions of the processor: a fused multiply-add is a call otherwise.
struct ChangeRow<'a, F> {
    i: usize,
    row: &'a mut [f64],
    change: &'a F,
}

impl<F: Fn(usize, &mut [f64])> NullaryFnOnce for ChangeRow<'_, F> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        (self.change)(self.i, self.row);
    }
}

/// Columns of a strip of the whole matrix.
const TOGETHER: usize = 128;

/// Columns of the whole matrix from one on, written with the instructions of the processor.
struct WriteStrip<'a, T, F> {
    first: usize,
    strip: MatMut<'a, T>,
    triangle: &'a [f64],
    entry: &'a F,
}

impl<T: Real, F: Fn(usize, usize, f64) -> T> NullaryFnOnce for WriteStrip<'_, T, F> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        /// Rows that are transposed together: a cache line of a column.
        const LINE: usize = 16;
        let Self { first, mut strip, triangle, entry } = self;
        let (width, last) = (strip.nrows(), first + strip.ncols());
        // From the diagonal on.
        let row = |i: usize| &triangle[row_start(width, i)..][..width - i];
        let mut lines = [[0.0; LINE]; TOGETHER];
        for above in (0..last).step_by(LINE) {
            for i in above..last.min(above + LINE) {
                let values = &row(i)[first.max(i) - i..last - i];
                for (line, value) in lines.iter_mut().skip(i.saturating_sub(first)).zip(values) {
                    line[i - above] = *value;
                }
            }
            for ((j, line), column) in (first..last).zip(&lines).zip(strip.rb_mut().col_iter_mut()) {
                let count = LINE.min((j + 1).saturating_sub(above));
                for ((i, out), value) in
                    (above..).zip(column.subrows_mut(above.min(j), count).iter_mut()).zip(line)
                {
                    *out = entry(i, j, *value);
                }
            }
        }
        for (i, column) in (first..last).zip(strip.col_iter_mut()) {
            let below = column.subrows_mut(i, width - i);
            for ((j, out), value) in (i..).zip(below.iter_mut()).zip(row(i)) {
                *out = entry(j, i, *value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    /// Entries that name their position, for widths around those of strips and lines.
    fn numbered(width: usize) -> Triangle {
        let mut triangle = Triangle::zeros(width);
        triangle.map(|i, j, entry| entry + 0.5 + (1000 * i + j) as f64, Par::rayon(4));
        triangle
    }

    #[test]
    fn every_entry_is_at_its_place() {
        let below = |row: usize, column: usize| if row > column { 0.25 } else { 0.0 };
        for width in [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 70, 127, 128, 129, 150] {
            let triangle = numbered(width);
            let value = |i: usize, j: usize| (1000 * i.min(j) + i.max(j)) as f64 + 0.5;
            assert!((0..width).all(|i| (0..width).all(|j| triangle.get(i, j) == value(i, j))));
            assert!(triangle.diagonal().eq((0..width).map(|i| value(i, i))));
            for par in [Par::Seq, Par::rayon(4)] {
                // Row and column are given, so a matrix need not be symmetric.
                let whole = triangle.whole(|row, column, entry| entry + below(row, column), par);
                let wanted = Mat::from_fn(width, width, |i, j| value(i, j) + below(i, j));
                assert_eq!(whole.as_ref(), wanted.as_ref(), "{width}");
            }
        }
    }

    #[test]
    fn a_triangle_is_its_matrix() {
        let mut triangle = numbered(20);
        triangle.add_to_diagonal(3.0);
        let matrix = triangle.whole(|_, _, entry| entry, Par::Seq);
        let matrix = matrix.as_ref().to_owned();
        assert_eq!((matrix[(4, 4)], matrix[(4, 5)], matrix[(5, 4)]), (4007.5, 4005.5, 4005.5));
        assert!((triangle.squared_norm() / matrix.squared_norm_l2() - 1.0).abs() < 1e-12);
        assert_eq!(Triangle::of(&matrix, Par::Seq).into_entries(), triangle.into_entries());
    }
}
