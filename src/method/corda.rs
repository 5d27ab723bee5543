//! CorDA: Yang, Li, Zhou, Song, Wu, Nie & Ghanem, *CorDA: Context-Oriented Decomposition Adaptation of Large Language Models
//! for Task-Aware Parameter-Efficient Fine-tuning*, NeurIPS 2024, arXiv 2406.05223.
//!
//! With `C' = C + λ I`, `λ = ρ tr C / d`, and `U S Vᵀ = svd(W C')`: the adapter takes over `U_r S_r V_rᵀ C'⁻¹`, for `ipm`
//! (adapt to the activations) of the first `r` triplets, for `kpm` (leave what answers the activations alone) of the last,
//! and the base keeps the rest.
//!
//! Differs from PEFT's `corda`:
//! - `C` is the mean over all rows. PEFT divides each call's rows by the largest activation of that call, which weighs the
//!   calls against each other; with one call the products agree, since a factor of `C` cancels.
//! - That factor decides in PEFT how the product is shared between `A` and `B`; here they are balanced.
//! - PEFT has it for linear layers and Conv1D only; here also for convolutions, fused experts and embeddings, whose `C'` is diagonal.
//! - PEFT doubles `λ` until an inverse is accurate; here it grows tenfold until a Cholesky factorization succeeds.

use super::{Decomposition, Options, check_width};
use crate::constraint::{check_ridge, damped_second_moment};
use crate::dense;
use crate::error::Result;
use crate::factors::Components;
use crate::low_rank::{self, Operator, Product};
use crate::moments::{Counts, Moments};
use faer::linalg::triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place};
use faer::{Mat, MatMut, MatRef, Par};

/// The damped second moment of a site, and what its inverse is applied with.
#[derive(Debug)]
pub struct Covariance {
    matrix: Matrix,
    damping: f64,
}

/// `C'`.
#[derive(Debug)]
enum Matrix {
    /// With the lower `G` of `G Gᵀ = C'`.
    Dense { matrix: Mat<f32>, factor: Mat<f32> },
    /// Of an embedding.
    Diagonal(Vec<f32>),
}

impl Operator for Matrix {
    fn rows(&self) -> usize {
        match self {
            Self::Dense { matrix, .. } => matrix.nrows(),
            Self::Diagonal(diagonal) => diagonal.len(),
        }
    }
    fn columns(&self) -> usize {
        self.rows()
    }
    fn apply(&self, block: MatRef<'_, f32>, par: Par) -> Mat<f32> {
        match self {
            Self::Dense { matrix, .. } => dense::thin_product(matrix.as_ref(), block, par),
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

impl Matrix {
    /// `C'⁻¹ V`, in place.
    fn solve(&self, mut block: MatMut<'_, f32>, par: Par) {
        match self {
            Self::Dense { factor, .. } => {
                solve_lower_triangular_in_place(factor.as_ref(), block.as_mut(), par);
                solve_upper_triangular_in_place(factor.transpose(), block, par);
            }
            Self::Diagonal(diagonal) => {
                for column in block.col_iter_mut() {
                    column.iter_mut().zip(diagonal).for_each(|(value, entry)| *value /= entry);
                }
            }
        }
    }
}

/// Which triplets the adapter takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Instruction-previewed mode, `ipm`: the first.
    First,
    /// Knowledge-preserved mode, `kpm`: the last.
    Last,
}

impl Covariance {
    /// Factors the second moment of a site. `O(d³)` operations in f64.
    ///
    /// # Errors
    /// [`Error::Option`](crate::error::Error::Option) for a ridge outside its range;
    /// [`Error::NoRows`](crate::error::Error::NoRows);
    /// [`Error::NoVariation`](crate::error::Error::NoVariation) for activations that are all zero;
    /// [`Error::NonFinite`](crate::error::Error::NonFinite) where their squares are too large;
    /// [`Error::NotPositiveDefinite`](crate::error::Error::NotPositiveDefinite) when even the largest damping does not help.
    pub fn new(moments: &Moments, ridge: f64, par: Par) -> Result<Self> {
        let (matrix, factor, damping) = damped_second_moment(moments, ridge, par)?;
        Ok(Self { matrix: Matrix::Dense { matrix, factor }, damping })
    }

    /// That of an embedding: `diag(p) + (ρ / V) I`. The inverse of a diagonal needs no factorization that could fail.
    ///
    /// # Errors
    /// [`Error::Option`](crate::error::Error::Option) for a ridge outside its range.
    pub fn of_tokens(counts: &Counts, ridge: f64) -> Result<Self> {
        check_ridge(ridge)?;
        let damping = ridge / counts.width() as f64;
        let diagonal = counts.frequencies().iter().map(|share| (share + damping) as f32).collect();
        Ok(Self { matrix: Matrix::Diagonal(diagonal), damping: ridge })
    }

    /// The relative damping that was used.
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// Bytes that [`Self::new`] needs at its peak for a site of width `d`, and bytes that its result holds.
    pub fn memory(width: u64) -> (u64, u64) {
        (8 * 3 * width * width, 4 * 2 * width * width)
    }

    /// As [`Self::memory`], for an embedding of this many tokens.
    pub fn memory_of_tokens(tokens: u64) -> (u64, u64) {
        ((8 + 4) * tokens, 4 * tokens)
    }
}

/// Decomposes one weight, `W (m × d)`. `name` gives its random stream.
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) for a weight of another width; what the decomposition returns.
pub(super) fn decompose(
    covariance: &Covariance,
    weight: MatRef<'_, f32>,
    part: Part,
    name: &str,
    options: &Options,
    par: Par,
) -> Result<Decomposition> {
    check_width(weight, covariance.matrix.columns())?;
    let response = Product { left: &weight, right: &covariance.matrix };
    let side = weight.nrows().min(weight.ncols());
    let svd = match part {
        Part::First => low_rank::truncated_svd(&response, options.components(side), options.seed, name, par)?,
        Part::Last => low_rank::last_components(&response, options.components(side), par)?,
    };
    let a = match part {
        // C'⁻¹ vᵢ = Wᵀ uᵢ / σᵢ, without the inverse, which would amplify the rounding errors of vᵢ where C' is small.
        Part::First => {
            let rows = weight.apply_transpose(svd.u.as_ref(), par);
            Mat::from_fn(rows.nrows(), rows.ncols(), |i, j| {
                if svd.s[j] > 0.0 { (f64::from(rows[(i, j)]) / svd.s[j]) as f32 } else { 0.0 }
            })
        }
        Part::Last => {
            let mut a = svd.v;
            covariance.matrix.solve(a.as_mut(), par);
            a
        }
    };
    dense::check_finite("the rows of the down matrix", a.as_ref())?;
    let components =
        Components { u: svd.u, sigma: svd.s, a, activation_energy: Vec::new(), output_energy: 0.0 };
    Ok(Decomposition {
        components,
        energy: svd.energy,
        energy_exact: svd.energy_exact,
        residual: svd.residual,
    })
}
