//! The numerics of [cntlora](https://docs.rs/cntlora): from rows of activations to the factors of LoRA adapters.
//!
//! A crate of its own so that it is compiled once, with optimization, whatever is built on it. Programs use it through `cntlora`, whose
//! documentation says how its rooms work together.
#![deny(missing_docs)]
#![deny(unsafe_code)]
// An item that looks public and is not misleads the reader.
#![warn(unreachable_pub)]

// Matrices of real models have more bytes than a pointer of 32 bits reaches.
#[cfg(not(target_pointer_width = "64"))]
compile_error!("cntlora needs a processor with 64-bit addresses");

pub use cntlora_dense as dense;

pub mod constraint;
pub mod element;
pub mod error;
pub mod factors;
pub mod low_rank;
pub mod method;
pub mod moments;
mod names;
pub mod random;
pub mod rank;
pub mod simd;
pub mod spread;

#[cfg(test)]
mod oracle;
