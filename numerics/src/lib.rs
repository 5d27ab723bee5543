//! The numerics of [cntlora](https://docs.rs/cntlora): from rows of activations to the factors of LoRA adapters.
//!
//! This is a crate of its own so that it is compiled once, with optimization, for everything that is built on it. Programs use it through
//! `cntlora`, whose root page explains the types below.
#![deny(missing_docs)]
#![deny(unsafe_code)]
#![warn(missing_debug_implementations)]
// An item that looks public and is not misleads the reader.
#![warn(unreachable_pub)]

// Matrices of real models have more bytes than a pointer of 32 bits can address.
#[cfg(not(target_pointer_width = "64"))]
compile_error!("cntlora needs a processor with 64-bit addresses");

#[doc(hidden)]
pub use cntlora_dense as dense;

pub mod constraint;
pub mod element;
pub mod error;
pub mod factors;
pub mod initializer;
#[doc(hidden)]
pub mod low_rank;
pub mod method;
pub mod moments;
mod names;
#[doc(hidden)]
pub mod random;
pub mod rank;
pub mod simd;
#[doc(hidden)]
pub mod spread;
mod triangle;

pub use constraint::{ChannelScale, Coupling, Norm, Shrinkage};
pub use element::Element;
pub use error::{Error, ErrorKind};
pub use factors::{Factors, Initialization, LayerName, LayerShape, Start, Strength};
pub use initializer::{
    Activations, AnyRows, Builder, Initializer, Layer, PairedStatistics, Site, Statistics,
};
pub use method::{Method, Options};
pub use moments::{Counts, Moments, RowsOrTokens};
pub use rank::{Limits, Policy};
pub use simd::{Rows, Values};
pub use {faer, half};

#[cfg(test)]
mod oracle;
