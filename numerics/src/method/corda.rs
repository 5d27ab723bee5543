//! CorDA: Yang, Li, Zhou, Song, Wu, Nie & Ghanem, *CorDA: Context-Oriented Decomposition Adaptation of Large Language Models
//! for Task-Aware Parameter-Efficient Fine-tuning*, NeurIPS 2024, arXiv 2406.05223.
//!
//! With `C' = C + λ I`, `λ = ρ tr C / d`, and `U S Vᵀ = svd(W C')`: the adapter takes over `U_r S_r V_rᵀ C'⁻¹`, and the base keeps the
//! rest. `ipm` takes the first `r` triplets, to adapt the response to the activations; `kpm` takes the last, to keep that response. The
//! last triplets are computed in f64 throughout, `W C'` and `C'⁻¹` included.
//!
//! Differs from PEFT's `corda`:
//! - `C` is the mean over all rows. PEFT divides each call's rows by the largest activation of that call, which changes the weights of
//!   the calls; with one call the products agree, since a factor of `C` cancels.
//! - In PEFT that factor decides how the product is divided between `A` and `B`; here they are balanced.
//! - PEFT supports linear layers and Conv1D only; this crate also supports convolutions, fused experts and embeddings, whose `C'` is
//!   diagonal.
//! - PEFT doubles `λ` until an inverse is accurate; this crate multiplies it by ten until a Cholesky factorization succeeds.

use super::definition::{
    Basis, Bytes, Definition, Form, LayerSize, RankRule, SiteSize, Uses, Weight, check_width,
};
use super::{Decomposition, Draft, Options};
use crate::constraint::{SiteEvidence, check_ridge, damped_memory, damped_second_moment};
use crate::dense::{self, Real, Square};
use crate::error::{Error, Result};
use crate::factors::{Components, LayerShape, ROUNDING, Start};
use crate::low_rank::{self, Operator, Product, TruncatedSvd};
use crate::moments::{Counts, Moments, RowsOrTokens};
use faer::{Mat, MatRef, Par};

/// The method, with the triplets that the adapter takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Corda(pub Part);

impl Definition for Corda {
    fn description(&self) -> &'static str {
        match self.0 {
            Part::First => {
                "The part of the weight that responds most to the activations; the base keeps the rest"
            }
            Part::Last => {
                "The part of the weight that responds least to the activations; the base keeps the rest"
            }
        }
    }

    fn rank_rule(&self) -> RankRule {
        match self.0 {
            Part::First => RankRule::Spectrum,
            Part::Last => RankRule::Fixed,
        }
    }

    fn form(&self, _: Start, _: &LayerShape) -> Form {
        Form::Balanced
    }

    fn uses(&self) -> Uses {
        Uses::Target
    }

    fn has_ridge(&self) -> bool {
        true
    }

    fn basis(
        &self,
        evidence: Option<SiteEvidence<'_>>,
        _: &str,
        options: &Options,
        par: Par,
    ) -> Result<Box<dyn Basis>> {
        let covariance = match evidence.ok_or(Error::NoRows)? {
            RowsOrTokens::Rows(rows) => Covariance::new(rows.target, options.ridge, self.0, par)?,
            RowsOrTokens::Tokens(tokens) => Covariance::of_tokens(tokens.target, options.ridge, self.0)?,
        };
        Ok(Box::new(covariance))
    }

    fn basis_memory(&self, SiteSize { width, classes, .. }: SiteSize, options: &Options) -> Bytes {
        let bytes = self.0.bytes();
        match classes {
            None => Bytes {
                peak: damped_memory(width, options.ridge),
                held: width.saturating_mul(width).saturating_mul(bytes),
            },
            Some(_) => Bytes { peak: width.saturating_mul(8 + bytes), held: width.saturating_mul(bytes) },
        }
    }

    fn basis_cubes(&self, site: SiteSize, _: &Options) -> f64 {
        // The second moment of tokens is diagonal.
        if site.classes.is_some() { 0.0 } else { 1.0 }
    }

    fn layer_work(&self, layer: LayerSize) -> f64 {
        match self.0 {
            Part::First => layer.truncated(2.0),
            Part::Last => low_rank::last_work(layer.outputs, layer.inputs, layer.components),
        }
    }

    fn layer_memory(&self, outputs: u64, inputs: u64, components: u64) -> u64 {
        match self.0 {
            Part::First => low_rank::memory(outputs, inputs, components),
            Part::Last => low_rank::dense_memory(outputs, inputs),
        }
    }
}

