//! Truncated singular value decompositions of operators that are never formed.
//!
//! Large operators are decomposed by a block Krylov method that only applies them to thin blocks. Smaller ones, and those whose result does
//! not pass its check, are formed: a few triplets come from an iteration with the Gram matrix, others from a dense decomposition.

mod gram_lanczos;
mod krylov;
mod leading;
mod operator;
mod svd;
#[cfg(test)]
mod tests;
mod trace;
mod triplets;

pub use krylov::KrylovParams;
pub use operator::{Operator, Product};
pub use svd::{dense_memory, dense_work, last_components, last_work, memory, truncated_svd, work};
pub use trace::trace;
pub use triplets::TruncatedSvd;
