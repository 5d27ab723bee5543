//! The operations that a method needs of the constraints of a site.

#[cfg(doc)]
use super::Coupling;
use super::Norm;
use faer::{ColRef, Mat, MatMut, MatRef, Par};

/// The constraints of a site as operations on thin blocks. `F` is the identity in [`Norm::Weights`].
pub trait SiteOperator {
    /// Numbers per activation, `d`.
    fn width(&self) -> usize;
    /// `(K − C) (C + ρ_p S + λI)⁻¹ F V` for a thin block `V (d × k)`.
    fn apply(&self, norm: Norm, block: MatRef<'_, f32>, par: Par) -> Mat<f32>;
    /// The transpose of [`Self::apply`].
    fn apply_transpose(&self, norm: Norm, block: MatRef<'_, f32>, par: Par) -> Mat<f32>;
    /// Converts right singular vectors `V` of `Δ F`, as columns, to the corresponding rows of `A`, as columns: `F⁻ᵀ V`, in place.
    fn leave_norm(&self, norm: Norm, block: MatMut<'_, f32>, par: Par);
    /// `aᵀ C a = E (aᵀ x)²` for every column `a` of a thin block.
    fn activation_energy(&self, block: MatRef<'_, f32>, par: Par) -> Vec<f64>;
    /// `tr(W C Wᵀ) = E|W x|²`, the mean square of the layer's output, for `W (m × d)`.
    fn output_energy(&self, weight: MatRef<'_, f32>, par: Par) -> f64;
    /// `μ`, a sign, and `Σ` times that sign, if products of `Σ` with a weight are expensive.
    fn mean_and_covariance(&self) -> Option<(ColRef<'_, f64>, f64, MatRef<'_, f32>)>;
}
