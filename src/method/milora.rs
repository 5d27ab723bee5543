//! MiLoRA: Wang, Xiong, Wang, Zhang, Hu & Liu, *MiLoRA: Harnessing Minor Singular Components for Parameter-Efficient LLM
//! Finetuning*, NAACL 2025, arXiv 2406.09044. The adapter takes over the minor part of the weight, and the base keeps the
//! principal part.
//!
//! As PiSSA, with the last `r` singular triplets of `svd(W)`. The whole decomposition is computed, since nothing cheaper
//! finds the smallest singular values. PEFT does not have it.

use super::{Decomposition, Options, pissa};
use crate::error::Result;
use crate::low_rank;
use faer::{MatRef, Par};

/// Decomposes one weight, `W (m × d)`.
///
/// # Errors
/// What the decomposition returns.
pub(super) fn decompose(weight: MatRef<'_, f32>, options: &Options, par: Par) -> Result<Decomposition> {
    let rank = options.components(weight.nrows().min(weight.ncols()));
    Ok(pissa::of_weight(low_rank::last_components(&weight, rank, par)?))
}
