//! The matrices of a site that are applied to thin blocks, in f32 or f64.

use super::Norm;
use super::cholesky::cholesky;
use crate::dense::{self, Panel, Real, Square};
use crate::error::{Error, Result};
use crate::triangle::Triangle;
use faer::{Mat, MatMut, MatRef, Par};
use std::sync::atomic::{AtomicBool, Ordering};

/// A number that converts to and from f32 and f64.
pub(super) trait Number: Real {
    fn from_f64(value: f64) -> Self;
    fn from_f32(value: f32) -> Self;
    fn to_f32(self) -> f32;
    /// Lower Cholesky factor; `None` if the matrix is not positive definite to working precision, or the factor does not fit.
    fn cholesky(matrix: Triangle, par: Par) -> Option<Square<Self>>;
}

impl Number for f32 {
    fn from_f64(value: f64) -> Self {
        value as f32
    }
    fn from_f32(value: f32) -> Self {
        value
    }
    fn to_f32(self) -> f32 {
        self
    }
    fn cholesky(matrix: Triangle, par: Par) -> Option<Square<Self>> {
        cholesky(matrix, par)
    }
}

impl Number for f64 {
    fn from_f64(value: f64) -> Self {
        value
    }
    fn from_f32(value: f32) -> Self {
        value.into()
    }
    fn to_f32(self) -> f32 {
        self as f32
    }
    fn cholesky(matrix: Triangle, par: Par) -> Option<Square<Self>> {
        let mut factor = matrix.whole(|_, _, entry| entry, par);
        dense::cholesky_in_place(factor.as_mut(), par)?;
        Some(factor)
    }
}

/// The factored constraints of a site.
#[derive(Debug)]
pub(super) struct Operands<T: Number> {
    /// `K − C`.
    pub(super) change: Square<T>,
    /// True if `change` is symmetric to the last bit.
    pub(super) is_symmetric: bool,
    /// Lower `G` with `G Gᵀ = C + ρ_p S + λ I`.
    pub(super) denominator: Square<T>,
    /// Lower `F` with `F Fᵀ = C + λ I`, if it differs from `G`.
    pub(super) metric: Option<Square<T>>,
}

/// Refuses numbers up to a size that does not fit the format.
///
/// # Errors
/// [`Error::NonFinite`], naming `what`.
pub(super) fn check_fits<T: Number>(what: &'static str, largest: f64) -> Result<()> {
    if T::from_f64(largest).finite() { Ok(()) } else { Err(Error::NonFinite { what }) }
}

/// Converts a function of row, column and entry of a matrix, and refuses one that does not fit the format.
///
/// # Errors
/// [`Error::NonFinite`], naming `what`.
pub(super) fn convert<T: Number>(
    what: &'static str,
    matrix: MatRef<'_, f64>,
    entry: impl Fn(usize, usize, f64) -> f64 + Sync,
    par: Par,
) -> Result<Square<T>> {
    let is_finite = AtomicBool::new(true);
    let write = |j: usize, column: &mut [T]| {
        let mut finite = true;
        for (i, (converted, value)) in column.iter_mut().zip(matrix.col(j).iter()).enumerate() {
            *converted = T::from_f64(entry(i, j, *value));
            finite &= converted.finite();
        }
        if !finite {
            is_finite.store(false, Ordering::Relaxed);
        }
    };
    let converted = dense::from_columns(matrix.nrows(), write, par);
    if is_finite.into_inner() { Ok(converted) } else { Err(Error::NonFinite { what }) }
}

impl<T: Number> Operands<T> {
    /// `K − C`, in the layout in which a product with it is faster, if there is a choice.
    pub(super) fn change(&self) -> MatRef<'_, T> {
        let change = self.change.as_ref();
        if self.is_symmetric { change.transpose() } else { change }
    }

    /// See [`SiteOperator::apply`](super::SiteOperator::apply).
    pub(super) fn apply(&self, norm: Norm, block: MatRef<'_, f32>, par: Par) -> Mat<f32> {
        let denominator = self.denominator.as_ref();
        by_panels(block, |x| {
            let x = match (norm, &self.metric) {
                // G⁻¹ F = I
                (Norm::Activations, None) => x,
                (Norm::Activations, Some(metric)) => {
                    x.product(metric.as_ref(), par).solve_lower(denominator, par)
                }
                (Norm::Weights, _) => x.solve_lower(denominator, par),
            };
            x.solve_lower_transposed(denominator, par).product(self.change(), par)
        })
    }

    /// See [`SiteOperator::apply_transpose`](super::SiteOperator::apply_transpose).
    pub(super) fn apply_transpose(&self, norm: Norm, block: MatRef<'_, f32>, par: Par) -> Mat<f32> {
        let denominator = self.denominator.as_ref();
        by_panels(block, |x| {
            let x = x.product(self.change.as_ref().transpose(), par).solve_lower(denominator, par);
            match (norm, &self.metric) {
                (Norm::Activations, None) => x,
                (Norm::Activations, Some(metric)) => {
                    x.solve_lower_transposed(denominator, par).product(metric.as_ref().transpose(), par)
                }
                (Norm::Weights, _) => x.solve_lower_transposed(denominator, par),
            }
        })
    }

    /// `F⁻ᵀ V`, in place.
    pub(super) fn leave_metric(&self, mut block: MatMut<'_, f32>, par: Par) {
        let metric = self.metric.as_ref().unwrap_or(&self.denominator);
        let solve = |x: Panel<T>| x.solve_lower_transposed(metric.as_ref(), par);
        let solved = by_panels(block.as_ref(), solve);
        block.copy_from(solved);
    }
}

/// An operation on the columns of a block, with numbers of the type of the operands.
fn by_panels<T: Number>(block: MatRef<'_, f32>, operation: impl Fn(Panel<T>) -> Panel<T>) -> Mat<f32> {
    dense::by_panels(block, block.nrows(), (T::from_f32, T::to_f32), operation)
}

/// True if the matrix is its transpose, to the last bit.
pub(super) fn is_symmetric<T: Number>(matrix: MatRef<'_, T>) -> bool {
    /// Squares that fit in the first-level cache.
    const SIDE: usize = 32;
    let size = matrix.nrows();
    let blocks =
        (0..size).step_by(SIDE).flat_map(|column| (0..=column).step_by(SIDE).map(move |row| (row, column)));
    blocks.into_iter().all(|(row, column)| {
        let (rows, columns) = (row..size.min(row + SIDE), column..size.min(column + SIDE));
        columns.into_iter().all(|j| rows.clone().all(|i| matrix[(i, j)] == matrix[(j, i)]))
    })
}
