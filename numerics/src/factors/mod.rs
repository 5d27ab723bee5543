//! The up and down matrices of one layer: balance, strength, scale and start (method.md, "Decomposition").
//!
//! Nothing here depends on files or on the method that made an update.

pub mod combine;
mod components;
mod mirrored;
mod name;
mod pair;
mod shape;
mod spectrum;
mod start;

pub use components::Components;
pub(crate) use components::{ROUNDING, sign_of_largest};
pub use mirrored::mirrored;
pub use name::LayerName;
pub use pair::{Factors, Initialization};
pub use shape::{LayerShape, MOST_BLOCKS};
pub use start::{Start, Strength};
