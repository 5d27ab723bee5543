//! The statistics of a site: the [`Moments`] of rows of numbers, or the [`Counts`] of the tokens that an embedding met.
//!
//! All of them add up, so the statistics of parts merge into the statistics of the whole. Nothing here depends on weights or files.

#[cfg(test)]
mod accuracy;
mod counts;
mod pairs;
mod rows_or_tokens;
mod sums;

pub use counts::Counts;
pub use pairs::{PairedMoments, Sides, join_pairs};
pub use rows_or_tokens::RowsOrTokens;
pub use sums::Moments;