/// The damped second moment of a site.
#[derive(Debug)]
struct Covariance {
    /// `C'`, divided by `scale`.
    matrix: Precision,
    scale: f64,
    damping: f64,
}

/// `C'`, in f32 or f64.
#[derive(Debug)]
enum Precision {
    /// For [`Part::First`].
    Single(Matrix<f32>),
    /// For [`Part::Last`].
    Double(Matrix<f64>),
}

/// `C'`.
#[derive(Debug)]
enum Matrix<T: Real> {
    /// From rows.
    Dense(Square<T>),
    /// Of an embedding.
    Diagonal(Vec<T>),
}

impl<T: Real> Matrix<T> {
    fn width(&self) -> usize {
        match self {
            Self::Dense(matrix) => matrix.size(),
            Self::Diagonal(diagonal) => diagonal.len(),
        }
    }
}

impl Matrix<f64> {
    /// `W C'`.
    fn response(&self, mut weight: Mat<f64>, par: Par) -> Mat<f64> {
        match self {
            Self::Dense(matrix) => dense::product(weight.as_ref(), matrix.as_ref(), par),
            Self::Diagonal(diagonal) => {
                for (column, entry) in weight.col_iter_mut().zip(diagonal) {
                    column.iter_mut().for_each(|value| *value *= entry);
                }
                weight
            }
        }
    }
}

impl Operator for Matrix<f32> {
    fn rows(&self) -> usize {
        self.width()
    }
    fn columns(&self) -> usize {
        self.width()
    }
    fn apply(&self, block: MatRef<'_, f32>, par: Par) -> Mat<f32> {
        match self {
            // It is symmetric, and faster in this layout.
            Self::Dense(matrix) => dense::thin_product(matrix.as_ref().transpose(), block, par),
            Self::Diagonal(diagonal) => {
                Mat::from_fn(block.nrows(), block.ncols(), |i, j| diagonal[i] * block[(i, j)])
            }
        }
    }
    fn apply_transpose(&self, block: MatRef<'_, f32>, par: Par) -> Mat<f32> {
        // It is symmetric.
        self.apply(block, par)
    }
}

/// Which triplets the adapter takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Instruction-previewed mode, `ipm`: the first.
    First,
    /// Knowledge-preserved mode, `kpm`: the last.
    Last,
}

impl Part {
    /// Bytes of a number of `C'`.
    fn bytes(self) -> u64 {
        match self {
            Self::First => 4,
            Self::Last => 8,
        }
    }
}

impl Covariance {
    /// Factors the second moment of a site, for one part of the triplets. `O(d³)` operations in f64.
    ///
    /// # Errors
    /// [`Error::Option`](crate::error::Error::Option) for a ridge outside its range;
    /// [`Error::NoRows`](crate::error::Error::NoRows);
    /// [`Error::NoVariation`](crate::error::Error::NoVariation) for activations that are all zero;
    /// [`Error::NonFinite`](crate::error::Error::NonFinite) where their squares are too large;
    /// [`Error::NotPositiveDefinite`](crate::error::Error::NotPositiveDefinite) if even the largest damping does not help.
    fn new(moments: &Moments, ridge: f64, part: Part, par: Par) -> Result<Self> {
        let (second, damping) = damped_second_moment(moments, ridge, par)?;
        let (matrix, scale) = match part {
            Part::First => {
                // The largest entry is on the diagonal.
                let scale = dense::power_of_two(second.diagonal().fold(0.0, f64::max));
                let matrix = second.whole(|_, _, entry| (entry / scale) as f32, par);
                (Precision::Single(Matrix::Dense(matrix)), scale)
            }
            Part::Last => (Precision::Double(Matrix::Dense(second.whole(|_, _, entry| entry, par))), 1.0),
        };
        Ok(Self { matrix, scale, damping })
    }

