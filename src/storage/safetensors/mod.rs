//! The safetensors container: its header read strictly, and written reproducibly.
//!
//! Source: the section "Format" of the README of <https://github.com/huggingface/safetensors>. Eight bytes of
//! header length, little endian; a JSON header; the data of the tensors without gaps to the end of the file.
//! What a number format means is left to [`Element`](crate::element::Element).

mod dtype;
mod header;
mod layout;
#[cfg(test)]
mod tests;

pub use header::{Header, Tensor};
pub use layout::{Layout, write};

/// The name under which the header keeps its metadata, and which no tensor can have.
const METADATA: &str = "__metadata__";

/// Bytes before the header: its length.
const LENGTH_BYTES: u64 = 8;
