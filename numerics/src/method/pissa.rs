//! PiSSA: Meng, Wang & Zhang, *PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models*,
//! NeurIPS 2024, arXiv 2404.02948. The adapter takes over the principal part of the weight, and the base keeps the rest.
//!
//! With `U S Vᵀ = svd(W)`: `B = U_r √(S_r / s)`, `A = √(S_r / s) V_rᵀ`, base `W − s B A`.
//!
//! Differs from PEFT's `pissa` in the signs of the singular vectors, which no product feels, and in that large weights are
//! decomposed by a Krylov method with a residual check in place of a full decomposition. PEFT has it for linear layers and Conv1D
//! only; here also for convolutions, embeddings and fused experts.

use super::{Decomposition, Options};
use crate::error::Result;
use crate::factors::Components;
use crate::low_rank::{self, TruncatedSvd};
use faer::{MatRef, Par};

/// Decomposes one weight, `W (m × d)`. `name` gives its random stream.
///
/// # Errors
/// What the decomposition returns.
pub(super) fn decompose(
    weight: MatRef<'_, f32>,
    name: &str,
    options: &Options,
    par: Par,
) -> Result<Decomposition> {
    let components = options.components(weight.nrows().min(weight.ncols()));
    let svd = low_rank::truncated_svd(&weight, components, options.seed, name, par)?;
    Ok(of_weight(svd))
}

/// The components of a weight's own decomposition. No data were seen, so nothing is known of what a layer feels.
pub(super) fn of_weight(svd: TruncatedSvd) -> Decomposition {
    let TruncatedSvd { u, s, v, energy, energy_exact, residual } = svd;
    let components = Components { u, sigma: s, a: v, activation_energy: Vec::new(), output_energy: 0.0 };
    Decomposition { components, energy, energy_exact, residual }
}
