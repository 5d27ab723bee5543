//! The properties of factors that a method promises, checked on their Gram matrices.

use crate::dense;
use crate::element::Element;
use crate::factors::Factors;
use crate::method::Form;
use faer::{Mat, MatRef, Par};

/// `A Aᵀ` and `BᵀB`. They are small, and all checks need only them.
pub(super) struct Grams {
    a: Mat<f64>,
    b: Mat<f64>,
}

impl Grams {
    pub(super) fn of(factors: &Factors) -> Self {
        let wide = |factor: MatRef<'_, f32>| {
            Mat::from_fn(factor.nrows(), factor.ncols(), |i, j| f64::from(factor[(i, j)]))
        };
        let product = |left: MatRef<'_, f64>, right: MatRef<'_, f64>| {
            let mut product = Mat::zeros(left.nrows(), right.ncols());
            dense::product_into(product.as_mut(), left, right, Par::Seq);
            product
        };
        let (a, b) = (wide(factors.a.as_ref()), wide(factors.b.as_ref()));
        Self { a: product(a.as_ref(), a.transpose()), b: product(b.transpose(), b.as_ref()) }
    }

    /// The Frobenius norm `|B A|`. Its square is `tr(BᵀB · A Aᵀ)`.
    pub(super) fn product_norm(&self) -> f64 {
        let rank = self.a.nrows();
        let places = (0..rank).flat_map(|i| (0..rank).map(move |j| (i, j)));
        places.map(|place| self.a[place] * self.b[place]).sum::<f64>().max(0.0).sqrt()
    }

    /// Checks the property that the factors must have.
    pub(super) fn check(&self, form: Form, element: Element) -> Result<(), String> {
        let rank = self.a.nrows();
        let tolerance = 1e-3 + rounding(element, rank);
        let identity = Mat::<f64>::identity(rank, rank);
        let (rule, found, norm) = match form {
            Form::Balanced => {
                // Unused units have a zero column in B; their rows of A are orthonormal.
                let (empty, used) = (0..rank).partition(|unit| self.b[(*unit, *unit)] == 0.0);
                let part = |gram: &Mat<f64>, units: &Vec<usize>| {
                    Mat::from_fn(units.len(), units.len(), |i, j| gram[(units[i], units[j])])
                };
                let empty_rows = part(&self.a, &empty);
                let off = (empty_rows - Mat::<f64>::identity(empty.len(), empty.len())).norm_l2();
                if off > tolerance * empty.len() as f64 {
                    return Err(format!(
                        "rows of A whose columns of B are zero must be orthonormal, but deviate by {off:.1e}"
                    ));
                }
                let (a, b) = (part(&self.a, &used), part(&self.b, &used));
                ("the factors must be balanced (BᵀB = A Aᵀ)", (&a - &b).norm_l2(), a.norm_l2())
            }
            Form::Orthonormal => {
                let off = (&self.a - &identity).norm_l2().max((&self.b - &identity).norm_l2());
                ("the columns of B and the rows of A must be orthonormal", off, identity.norm_l2())
            }
            Form::OrthonormalUpZeroDown | Form::ZeroDown if self.a.norm_l2() != 0.0 => {
                return Err(format!("A must be zero, but |A Aᵀ| = {:e}", self.a.norm_l2()));
            }
            Form::OrthonormalUp | Form::OrthonormalUpZeroDown => {
                ("the columns of B must be orthonormal", (&self.b - &identity).norm_l2(), identity.norm_l2())
            }
            Form::OrthonormalDown | Form::ZeroUp if self.b.norm_l2() != 0.0 => {
                return Err(format!("B must be zero, but |BᵀB| = {:e}", self.b.norm_l2()));
            }
            Form::OrthonormalDown => {
                ("the rows of A must be orthonormal", (&self.a - &identity).norm_l2(), identity.norm_l2())
            }
            Form::ZeroUp | Form::ZeroDown | Form::Mirrored => return Ok(()),
            Form::ZeroProduct => {
                // |B A| ≤ |B| |A|, and |B|² = tr BᵀB.
                let trace = |gram: &Mat<f64>| gram.diagonal().column_vector().iter().sum::<f64>();
                ("B A must be zero", self.product_norm(), (trace(&self.a) * trace(&self.b)).sqrt())
            }
        };
        if found <= tolerance * norm {
            return Ok(());
        }
        Err(format!(
            "{rule}, but the relative deviation is {:.1e}; the tolerance is {tolerance:.0e}",
            found / norm
        ))
    }
}

/// Bounds the deviation that rounding to the format of the file causes: with the unit roundoff `u`, each Gram matrix changes by at
/// most `2 u |A|²`, and `|A|² ≤ √r |A Aᵀ|`.
fn rounding(element: Element, rank: usize) -> f64 {
    let unit = match element {
        Element::F64 => f64::EPSILON / 2.0,
        Element::F32 => 2f64.powi(-24),
        Element::F16 => 2f64.powi(-11),
        Element::Bf16 => 2f64.powi(-8),
    };
    4.0 * unit * (rank as f64).sqrt()
}
