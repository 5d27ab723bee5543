//! Functions of a large symmetric matrix without its eigenvectors.
//!
//! ```text
//! A = Q B Qᵀ                                 B: block tridiagonal, Q: Householder reflections      4/3 n³
//! f(A) ≈ Q (c₀ I + Σ cᵢ (B + sᵢ I)⁻¹) Qᵀ     partial fractions of a rational function f            2 n³ and n² b each
//! ```
//!
//! An eigendecomposition needs about as many operations, but half of those of its first step, the reduction to a tridiagonal matrix, are
//! products with single vectors, which take the time to read the matrix. With blocks of `b` columns everything is a product of matrices
//! (Bischof, Lang & Sun 2000). The blocks of an inverse follow from a block factorization `B + s I = L Δ Lᵀ` row by row (Takahashi,
//! Fagan & Chin 1973), so a further fraction costs little, however ill-conditioned the matrix is.

mod panel;
mod symmetric;
#[cfg(test)]
mod tests;

use crate::strips::both;
use crate::{Error, Result, check_finite, cholesky, product, self_adjoint_eigen};
use crate::{add_product, product_into, solve_lower};
use faer::{Mat, MatMut, Par};
use panel::Reflector;

/// Columns of a block. Wider blocks make faster products, but the fractions take longer.
const BLOCK: usize = 64;

/// A symmetric matrix, reduced to block tridiagonal form by an orthogonal matrix.
#[derive(Debug)]
pub struct BlockTridiagonal {
    size: usize,
    /// The blocks on the diagonal. What follows after the last one is zero.
    diagonal: Vec<Mat<f64>>,
    /// The block below each block on the diagonal but the last.
    below: Vec<Mat<f64>>,
    reflectors: Vec<Reflector>,
}

/// The term `coefficient / (x + shift)` of a rational function.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fraction {
    /// The negative of the pole.
    pub shift: f64,
    /// The numerator.
    pub coefficient: f64,
}

impl BlockTridiagonal {
    /// Reduces the symmetric matrix whose lower triangle `a` holds.
    ///
    /// The reduction ends early if the rest of the matrix is negligible: if no eigenvalue of it is above `negligible`, and the part beside
    /// it is as small. Then both count as zero. `negligible` is 0 for a matrix that is reduced completely.
    ///
    /// # Errors
    /// [`Error::NonFinite`], naming `what`.
    pub fn reduce(what: &'static str, mut a: Mat<f64>, negligible: f64, par: Par) -> Result<Self> {
        /// Searches for a negligible rest cost a Cholesky factorization each.
        const ATTEMPTS: usize = 2;
        if !symmetric::is_finite(a.as_ref()) {
            return Err(Error::NonFinite { what });
        }
        let size = a.nrows();
        let (mut diagonal, mut below, mut reflectors) = (Vec::new(), Vec::new(), Vec::new());
        let mut attempts = 0;
        let mut scratch = symmetric::Scratch::new(size, BLOCK);
        for first in (0..size).step_by(BLOCK) {
            let width = BLOCK.min(size - first);
            diagonal.push(symmetric::mirrored(a.submatrix(first, first, width, width)));
            let next = first + width;
            let rest = size - next;
            if rest == 0 {
                break;
            }
            let beside = a.submatrix(next, first, rest, width);
            // A rest of noise begins where the part beside it is noise.
            if attempts < ATTEMPTS && beside.norm_l2() <= negligible * (BLOCK as f64).sqrt() {
                attempts += 1;
                if symmetric::is_bounded(a.submatrix(next, next, rest, rest), negligible, par) {
                    break;
                }
            }
            if rest <= BLOCK {
                below.push(beside.to_owned());
                continue;
            }
            let mut panel = beside.to_owned();
            let reflector = Reflector::of(panel.as_mut(), next);
            let inside = a.as_mut().submatrix_mut(next, next, rest, rest);
            symmetric::reflect(inside, reflector.v.as_ref(), reflector.t.as_ref(), &mut scratch, par);
            below.push(panel.subrows(0, BLOCK).to_owned());
            reflectors.push(reflector);
        }
        let reduced = Self { size, diagonal, below, reflectors };
        for block in reduced.diagonal.iter().chain(&reduced.below) {
            check_finite(what, block.as_ref())?;
        }
        Ok(reduced)
    }

    /// Rows of the part that is not zero.
    pub fn order(&self) -> usize {
        self.diagonal.iter().map(Mat::nrows).sum()
    }

