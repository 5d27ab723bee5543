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
//! - PEFT doubles `λ` until an inverse is accurate; here it grows tenfold until a Cholesky factorization succeeds.

use super::{Decomposition, Options, check_width};
use crate::constraint::damped_second_moment;
use crate::dense;
use crate::error::Result;
use crate::factors::Components;
use crate::low_rank::{self, Product};
use crate::moments::Moments;
use faer::linalg::triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place};
use faer::{Mat, MatRef, Par};

/// The damped second moment of a site, and its factor.
#[derive(Debug)]
pub struct Covariance {
    /// `C'`.
    matrix: Mat<f32>,
    /// Lower `G` with `G Gᵀ = C'`.
    factor: Mat<f32>,
    damping: f64,
}

/// Which triplets the adapter takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Instruction-previewed mode, `ipm`: the first.
    First,
    /// Knowledge-preserved mode, `kpm`: the last.
    Last,
}

impl Covariance {
    /// Factors the second moment of a site. `O(d³)` operations in f64.
    ///
    /// # Errors
    /// As [`Constraint::new`](crate::constraint::Constraint::new).
    pub fn new(moments: &Moments, ridge: f64, par: Par) -> Result<Self> {
        let (matrix, factor, damping) = damped_second_moment(moments, ridge, par)?;
        Ok(Self { matrix, factor, damping })
    }

    /// The relative damping that was used.
    pub fn damping(&self) -> f64 {
        self.damping
    }

    /// Bytes that [`Self::new`] needs at its peak for a site of width `d`, and bytes that its result holds.
    pub fn memory(width: u64) -> (u64, u64) {
        (8 * 3 * width * width, 4 * 2 * width * width)
    }
}

/// Decomposes one weight, `W (m × d)`. `name` gives its random stream.
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) for a weight of another width; what the decomposition returns.
pub fn decompose(
    covariance: &Covariance,
    weight: MatRef<'_, f32>,
    part: Part,
    name: &str,
    options: &Options,
    par: Par,
) -> Result<Decomposition> {
    let matrix = covariance.matrix.as_ref();
    check_width(weight, matrix.ncols())?;
    let response = Product { left: &weight, right: &matrix };
    let side = weight.nrows().min(weight.ncols());
    let svd = match part {
        Part::First => low_rank::truncated_svd(&response, options.components(side), options.seed, name, par)?,
        Part::Last => low_rank::last_components(&response, options.fixed_rank(side), par)?,
    };
    let mut a = svd.v;
    let factor = covariance.factor.as_ref();
    solve_lower_triangular_in_place(factor, a.as_mut(), par);
    solve_upper_triangular_in_place(factor.transpose(), a.as_mut(), par);
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
