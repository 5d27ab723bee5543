//! The matrices of a site that are applied to thin blocks, in f32 or f64.

use super::Norm;
use crate::dense::{self, Real};
use crate::error::{Error, Result};
use faer::{Mat, MatMut, MatRef, Par};
use std::sync::atomic::{AtomicBool, Ordering};

/// A number that converts to and from f32 and f64.
pub(super) trait Number: Real {
    fn from_f64(value: f64) -> Self;
    fn from_f32(value: f32) -> Self;
    fn to_f32(self) -> f32;
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
}

/// The factored constraints of a site.
#[derive(Debug)]
pub(super) struct Operands<T> {
    /// `K − C`.
    change: Mat<T>,
    /// True if `change` is symmetric to the last bit.
    is_symmetric: bool,
    /// Lower `G` with `G Gᵀ = C + ρ_p S + λ I`.
    denominator: Mat<T>,
    /// Lower `F` with `F Fᵀ = C + λ I`, if it differs from `G`.
    metric: Option<Mat<T>>,
}

/// Converts a matrix, and refuses one that does not fit the format.
///
/// # Errors
/// [`Error::NonFinite`](crate::error::Error::NonFinite), naming `what`.
pub(super) fn convert<T: Number>(what: &'static str, matrix: MatRef<'_, f64>, par: Par) -> Result<Mat<T>> {
    convert_columns(what, matrix.nrows(), matrix.ncols(), |j| matrix.col(j).iter().copied(), par)
}

/// As [`convert`], from a function that gives the numbers of a column.
pub(super) fn convert_columns<T: Number, I: Iterator<Item = f64>>(
    what: &'static str,
    rows: usize,
    columns: usize,
    values: impl Fn(usize) -> I + Sync,
    par: Par,
) -> Result<Mat<T>> {
    let is_finite = AtomicBool::new(true);
    let write = |j: usize, column: &mut [T]| {
        let mut finite = true;
        for (converted, value) in column.iter_mut().zip(values(j)) {
            *converted = T::from_f64(value);
            finite &= converted.finite();
        }
        if !finite {
            is_finite.store(false, Ordering::Relaxed);
        }
    };
    let converted = dense::from_columns(rows, columns, write, par);
    if is_finite.into_inner() { Ok(converted) } else { Err(Error::NonFinite { what }) }
}

impl<T: Number> Operands<T> {
    /// Converts the factors from f64.
    ///
    /// # Errors
    /// [`Error::NonFinite`](crate::error::Error::NonFinite) for a number that does not fit `T`.
    pub(super) fn new(
        change: Mat<T>,
        denominator: Mat<f64>,
        metric: Option<Mat<f64>>,
        par: Par,
    ) -> Result<Self> {
        let denominator = convert("constraints of the site", denominator.as_ref(), par)?;
        let metric =
            metric.map(|metric| convert("metric of the activations", metric.as_ref(), par)).transpose()?;
        let is_symmetric = is_symmetric(&change);
        Ok(Self { change, is_symmetric, denominator, metric })
    }

    /// `K − C`, in the layout in which a product with it is faster, if there is a choice.
    fn change(&self) -> MatRef<'_, T> {
        if self.is_symmetric { self.change.transpose() } else { self.change.as_ref() }
    }

    /// See [`SiteOperator::apply`](super::SiteOperator::apply).
    pub(super) fn apply(&self, norm: Norm, block: MatRef<'_, f32>, par: Par) -> Mat<f32> {
        let denominator = self.denominator.as_ref();
        let mut x = widen(block);
        match (norm, &self.metric) {
            // G⁻¹ F = I
            (Norm::Activations, None) => {}
            (Norm::Activations, Some(metric)) => {
                x = dense::thin_product(metric.as_ref(), x.as_ref(), par);
                dense::solve_lower(denominator, x.as_mut(), par);
            }
            (Norm::Weights, _) => dense::solve_lower(denominator, x.as_mut(), par),
        }
        dense::solve_upper(denominator.transpose(), x.as_mut(), par);
        narrow(dense::thin_product(self.change(), x.as_ref(), par))
    }

    /// See [`SiteOperator::apply_transpose`](super::SiteOperator::apply_transpose).
    pub(super) fn apply_transpose(&self, norm: Norm, block: MatRef<'_, f32>, par: Par) -> Mat<f32> {
        let denominator = self.denominator.as_ref();
        let block: Mat<T> = widen(block);
        let mut x = dense::thin_product(self.change.transpose(), block.as_ref(), par);
        dense::solve_lower(denominator, x.as_mut(), par);
        match (norm, &self.metric) {
            (Norm::Activations, None) => narrow(x),
            (Norm::Activations, Some(metric)) => {
                dense::solve_upper(denominator.transpose(), x.as_mut(), par);
                narrow(dense::thin_product(metric.transpose(), x.as_ref(), par))
            }
            (Norm::Weights, _) => {
                dense::solve_upper(denominator.transpose(), x.as_mut(), par);
                narrow(x)
            }
        }
    }

    /// `F⁻ᵀ V`, in place.
    pub(super) fn leave_metric(&self, mut block: MatMut<'_, f32>, par: Par) {
        let metric = self.metric.as_ref().unwrap_or(&self.denominator);
        let mut x: Mat<T> = widen(block.as_ref());
        dense::solve_upper(metric.transpose(), x.as_mut(), par);
        block.copy_from(narrow(x));
    }
}

/// True if the matrix is its transpose, to the last bit.
fn is_symmetric<T: Number>(matrix: &Mat<T>) -> bool {
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

fn widen<T: Number>(block: MatRef<'_, f32>) -> Mat<T> {
    Mat::from_fn(block.nrows(), block.ncols(), |i, j| T::from_f32(block[(i, j)]))
}

fn narrow<T: Number>(block: Mat<T>) -> Mat<f32> {
    Mat::from_fn(block.nrows(), block.ncols(), |i, j| block[(i, j)].to_f32())
}
