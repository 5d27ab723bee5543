//! The front door: from rows of activations and weights in memory to the factors of a LoRA adapter.
//!
//! ```text
//! Builder ─► Initializer ─┐
//!                         ├─► Site ─► Layer ─► factors
//! rows ─► Statistics ─────┘
//! ```
//!
//! - An [`Initializer`] holds options that were checked once, by its [`Builder`].
//! - [`Statistics`] summarize the rows that a site reads: a site is a place in the model whose input several weights share.
//!   [`PairedStatistics`] do so for pairs of rows, and [`Counts`](crate::moments::Counts) for the tokens of an embedding. [`Together`]
//!   multiplies the rows of many sites side by side.
//! - A [`Site`] holds the part of the work that depends on activations alone.
//! - A [`Layer`] is one weight, decomposed. It gives the factors.
//!
//! **Threads.** Everything here runs on the current rayon pool: the global one, or the one whose
//! `install` the calls are made in. The number of threads never changes a result.

mod activations;
mod blocks;
mod builder;
mod layer;
mod pairs;
mod rows;
mod site;
mod statistics;
#[cfg(test)]
mod tests;
mod threads;
mod together;

pub use activations::{Activations, Recorded};
pub use builder::{Builder, Initializer};
pub use layer::Layer;
pub use pairs::PairedStatistics;
pub use rows::AnyRows;
pub use site::Site;
pub use statistics::Statistics;
#[doc(hidden)]
pub use threads::is_narrow;
pub use together::Together;