    /// A bound of the eigenvalues: the largest sum of the absolute values of a row.
    pub fn bound(&self) -> f64 {
        let mut sums = vec![0.0; self.order()];
        let mut first = 0;
        for (k, block) in self.diagonal.iter().enumerate() {
            let next = first + block.nrows();
            for j in 0..block.ncols() {
                for i in 0..block.nrows() {
                    sums[first + i] += block[(i, j)].abs();
                }
            }
            if let Some(below) = self.below.get(k) {
                for j in 0..below.ncols() {
                    for i in 0..below.nrows() {
                        sums[next + i] += below[(i, j)].abs();
                        sums[first + j] += below[(i, j)].abs();
                    }
                }
            }
            first = next;
        }
        sums.into_iter().fold(0.0, f64::max)
    }

    /// True if all eigenvalues of the part that is not zero are above `value`.
    pub fn is_above(&self, value: f64) -> bool {
        Inverse::new(self, Fraction { shift: -value, coefficient: 0.0 }).is_some()
    }

    /// How many eigenvalues of the part that is not zero are below `value` (Sylvester's law of inertia).
    ///
    /// # Errors
    /// The errors of the eigendecomposition of a block.
    pub fn count_below(&self, value: f64) -> Result<usize> {
        const WHAT: &str = "a block of the matrix";
        let mut count = 0;
        let mut rest: Option<Mat<f64>> = None;
        for (k, block) in self.diagonal.iter().enumerate() {
            let mut pivot = block.clone();
            for i in 0..pivot.nrows() {
                pivot[(i, i)] -= value;
            }
            if let Some(rest) = rest.take() {
                pivot -= rest;
            }
            let (values, vectors) = self_adjoint_eigen(WHAT, pivot.as_ref(), Par::Seq)?;
            count += values.iter().filter(|value| **value < 0.0).count();
            if let Some(below) = self.below.get(k) {
                let turned = product(below.as_ref(), vectors.as_ref(), Par::Seq);
                let least = f64::EPSILON * f64::EPSILON * values.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
                let divided = Mat::from_fn(turned.nrows(), turned.ncols(), |i, j| {
                    let pivot = values[j];
                    turned[(i, j)] / if pivot.abs() > least { pivot } else { least.max(f64::MIN_POSITIVE) }
                });
                rest = Some(product(divided.as_ref(), turned.transpose(), Par::Seq));
            }
        }
        Ok(count)
    }

    /// `f(A)` with `f(x) = constant + Σ coefficient / (x + shift)`, for a function with `f(0) = 0` if a negligible rest was left out. All
    /// shifted matrices must be positive definite.
    ///
    /// `None` if one of them is not.
    ///
    /// # Errors
    /// [`Error::NonFinite`] if the result is not finite.
    pub fn partial_fractions(
        &self,
        constant: f64,
        fractions: &[Fraction],
        par: Par,
    ) -> Result<Option<Mat<f64>>> {
        let factor = |fraction: &Fraction| Inverse::new(self, *fraction);
        let Some(inverses) = symmetric::map(fractions, factor, par).into_iter().collect::<Option<Vec<_>>>()
        else {
            return Ok(None);
        };
        let mut out = Mat::zeros(self.size, self.size);
        let order = self.order();
        rows_of_sum(out.as_mut().submatrix_mut(0, 0, order, order), 0, constant, &inverses, par);
        drop(inverses);
        let mut scratch = symmetric::Scratch::new(self.size, BLOCK);
        for reflector in self.reflectors.iter().rev() {
            let Reflector { first, v, t } = reflector;
            let rows = self.size - first;
            let inside = out.as_mut().submatrix_mut(*first, *first, rows, rows);
            symmetric::reflect(inside, v.as_ref(), t.transpose(), &mut scratch, par);
            let beside = out.as_mut().submatrix_mut(*first, 0, rows, *first);
            symmetric::reflect_rows(beside, v.as_ref(), t.as_ref(), par);
        }
        symmetric::mirror(out.as_mut());
        check_finite("a function of the matrix", out.as_ref()).map(|()| Some(out))
    }
}

/// `c (B + s I)⁻¹` in factored form.
struct Inverse {
    /// `c` times the blocks on the diagonal.
    diagonal: Vec<Mat<f64>>,
    /// `−Mᵢ`, the negative of the block of `L` below each block on the diagonal.
    multipliers: Vec<Mat<f64>>,
}

