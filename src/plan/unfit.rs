//! Reasons against an adapter.

use crate::storage::Problem;

/// The reason why a weight gets no adapter.
pub(super) enum Unfit {
    /// Weights of its kind cannot be adapted. It is skipped, unless the user named it.
    Kind(String),
    /// The weight is wrong.
    Wrong(Problem),
}
