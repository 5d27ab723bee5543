//! Files: reading and writing them, the formats safetensors, npy and JSON, and Hugging Face checkpoints.
//!
//! - [`Source`] is an input file, [`AtomicFile`] an output file.
//! - [`Checkpoint`] is a model: one or more safetensors files.
//! - [`Problem`] is the error type of all modules that use files.

mod atomic;
mod carry;
mod checkpoint;
pub(crate) mod expressions;
pub(crate) mod faults;
mod hash;
mod hub;
pub(crate) mod json;
mod mapping;
mod memory;
mod new_file;
pub mod npy;
mod number;
mod paths;
mod plan;
mod problem;
mod quantized;
mod read_at;
mod recognize;
mod recover;
mod replacement;
pub mod safetensors;
mod source;
mod staged_folder;
mod unfinished;
pub(crate) mod visible;
pub(crate) mod wrappers;

pub use atomic::{AtomicFile, StagedFile, write_atomically};
pub use checkpoint::{Checkpoint, Piece, StoredTensor};
pub(crate) use hash::Hashing;
pub use hash::fingerprint;
pub(crate) use hub::model_folder;
pub(crate) use json::{Schema, read_json};
pub(crate) use memory::{buffer, reserve, zeros};
pub(crate) use new_file::NewFile;
pub use number::Number;
pub(crate) use number::product;
pub(crate) use paths::{folder_of, is_missing, is_plain_name, is_same_file, names_in, real};
pub use problem::{Category, Problem, Problems};
#[cfg(test)]
pub(crate) use problem::{shown, snapshot};
pub(crate) use quantized::Quantized;
pub use read_at::ReadAt;
pub(crate) use recognize::{is_sidecar, unread_format};
pub(crate) use recover::{interrupted_replacement, remove_unfinished};
pub(crate) use replacement::{Replacement, replace};
pub use source::{Access, Identity, Source};
pub(crate) use staged_folder::StagedFolder;
pub use unfinished::{abandon_unfinished, is_unfinished, remove_unfinished_files};
pub use visible::{quoted, visible};
