//! OLoRA: Büyükakyüz, *OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models*, 2024, arXiv 2406.01775.
//!
//! With `Q R = W`: `B` is the first `r` columns of `Q`, `A` the first `r` rows of `R`, and the base becomes `W − s B A`: as
//! in PEFT's `olora`, nothing is divided by `s`.
//!
//! Differs from PEFT in the signs that belong to the choice of `Q`, which no product feels. Only the first `r` columns of
//! `W` are decomposed: they alone decide `B`, and `A = Bᵀ W`. PEFT has it for linear layers only; here also for every other kind.

use super::{Nested, Options};
use crate::dense;
use crate::error::Result;
use crate::factors::Factors;
use faer::{MatRef, Par};

/// Decomposes one weight, `W (m × d)`.
///
/// # Errors
/// [`Error::NonFinite`](crate::error::Error::NonFinite).
pub(super) fn decompose(weight: MatRef<'_, f32>, options: &Options, par: Par) -> Result<Nested> {
    let rank = options.components(weight.nrows().min(weight.ncols()));
    let (b, _) = dense::thin_qr("the weight", dense::to_f64(weight.subcols(0, rank)), par)?;
    let b = dense::to_f32(b.as_ref());
    let a = dense::product(b.transpose(), weight, par);
    // B is orthonormal, so the rows of A hold the energy of the product.
    let spectrum = (0..rank).map(|row| f64::from(a.row(row).norm_l2())).collect();
    let energy = f64::from(weight.norm_l2()).powi(2);
    Ok(Nested { factors: Factors { a, b }, spectrum, energy })
}
