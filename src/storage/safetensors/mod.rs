//! The safetensors format: headers are read strictly and written reproducibly.
//!
//! Source: the section "Format" of the README of <https://github.com/huggingface/safetensors>. A file has the length of the header
//! in eight little-endian bytes, a JSON header, and the data of the tensors without gaps up to the end of the file.

mod composed;
mod dtype;
mod header;
mod layout;
#[cfg(test)]
mod tests;

pub use composed::{Composed, Fill};
pub use dtype::byte_length;
pub use header::{Header, Tensor};
pub use layout::{Layout, write};
