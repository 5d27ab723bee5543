//! Recorded activations: files as streams of row blocks, one stream for each site.
//!
//! # Files
//!
//! A **safetensors** file contains one tensor for each site, `[rows, d]` or `[…, d]`: all axes except the last are flattened to rows.
//! The metadata entry `cntlora`, `{"format":"activations","version":1,"sites":{"<site>":["<module>", …]}}`, lists the modules that read
//! each site, for all files of the set. A tensor that is not in the metadata of any file is the site of the module with its name.
//!
//! The inputs of a **convolution** are rows of unfolded patches, each `channels · Π kernel` numbers in the order of the weight; or
//! images `[images, channels, space…]`. Images need the metadata entry
//! `"convolutions":{"<site>":{"kernel":[3,3],"stride":[1,1],"padding":[1,1]}}`. Their patches are unfolded while they are read.
//! `dilation` and `groups` are optional. Convolutions that PEFT cannot adapt are refused. Kernel and groups must match the weight.
//!
//! The activations of an **embedding** are token counts: one axis with a whole number for each token of the vocabulary, in any integer
//! or floating-point format, for at most 2²⁴ tokens. Counts of several files add up.
//!
//! A **`.npy`** file `<module>.npy` contains the site of one module, in either byte order, in C order or, with two axes, in Fortran
//! order. `<module>.<part>.npy` contains a part of it. Digits after the last dot are a part number: a module whose name ends in a
//! number, such as `layers.3`, is stored as `layers.3.0.npy`.
//!
//! Rows have the formats `F64`, `F32`, `F16` or `BF16`, which can differ between files. The rows of a site are those of all files, sorted
//! by path, and parts by their number.

mod blocks;
mod copies;
mod counts;
mod files;
mod headers;
mod set;
mod site;
mod spans;
#[cfg(test)]
mod tests;
mod unfold;

pub use blocks::{Block, Blocks};
pub use counts::SiteCounts;
pub use set::ActivationSet;
pub use site::{Part, Site};
pub use spans::Span;
