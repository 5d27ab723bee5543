//! Matrices that are known by their products with thin blocks.

use crate::dense;
use faer::{Mat, MatRef, Par};

/// An `m × n` matrix that is known by its products with thin blocks.
pub trait Operator {
    /// `m`.
    fn rows(&self) -> usize;
    /// `n`.
    fn columns(&self) -> usize;
    /// `M V (m × k)` for `V (n × k)`.
    fn apply(&self, block: MatRef<'_, f32>, par: Par) -> Mat<f32>;
    /// `Mᵀ U (n × k)` for `U (m × k)`.
    fn apply_transpose(&self, block: MatRef<'_, f32>, par: Par) -> Mat<f32>;
    /// `M`, or its transpose if that has fewer columns.
    fn form_tall(&self, par: Par) -> Mat<f32> {
        let (m, n) = (self.rows(), self.columns());
        if n <= m {
            self.apply(Mat::identity(n, n).as_ref(), par)
        } else {
            self.apply_transpose(Mat::identity(m, m).as_ref(), par)
        }
    }
}

impl Operator for MatRef<'_, f32> {
    fn rows(&self) -> usize {
        self.nrows()
    }
    fn columns(&self) -> usize {
        self.ncols()
    }
    fn apply(&self, block: MatRef<'_, f32>, par: Par) -> Mat<f32> {
        dense::thin_product(*self, block, par)
    }
    fn apply_transpose(&self, block: MatRef<'_, f32>, par: Par) -> Mat<f32> {
        dense::thin_product(self.transpose(), block, par)
    }
    fn form_tall(&self, _par: Par) -> Mat<f32> {
        if self.ncols() <= self.nrows() { self.to_owned() } else { self.transpose().to_owned() }
    }
}

/// The product `L R` of two operators, applied one after the other and never formed.
pub struct Product<'a> {
    /// `L`.
    pub left: &'a dyn Operator,
    /// `R`, with as many rows as `L` has columns.
    pub right: &'a dyn Operator,
}

impl std::fmt::Debug for Product<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Product")
            .field("rows", &self.rows())
            .field("columns", &self.columns())
            .finish_non_exhaustive()
    }
}

impl Operator for Product<'_> {
    fn rows(&self) -> usize {
        self.left.rows()
    }
    fn columns(&self) -> usize {
        self.right.columns()
    }
    fn apply(&self, block: MatRef<'_, f32>, par: Par) -> Mat<f32> {
        self.left.apply(self.right.apply(block, par).as_ref(), par)
    }
    fn apply_transpose(&self, block: MatRef<'_, f32>, par: Par) -> Mat<f32> {
        self.right.apply_transpose(self.left.apply_transpose(block, par).as_ref(), par)
    }
}
