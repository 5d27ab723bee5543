//! The constraints between pre-training and fine-tuning activations.
//!
//! All constraints are quadratic in the update `Δ`, so together they have one closed form (method.md, "Constraints"):
//!
//! ```text
//! Δ = W (K − C) (C + ρ_p S + λ I)⁻¹
//! ```
//!
//! Everything to the right of `W` depends on activations alone. [`Constraint`] holds it as factors that can be
//! applied to a thin block, computed once per site and shared by all weights of the site: in f32 from sums in f64, or all in f64 if the
//! damping is so small that rounding errors of f32 would matter beside it. Neither `Δ` nor the inverse is ever formed.

mod build;
mod cholesky;
mod classes;
mod damped;
mod dampings;
mod energy;
mod evidence;
mod ladder;
mod operands;
mod operator;
mod site;
mod statistics;
mod terms;
#[cfg(test)]
mod tests;
mod tokens;
mod transport;

pub use classes::token_classes;
pub(crate) use damped::{damped_memory, damped_second_moment};
pub use dampings::Dampings;
pub(crate) use energy::energy_of_mean;
pub use evidence::{Evidence, SiteEvidence, TokenEvidence};
pub use ladder::LARGEST_RIDGE;
pub(crate) use ladder::check_ridge;
pub use operator::SiteOperator;
pub use site::Constraint;
pub(crate) use statistics::RESOLUTION;
pub use statistics::rows_wanted;
pub use terms::{ChannelScale, Coupling, Norm, Shrinkage, Terms};
pub use tokens::TokenConstraint;
