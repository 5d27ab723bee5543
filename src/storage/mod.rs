//! Files: reading and writing them, the formats safetensors, npy and JSON, and Hugging Face checkpoints.
//!
//! - [`Source`] is an input file, [`AtomicFile`] an output file.
//! - [`Checkpoint`] is a model: one or more safetensors files.
//! - [`Problem`] is the error type of all modules that use files.

mod atomic;
mod checkpoint;
pub(crate) mod faults;
mod hash;
pub(crate) mod json;
mod mapping;
pub mod npy;
mod number;
mod paths;
mod problem;
mod read_at;
mod recognize;
pub mod safetensors;
mod source;

pub use atomic::{AtomicFile, StagedFile, abandon_unfinished, is_unfinished, write_atomically};
pub use checkpoint::{Checkpoint, Piece, StoredTensor};
pub(crate) use hash::Hashing;
pub use hash::fingerprint;
pub(crate) use json::{Schema, read_json};
pub use number::Number;
pub(crate) use number::product;
pub(crate) use paths::{folder_of, is_missing, is_plain_name, is_same_file, names_in};
pub use problem::{Category, Problem, Problems, quoted};
#[cfg(test)]
pub(crate) use problem::{shown, snapshot};
pub use read_at::ReadAt;
pub use source::{Access, Identity, Source};
