//! A Cholesky factor in f32, by the kernel of the Gram matrices.
//!
//! ```text
//! for each block of columns
//!     D    = Cholesky factor of the block on the diagonal         # f64
//!     P    = D⁻¹ · the rows of the block beyond it                # f64, rounded to f32
//!     rest = rest − Pᵀ P                                          # products in f32, sums in f64
//! ```
//!
//! The last line has nearly all operations. It is the update of a Gram matrix, so it takes the time of f32. Its rounding errors are those
//! of the sums that the matrix comes from, relative to the two channels of an entry, and the factor is used in f32. So the damping that
//! makes the noise of the sums harmless makes these errors harmless too (`statistics::is_near_noise`).

use crate::dense::{self, Square};
use crate::simd::threads::share;
use crate::simd::{self, Rows, Sums, Values, Workspace, row_start};
use crate::triangle::Triangle;
use faer::{Mat, Par};

/// Columns of a block. Wider blocks need more operations in f64, narrower ones read the rest of the matrix more often.
const BLOCK: usize = 256;

/// Lower Cholesky factor `G` of a symmetric matrix, `A = G Gᵀ`, in its memory; zeros above the diagonal. `None` if `A` is not positive
/// definite to working precision, or if the factor does not fit f32.
pub(super) fn cholesky(mut matrix: Triangle, par: Par) -> Option<Square<f32>> {
    let width = matrix.width();
    // Squares of f32 numbers must neither overflow nor vanish. Powers of two change no digit.
    let largest = matrix.diagonal().fold(0.0, f64::max);
    let exponent = (largest > 0.0 && largest.is_finite()).then(|| (largest.log2() / 2.0).round())?;
    let (scale, inverse) = (exponent.exp2(), (-2.0 * exponent).exp2());
    // The kernel adds.
    matrix.map(|_, _, entry| -entry * inverse, par);
    // The columns of the factor take the place of the rows that no block needs any more.
    let mut entries = matrix.into_entries();
    let threads = dense::threads(par);
    let mut workspace = Workspace::default();
    let mut rows = vec![0.0f32; BLOCK.min(width) * width];
    // Transposed, so that the rows are columns in memory.
    let mut panel = Mat::zeros(width.saturating_sub(BLOCK), BLOCK);
    let (mut sum, mut abs_max) = (vec![0.0; width], vec![0.0; width]);
    for first in (0..width).step_by(BLOCK) {
        let left = width - first;
        let count = BLOCK.min(left);
        let beyond = left - count;
        let (before, later) = entries.split_at_mut(row_start(width, first + count));
        let block = &before[row_start(width, first)..];
        let row = |i: usize| &block[row_start(left, i)..][..left - i];
        let diagonal = Mat::from_fn(count, count, |i, j| if i >= j { -row(j)[i - j] } else { 0.0 });
        let diagonal = dense::cholesky(diagonal, par)?;
        let mut panel = panel.as_mut().submatrix_mut(0, 0, beyond, count);
        share(threads, panel.as_mut().col_iter_mut().enumerate(), |(i, column)| {
            for (to, from) in column.iter_mut().zip(&row(i)[count - i..]) {
                *to = -from;
            }
        });
        dense::solve_lower(diagonal.as_ref(), panel.as_mut().transpose_mut(), par);
        let columns = bytemuck::cast_slice_mut(before)[first * width..].chunks_exact_mut(width);
        let parts = columns.zip(rows.chunks_mut(beyond.max(1))).zip(panel.col_iter());
        share(threads, parts.enumerate(), |(i, ((column, row), panel))| {
            let (above, column) = column.split_at_mut(first);
            above.fill(0.0);
            let (inside, below) = column.split_at_mut(count);
            for (to, from) in inside.iter_mut().zip(diagonal.col(i).iter()) {
                *to = (from * scale) as f32;
            }
            for ((to, row), from) in below.iter_mut().zip(row).zip(panel.iter()) {
                *to = (from * scale) as f32;
                *row = *from as f32;
            }
        });
        if beyond > 0 {
            let values = Values::F32(&rows[..count * beyond]);
            let rows = Rows { values, rows: count, width: beyond, stride: beyond };
            let into = Sums { gram: later, sum: &mut sum[..beyond], abs_max: &mut abs_max[..beyond] };
            simd::accumulate(rows, into, &mut workspace, threads).ok()?;
        }
    }
    let factor = Square::from_columns(width, entries.into_f32());
    dense::check_finite("the Cholesky factor", factor.as_ref()).ok()?;
    Some(factor)
}