impl Inverse {
    /// `None` if the shifted matrix is not positive definite.
    fn new(matrix: &BlockTridiagonal, Fraction { shift, coefficient }: Fraction) -> Option<Self> {
        let count = matrix.diagonal.len();
        let (mut inverses, mut multipliers) = (Vec::with_capacity(count), Vec::with_capacity(count));
        let mut rest: Option<Mat<f64>> = None;
        for (k, block) in matrix.diagonal.iter().enumerate() {
            let mut pivot = block.clone();
            for i in 0..pivot.nrows() {
                pivot[(i, i)] += shift;
            }
            if let Some(rest) = rest.take() {
                pivot -= rest;
            }
            let factor = cholesky(pivot, Par::Seq)?;
            let mut root = Mat::identity(factor.nrows(), factor.nrows());
            solve_lower(factor.as_ref(), root.as_mut(), Par::Seq);
            let inverse = product(root.transpose(), root.as_ref(), Par::Seq);
            if let Some(below) = matrix.below.get(k) {
                // Δ is symmetric to the last bit only in this form.
                let half = product(below.as_ref(), root.transpose(), Par::Seq);
                rest = Some(product(half.as_ref(), half.transpose(), Par::Seq));
                let mut multiplier = Mat::zeros(below.nrows(), below.ncols());
                add_product(multiplier.as_mut(), -1.0, below.as_ref(), inverse.as_ref(), Par::Seq);
                multipliers.push(multiplier);
            }
            inverses.push(inverse);
        }
        // From the last block to the first.
        for k in (0..multipliers.len()).rev() {
            let right = product(inverses[k + 1].as_ref(), multipliers[k].as_ref(), Par::Seq);
            add_product(inverses[k].as_mut(), 1.0, multipliers[k].transpose(), right.as_ref(), Par::Seq);
        }
        for inverse in &mut inverses {
            *inverse *= faer::Scale(coefficient);
        }
        Some(Self { diagonal: inverses, multipliers })
    }
}

/// Writes the lower triangle of `constant I + Σ inverses` into rows that begin with block `first`.
fn rows_of_sum(out: MatMut<'_, f64>, first: usize, constant: f64, inverses: &[Inverse], par: Par) {
    /// Blocks that are multiplied together.
    const TOGETHER: usize = 4;
    let blocks = out.nrows().div_ceil(BLOCK);
    if blocks > TOGETHER {
        // Rows are shared out by the number of blocks alone: nothing depends on the threads. Later rows are longer.
        let half = (blocks * 5 / 8).next_multiple_of(TOGETHER).min(blocks - 1);
        let (upper, lower) = out.split_at_row_mut(half * BLOCK);
        both(
            || rows_of_sum(upper, first, constant, inverses, par),
            || rows_of_sum(lower, first + half, constant, inverses, par),
            par,
        );
        return;
    }
    strip_of_sum(out, first, constant, inverses);
}

/// As [`rows_of_sum`], for a few rows.
fn strip_of_sum(mut out: MatMut<'_, f64>, first: usize, constant: f64, inverses: &[Inverse]) {
    let rows = out.nrows();
    let last = first + rows.div_ceil(BLOCK) - 1;
    // Of each inverse, the block column that was reached: row block i is X(i, k) for all i > k of the strip.
    let mut columns: Vec<Mat<f64>> = inverses.iter().map(|_| Mat::zeros(rows, BLOCK)).collect();
    let mut next = Mat::zeros(rows, BLOCK);
    for k in (0..=last).rev() {
        // Rows of the strip that begin after block k.
        let after = if k >= first { ((k + 1 - first) * BLOCK).min(rows) } else { 0 };
        for (inverse, column) in inverses.iter().zip(&mut columns) {
            if after < rows {
                let multiplier = &inverse.multipliers[k];
                let known = column.submatrix(after, 0, rows - after, multiplier.nrows());
                let target = next.as_mut().subrows_mut(after, rows - after);
                product_into(target, known, multiplier.as_ref(), Par::Seq);
            }
            std::mem::swap(column, &mut next);
            let width = if k >= first {
                let block = &inverse.diagonal[k];
                let size = block.nrows();
                column.as_mut().submatrix_mut((k - first) * BLOCK, 0, size, size).copy_from(block);
                size
            } else {
                BLOCK
            };
            let top = if k >= first { (k - first) * BLOCK } else { 0 };
            let mut sum = out.as_mut().submatrix_mut(top, k * BLOCK, rows - top, width);
            sum += column.submatrix(top, 0, rows - top, width);
        }
    }
    for i in 0..rows {
        out[(i, first * BLOCK + i)] += constant;
    }
}
