//! Weights of quantized checkpoints: recognized by the tensors on disk, and dequantized while they are read.
//!
//! A quantized weight consists of several stored tensors: codes, scales, and more. In a checkpoint it has the plain name and the shape of
//! the module's weight, and its numbers are F32. The other tensors have no names of their own there. One file of this room has the rules of
//! one family of formats: it recognizes the tensors of a weight, checks their shapes, and decodes a range of rows and columns.
//!
//! | file | formats |
//! |---|---|
//! | `fp8` | float8 with one scale per tensor, row, group or block: DeepSeek, Qwen, fbgemm, compressed-tensors |
//! | `bitsandbytes` | NF4, FP4, INT8 |
//! | `mxfp4` | the fused experts of gpt-oss |
//! | `compressed` | compressed-tensors: packed integers, INT8, NVFP4, MXFP4 |
//! | `gptq` | GPTQ, both conventions of zero points |
//! | `awq` | AWQ |
//!
//! The tensors on disk decide. The configuration only tells what they leave open, such as the size of blocks.

mod awq;
mod bits;
mod bitsandbytes;
mod codes;
mod compressed;
mod config;
mod fp4;
mod fp8;
mod gptq;
mod grid;
mod mxfp4;
mod parts;
mod recognize;
mod scaled;

#[cfg(test)]
mod tests;
mod weight;

pub(super) use config::Config;
pub(super) use recognize::recognize;
pub(crate) use weight::Quantized;
