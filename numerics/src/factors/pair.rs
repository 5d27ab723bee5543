//! A pair of factors.

#[cfg(doc)]
use super::Start;
use faer::Mat;

/// The factors of one layer. The adapter adds `s · B A` with one scale `s` for all layers.
#[derive(Clone, Debug)]
pub struct Factors {
    /// Down matrix `A`, `r × d`.
    pub a: Mat<f32>,
    /// Up matrix `B`, `m × r`.
    pub b: Mat<f32>,
}

/// Factors, and how much they change the layer.
#[derive(Clone, Debug)]
pub struct Initialization {
    /// The factors.
    pub factors: Factors,
    /// `η`; 0 for [`Start::Zero`].
    pub strength: f64,
    /// Root mean square of the change of the layer's output, relative to the output; 0 for starts that do not change it.
    pub shift: f64,
    /// Units of rank whose singular value is zero, apart from rounding. Their column of `B` is zero and their row of `A` is a
    /// direction orthonormal to the others, so that they can be trained.
    pub empty_units: usize,
}
