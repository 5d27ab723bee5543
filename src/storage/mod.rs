//! Bytes from outside, and back. Knows nothing of numbers.

mod atomic;
mod checkpoint;
pub(crate) mod faults;
mod hash;
pub(crate) mod json;
mod mapping;
pub mod npy;
mod number;
mod problem;
mod read_at;
mod recognize;
pub mod safetensors;
mod source;

pub use atomic::{AtomicFile, StagedFile, abandon_unfinished, is_unfinished, write_atomically};
pub use checkpoint::{Checkpoint, Piece, StoredTensor};
pub(crate) use hash::Hashing;
pub use hash::fingerprint;
pub use number::Number;
pub use problem::{Category, Problem, Problems, quoted};
pub use read_at::ReadAt;
pub(crate) use source::is_missing;
pub use source::{Access, Identity, Source};

/// How many numbers a shape holds, if a u64 can count them.
fn product(shape: &[u64]) -> Option<u64> {
    shape.iter().try_fold(1u64, |product, &length| product.checked_mul(length))
}
