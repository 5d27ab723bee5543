//! The kernels of the activation statistics, behind one dispatch.
//!
//! [`accumulate`] takes one block of rows in any number format and adds its statistics to [`Sums`]: the Gram matrix `Xᵀ X` (upper
//! triangle), the column sums and the largest absolute value of each column. The rows are read from memory once: that pass converts,
//! packs, sums, and looks for NaN and infinity. Then a few columns at a time are centred while they are in a cache (`pack`). The Gram
//! matrix is computed from the packed copy (`gram` explains the kernel).
//!
//! **Centred.** The covariance is computed from the sums. Products of f32 numbers far from zero would round it away. So a pilot `c`, the
//! mean of the column in the block, is subtracted from each column. The products of the differences `y = x − c` are accumulated in f32,
//! and the terms that turn them into products of `x` are added in f64. The result is the sums of the original rows. In the tests, a
//! covariance in f64 from these sums had an error of at most 1e-6 of the product of two standard deviations, and of 6e-6 for columns with
//! few different numbers, whose products are all rounded in the same way; up to means of 10⁴ standard deviations (`moments::accuracy`).
//! Beyond that the digits of f64 are not enough.
//!
//! **One result.** For a block of `n` rows, with every operation rounded once:
//!
//! - `c = (x₁ + x₂ + …) / n`, one chain of f32 additions over the rows in order; 0 if that is below an eighth of the largest `|x|` of the
//!   column, or if any `|x|` is above 2⁶⁴.
//! - `y = x − c` in f32 (of f64 rows in f64, then rounded to f32).
//! - `s = y₁ + y₂ + …`, one chain of f64 additions; `t = s + n c` in f64 is added to the column sum.
//! - `g_ij`, one chain of fused multiply-adds of f32 from zero; `fma(c_i, t_j, fma(s_i, c_j, g_ij))` in f64 is added to the Gram
//!   element.
//!
//! So the bits depend neither on the [`Tier`] of instructions nor on the number of threads. ([`Precision::Bf16`] rounds differently,
//! depending on the processor, and is never the default.)
//!
//! Nothing here depends on files or layers.

#[allow(unsafe_code, reason = "an instruction that pulp does not offer")]
mod bf16_dot;
mod columns;
mod convert;
mod corrections;
mod gram;
mod kernel;
mod left;
mod pack;
mod packed;
mod pairs;
pub mod peak;
mod precision;
#[allow(unsafe_code, reason = "an instruction that pulp does not offer")]
mod prefetch;
mod products;
mod rows;
mod shape;
mod sums;
#[cfg(test)]
mod tests;
pub mod threads;
mod tier;
#[allow(unsafe_code, reason = "instructions that pulp does not offer")]
mod tiles;
mod triangle;
mod workspace;

pub use precision::{Precision, Unsupported};
pub use rows::{Rows, Values};
pub use sums::{Sums, accumulate};
pub use tier::Tier;
pub(crate) use triangle::row_start;
pub use workspace::Workspace;

/// Rows per block of f32: within a block the Gram accumulates in f32, across blocks in f64.
///
/// It is part of the definition of the result, and the same for every tier. Larger blocks spend less time on the f64
/// triangle and round more. `benches/README.md` has the measurements.
pub const BLOCK_ROWS: usize = 640;
