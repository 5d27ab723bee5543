//! The header of `.npy` files. It is parsed strictly; no Python expression is evaluated.
//!
//! Source: NEP 1 and the documentation of `numpy.lib.format`, versions 1.0 to 3.0: the magic bytes; two bytes of version; the length
//! of the header in two bytes, from version 2 on in four; a Python dictionary with the keys `descr`, `fortran_order` and `shape`,
//! padded with spaces and ended by a newline. Only the part of the language that `numpy.save` writes for numeric arrays is read.

mod dictionary;
mod header;
#[cfg(test)]
mod tests;

pub use header::Header;
