//! Why a weight gets no adapter.

use crate::storage::Problem;

/// Why a weight gets no adapter.
pub(super) enum Unfit {
    /// Its kind is none that can be adapted: left out, unless the user names it.
    Kind(String),
    /// Something is wrong with it.
    Wrong(Problem),
}