/// Bytes that [`cholesky`] needs besides the matrix: the rows of a block, in f64 and f32, and the kernel's copy of them.
pub(super) fn memory(width: u64) -> u64 {
    width.saturating_mul(BLOCK as u64 * 24)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moments::Moments;
    use crate::random::gaussian;

    /// The second moment of a few rows whose channels differ in size, with this damping relative to the mean square of each channel.
    fn second_moment(width: usize, damping: f64) -> Mat<f64> {
        let plain = gaussian::<f32>(width / 2, width, 1, "rows");
        let size = |j: usize| if j % 100 == 7 { 1e4 } else { 1.0 / (1.0 + j as f32 / 16.0) };
        let rows = Mat::from_fn(width / 2, width, |i, j| size(j) * (plain[(i, j)] + 0.5));
        let second = Moments::of(rows.as_ref()).unwrap().second_moment().unwrap();
        Mat::from_fn(width, width, |i, j| second[(i, j)] * if i == j { 1.0 + damping } else { 1.0 })
    }

    /// `G Gᵀ` is the matrix, relative to its two channels, for widths of one block, of whole blocks and of a part, on several threads.
    #[test]
    fn the_factor_multiplies_back() {
        for (width, par) in [(1, Par::Seq), (60, Par::Seq), (512, Par::Seq), (700, Par::rayon(4))] {
            let matrix = second_moment(width.max(2), 1e-2);
            let factor = cholesky(Triangle::of(&matrix, par), par).unwrap();
            let product = dense::to_f64(factor.as_ref()) * dense::to_f64(factor.as_ref().transpose());
            for j in 0..matrix.ncols() {
                assert!((0..j).all(|i| factor.as_ref()[(i, j)] == 0.0));
                for i in 0..matrix.nrows() {
                    let error = (product[(i, j)] - matrix[(i, j)]).abs();
                    assert!(
                        error <= 2e-6 * (matrix[(i, i)] * matrix[(j, j)]).sqrt(),
                        "{width}: {error:e} at {i}, {j}"
                    );
                }
            }
        }
    }

    /// The number of threads does not change a bit.
    #[test]
    fn threads_do_not_change_the_factor() {
        let matrix = Triangle::of(&second_moment(600, 1e-2), Par::Seq);
        let factor = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| cholesky(matrix.clone(), Par::rayon(16)).unwrap())
        };
        assert!(factor(1).as_ref() == factor(3).as_ref());
    }

    /// Substitution with the factor of a damped matrix has errors of the size of the rounding of the sums beside the damping.
    #[test]
    fn solutions_are_accurate_beside_the_damping() {
        let matrix = second_moment(700, 1e-2);
        let block = gaussian::<f64>(700, 4, 2, "block");
        let mut wanted = block.clone();
        dense::solve_lower(
            dense::cholesky(matrix.clone(), Par::Seq).unwrap().as_ref(),
            wanted.as_mut(),
            Par::Seq,
        );
        let factor = cholesky(Triangle::of(&matrix, Par::Seq), Par::Seq).unwrap();
        let mut found = block;
        dense::solve_lower(dense::to_f64(factor.as_ref()).as_ref(), found.as_mut(), Par::Seq);
        let error = (&found - &wanted).norm_l2() / wanted.norm_l2();
        assert!(error < 1e-4, "{error:e}");
    }

    /// Matrices of any size of f32 have the same digits.
    #[test]
    fn powers_of_two_change_no_digit() {
        let matrix = second_moment(300, 1e-2);
        let wanted = cholesky(Triangle::of(&matrix, Par::Seq), Par::Seq).unwrap();
        for exponent in [-120, -20, 60, 180] {
            let power = f64::from(exponent).exp2();
            let scaled = Mat::from_fn(300, 300, |i, j| matrix[(i, j)] * power * power);
            let found = cholesky(Triangle::of(&scaled, Par::Seq), Par::Seq);
            if exponent == 180 {
                assert!(found.is_none(), "the factor does not fit f32");
                continue;
            }
            let found = found.unwrap();
            let (found, wanted) = (found.as_ref(), wanted.as_ref());
            let same = |i: usize, j: usize| f64::from(found[(i, j)]) == f64::from(wanted[(i, j)]) * power;
            let normal = |i: usize, j: usize| found[(i, j)].abs() > 1e-30;
            assert!((0..300).all(|j| (0..300).all(|i| same(i, j) || !normal(i, j))), "2^{exponent}");
        }
    }

    /// Matrices that are not positive definite, in the first block or a later one, and numbers that are not finite have no factor.
    #[test]
    fn other_matrices_have_no_factor() {
        for bad in [f64::NAN, f64::INFINITY, -1.0, 0.0] {
            for place in [3, 280, 599] {
                let mut matrix = second_moment(600, 1e-2);
                matrix[(place, place)] = bad;
                assert!(cholesky(Triangle::of(&matrix, Par::Seq), Par::Seq).is_none(), "{bad} at {place}");
            }
        }
        assert!(cholesky(Triangle::of(&Mat::zeros(3, 3), Par::Seq), Par::Seq).is_none());
    }
}
