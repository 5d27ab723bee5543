//! Truncated singular value decompositions of operators that are never formed.
//!
//! Large operators are decomposed by a block Krylov method that only applies them to thin blocks. Small matrices, ranks that are a
//! large part of the matrix, and results of the Krylov method that do not pass its check are formed and decomposed densely.

mod krylov;
mod leading;
mod operator;
mod svd;
#[cfg(test)]
mod tests;
mod trace;

pub use krylov::KrylovParams;
pub use operator::{Operator, Product};
pub use svd::{TruncatedSvd, dense_memory, dense_work, last_components, memory, truncated_svd, work};
pub use trace::trace;
