//! Initializes LoRA adapters from data, offline, on ordinary processors.
//!
//! Given the weights of a model and a recording of its activations, cntlora computes in closed form the up and down matrices of a
//! LoRA adapter, with a rank per layer. Data flows one way, through rooms that appear below in its order:
//!
//! ```text
//! checkpoint ──┐                                        ┌── adapter
//!              ├── plan ── moments ── constraint ── … ──┤
//! activations ─┘                     low_rank, rank,    └── report
//!                                    factors, method
//! ```
//!
//! | room | holds | knows nothing of |
//! |---|---|---|
//! | [`element`] | number formats and their decoding | files |
//! | [`simd`] | the kernels of the activation statistics | files, layers |
//! | [`moments`] | what is remembered of a site | weights |
//! | [`dense`], [`random`] | decompositions between finite checks; seeded streams | the method |
//! | [`spread`] | how activations spread about their mean | constraints |
//! | [`constraint`] | couplings and terms, factored once per site | ranks |
//! | [`low_rank`] | truncated SVD of operators that are never formed | LoRA |
//! | [`rank`] | spectra to ranks | everything else |
//! | [`factors`] | balance, strength, scale and start | files |
//! | [`method`] | the methods, in the vocabulary of the rooms before | files |
//! | `storage` | bytes from outside, and back | numbers |
//! | `activations` | files as streams of row blocks, one per site | linear algebra |
//! | `moments_file` | moments on disk, and their merging | weights |
//! | `plan` | what a run will do, from headers alone | running |
//! | `adapter` | writers and readers of adapters, the residual base | how factors came about |
//! | `report` | what happened, and its renderings | running |
//! | `run` | carries a plan out | printing |
//!
//! # Features
//!
//! Without default features, only the numerics are built: everything up to [`method`], the crate `cntlora-numerics`. They take and
//! give faer views, and neither print, nor exit, nor touch a file; `examples/embed.rs` shows them at work. `files` adds the rooms after
//! that, `cli` (the default) the command-line tool.
//!
//! # What holds everywhere
//!
//! - Nothing panics on the content of a file. Panics are documented, and are mistakes of the calling program.
//! - Moments have the same bits for every number of threads and every instruction set.
//! - Every decomposition stands between two finite checks.
//! - Where an order reaches an output, it is that of names.
#![deny(missing_docs)]
#![deny(unsafe_code)]
// An item that looks public and is not misleads the reader.
#![warn(unreachable_pub)]

pub use cntlora_numerics::{
    constraint, dense, element, error, factors, low_rank, method, moments, random, rank, simd, spread,
};

#[cfg(feature = "files")]
pub mod storage;

#[cfg(feature = "files")]
pub mod activations;
#[cfg(feature = "files")]
pub mod moments_file;

#[cfg(feature = "files")]
pub mod adapter;
#[cfg(feature = "files")]
pub mod plan;
#[cfg(feature = "files")]
pub mod report;
#[cfg(feature = "files")]
pub mod run;