    /// The second moment of an embedding: `diag(p) + (ρ / V) I`.
    ///
    /// # Errors
    /// [`Error::Option`](crate::error::Error::Option) for a ridge outside its range.
    fn of_tokens(counts: &Counts, ridge: f64, part: Part) -> Result<Self> {
        check_ridge(ridge)?;
        let damping = ridge / counts.width() as f64;
        let diagonal = counts.frequencies().into_iter().map(|share| share + damping);
        let matrix = match part {
            Part::First => Precision::Single(Matrix::Diagonal(diagonal.map(|entry| entry as f32).collect())),
            Part::Last => Precision::Double(Matrix::Diagonal(diagonal.collect())),
        };
        Ok(Self { matrix, scale: 1.0, damping: ridge })
    }
}

impl Basis for Covariance {
    fn decompose(&self, weight: Weight<'_>, options: &Options, par: Par) -> Result<Draft> {
        let (side, name) = (weight.full_rank(), weight.name);
        let weight = weight.numbers;
        let components = options.components(side);
        // C'⁻¹ vᵢ = Wᵀ uᵢ / σᵢ, without the inverse, which would amplify rounding errors of vᵢ in directions where C' is small.
        let svd = match &self.matrix {
            Precision::Single(matrix) => {
                check_width(weight, matrix.width())?;
                let response = Product { left: &weight, right: matrix };
                let svd = low_rank::truncated_svd(&response, components, options.seed, name, par)?;
                let rows = weight.apply_transpose(svd.u.as_ref(), par);
                let scale = self.scale;
                let s: Vec<f64> = svd.s.iter().map(|s| scale * s).collect();
                let least = ROUNDING * s.first().copied().unwrap_or(0.0);
                let v = divided(dense::to_f64(rows.as_ref()), &s, least);
                TruncatedSvd { s, v, energy: scale.powi(2) * svd.energy, ..svd }
            }
            Precision::Double(matrix) => {
                check_width(weight, matrix.width())?;
                let weight = dense::to_f64(weight);
                let response = matrix.response(weight.clone(), par);
                let TruncatedSvd { u, s, energy, energy_exact, residual, .. } =
                    low_rank::last_components(response.as_ref(), components, par)?;
                let rows = dense::product(weight.transpose(), u.as_ref(), par);
                let v = divided(rows, &s, f64::EPSILON * side as f64 * energy.sqrt());
                TruncatedSvd { u: dense::to_f32(u.as_ref()), s, v, energy, energy_exact, residual }
            }
        };
        let TruncatedSvd { u, s: sigma, v: a, energy, energy_exact, residual } = svd;
        dense::check_finite("the rows of the down matrix", a.as_ref())?;
        let components = Components { u, sigma, a, activation_energy: Vec::new(), output_energy: 0.0 };
        Ok(Draft::Update(Decomposition { components, energy, energy_exact, residual }))
    }

    fn dampings(&self) -> Vec<(&'static str, f64)> {
        vec![("second moment of the activations", self.damping)]
    }
}

/// Columns divided by these numbers; a column is zero if its number is at most `least`, a rounding error.
fn divided(columns: Mat<f64>, by: &[f64], least: f64) -> Mat<f32> {
    Mat::from_fn(columns.nrows(), columns.ncols(), |i, j| {
        if by[j] > least { (columns[(i, j)] / by[j]) as f32 } else { 0.0 }
    })
}

#[cfg(test)]
mod tests;
