//! The statistics of a site that the constraints are built from.

#[cfg(doc)]
use super::Coupling;
use crate::moments::{Counts, Moments, RowsOrTokens};
use faer::MatRef;

/// The statistics of a site.
pub type SiteEvidence<'a> = RowsOrTokens<Evidence<'a>, TokenEvidence<'a>>;

/// The statistics of a site whose activations are rows of numbers.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// Fine-tuning activations.
    pub target: &'a Moments,
    /// Pre-training activations. Without them the source is isotropic about the target mean.
    pub source: Option<&'a Moments>,
    /// Measured change `E[(z − x) xᵀ] = K − C`, `d × d`: required by [`Coupling::Paired`].
    pub change: Option<MatRef<'a, f64>>,
}

/// The statistics of an embedding: how often each token occurred.
#[derive(Clone, Copy, Debug)]
pub struct TokenEvidence<'a> {
    /// Fine-tuning tokens.
    pub target: &'a Counts,
    /// Pre-training tokens. Without them the source is isotropic about the target mean.
    pub source: Option<&'a Counts>,
}

impl SiteEvidence<'_> {
    /// Numbers per row; of an embedding, the number of tokens.
    pub fn width(&self) -> usize {
        match self {
            Self::Rows(rows) => rows.target.width(),
            Self::Tokens(tokens) => tokens.target.width(),
        }
    }
}
