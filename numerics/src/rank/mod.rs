//! From singular values to ranks: pure functions of the spectra of layers.

mod allocate;
mod modules;

pub use allocate::{Layer, Limits, Policy, allocate, least_common_multiple};
pub use modules::allocate_by_module;
