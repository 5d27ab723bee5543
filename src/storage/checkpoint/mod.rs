//! Hugging Face checkpoints: a file, or a folder with shards and their index. Tensors are read on demand.
//!
//! The folder of a pipeline with several models (diffusers) is not a checkpoint, but each of its components is one.

mod listing;
mod open;
mod piece;
#[cfg(test)]
mod tests;

pub use open::{Checkpoint, StoredTensor};
pub use piece::Piece;
