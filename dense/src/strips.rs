//! Work on the columns of a matrix, side by side.

use crate::Square;
use faer::{MatMut, Par};
use rayon::prelude::*;

/// Calls a function with each strip of so many columns and the number of its first column, side by side unless `par` is sequential.
/// Nothing depends on the number of threads.
pub fn in_strips<T: Send>(
    a: MatMut<'_, T>,
    columns: usize,
    task: &(impl Fn(usize, MatMut<'_, T>) + Sync),
    par: Par,
) {
    share(a, 0, columns, task, par);
}

fn share<T: Send>(
    a: MatMut<'_, T>,
    first: usize,
    columns: usize,
    task: &(impl Fn(usize, MatMut<'_, T>) + Sync),
    par: Par,
) {
    let strips = a.ncols().div_ceil(columns);
    if strips > 1 {
        let left = strips / 2 * columns;
        let (a, b) = a.split_at_col_mut(left);
        both(|| share(a, first, columns, task, par), || share(b, first + left, columns, task, par), par);
    } else if strips == 1 {
        task(first, a);
    }
}

/// Number of threads that share work.
pub fn threads(par: Par) -> usize {
    if par.degree() > 1 { rayon::current_num_threads() } else { 1 }
}

/// Calls a function with the number of each chunk of so many numbers, and the chunk, side by side unless `par` is sequential.
pub(crate) fn share_chunks<T: Send>(
    numbers: &mut [T],
    size: usize,
    task: &(impl Fn(usize, &mut [T]) + Sync),
    par: Par,
) {
    match par {
        Par::Seq => numbers.chunks_mut(size).enumerate().for_each(|(i, chunk)| task(i, chunk)),
        Par::Rayon(_) => numbers.par_chunks_mut(size).enumerate().for_each(|(i, chunk)| task(i, chunk)),
    }
}

/// A square matrix from a function that writes a column, whose entries are zero, side by side unless `par` is sequential.
///
/// # Panics
/// As [`Square::zeros`].
pub fn from_columns<T: crate::Real>(
    size: usize,
    write: impl Fn(usize, &mut [T]) + Sync,
    par: Par,
) -> Square<T> {
    /// Columns of a strip.
    const TOGETHER: usize = 32;
    let mut out = Square::zeros(size);
    let strip = |first: usize, mut strip: MatMut<'_, T>| {
        for j in 0..strip.ncols() {
            let column = strip.as_mut().col_mut(j).try_as_col_major_mut().expect("a new matrix");
            write(first + j, column.as_slice_mut());
        }
    };
    in_strips(out.as_mut(), TOGETHER, &strip, par);
    out
}

/// Calls both functions, side by side unless `par` is sequential.
pub(crate) fn both(first: impl FnOnce() + Send, second: impl FnOnce() + Send, par: Par) {
    match par {
        Par::Seq => {
            first();
            second();
        }
        Par::Rayon(_) => {
            rayon::join(first, second);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use faer::Mat;

    /// Every column is written once, at its place, for numbers of columns around those of a strip.
    #[test]
    fn columns_are_written_at_their_place() {
        for size in [0, 1, 31, 32, 33, 64, 65, 200] {
            for par in [Par::Seq, Par::rayon(16)] {
                let write = |j: usize, column: &mut [f64]| {
                    for (i, value) in column.iter_mut().enumerate() {
                        *value += (1000 * i + j) as f64;
                    }
                };
                let wanted = Mat::from_fn(size, size, |i, j| (1000 * i + j) as f64);
                assert_eq!(from_columns(size, write, par).as_ref(), wanted.as_ref(), "{size}");
            }
        }
    }
}
