//! Initializes LoRA adapters from data, offline, on ordinary processors.
//!
//! Given the weights of a model and a recording of its activations, cntlora computes in closed form the up and down matrices `B` and
//! `A` of a LoRA adapter, with a rank per layer. It is a command-line tool and this library.
//!
//! # In another program
//!
//! ```
//! use cntlora::faer::Mat;
//! use cntlora::{Initializer, Statistics};
//!
//! // The rows that a layer reads, and its weight: outputs × inputs.
//! let rows = Mat::from_fn(1000, 32, |i, j| ((i * i + 7 * i * j) % 23) as f32 - 11.0);
//! let weight = Mat::from_fn(48, 32, |i, j| ((3 * i + j * j) % 11) as f32 - 5.0);
//!
//! let initializer = Initializer::builder().rank(16).build()?;
//! let mut statistics = Statistics::new(32);
//! statistics.add(&rows)?; // any number of rows, as often as wanted
//! let layer = initializer.site(&statistics)?.layer("q_proj", weight.as_ref())?;
//! let factors = layer.factors()?;
//! assert_eq!((factors.b.shape(), factors.a.shape()), ((48, 16), (16, 32)));
//! # Ok::<(), cntlora::Error>(())
//! ```
//!
//! 1. An [`Initializer`] holds the options. Its [`Builder`] checks them once: [`Method`], ranks, [`Start`] and more.
//! 2. [`Statistics`] summarize the activations of a *site*: the input that one or more weights read. [`Statistics::add`] takes [`AnyRows`]:
//!    f64, f32, f16 and bf16, matrices of [faer](https://docs.rs/faer) with any strides, and slices ([`Rows`]). Slices are the fast
//!    path: they are not copied. [`PairedStatistics`] take pairs of rows, [`Counts`] the tokens of an embedding.
//! 3. [`Initializer::site`] does the work that depends on the activations alone, once for all weights that read them.
//!    [`Activations`] also hold the statistics of pre-training activations, if there are any.
//! 4. [`Site::layer`] decomposes one weight.
//! 5. [`Layer::factors`] gives the factors, where all layers have one rank. To share a budget of parameters out among layers, decompose
//!    all of them first; then [`Initializer::ranks`] gives the ranks and [`Layer::factors_of_rank`] the factors.
//!
//! The adapter adds `s · B A` to the weight with the scale `s` of the options, which is 1 by default. With [`Start::Residual`] the program
//! subtracts `s · B A` from the base weight; with all other starts the base stays as it is.
//!
//! `examples/embed.rs` is a whole program.
//!
//! **Threads.** The numerics run on the current rayon pool. To use another one, call them in its `install`. The number of threads
//! never changes a result.
//!
//! **Errors.** Every function returns an [`Error`], an enum with a variant for each reason, and a [kind](Error::kind). Panics are
//! documented, and are mistakes of the calling program.
//!
//! **Versions.** [`faer`] and [`half`] are re-exported: their types are part of this interface.
//!
//! # Modules
//!
//! | module | content |
//! |---|---|
//! | [`initializer`] | the types above |
//! | [`method`] | the methods and their options |
//! | [`constraint`] | the constraints between pre-training and fine-tuning activations |
//! | [`factors`] | factors, their start, their scale, and the shapes of layers |
//! | [`rank`] | policies of ranks |
//! | [`moments`] | sums over rows, and counts of tokens |
//! | [`simd`] | the kernels of the sums |
//! | [`element`] | number formats |
//! | [`error`](mod@error) | errors |
//! | `storage`, `activations`, `moments_file`, `adapter` | files: checkpoints, recordings, saved moments, adapters |
//! | `plan`, `run`, `report` | whole runs: planned from headers alone, carried out, and reported |
//!
//! # Features
//!
//! `cli`, the default, adds the command-line tool; `files` adds the modules for files and whole runs. Both need a Unix system, such as
//! Linux or macOS. Without default features only the numerics are built, the crate `cntlora-numerics`, on any system: they neither print,
//! nor exit, nor touch a file.
//!
//! # Guarantees
//!
//! - Nothing panics on the content of a file.
//! - Statistics have the same bits for every number of threads, every instruction set, and every way in which rows of one number format are
//!   cut into pieces.
//! - Numbers are checked to be finite before and after every decomposition.
//! - Where an order reaches an output, it is the order of names.
#![deny(missing_docs)]
#![deny(unsafe_code)]
// An item that looks public and is not misleads the reader.
#![warn(unreachable_pub)]

#[cfg(all(feature = "files", not(unix)))]
compile_error!(
    "cntlora reads and writes files on Unix systems only, such as Linux and macOS. On Windows, build it in the Windows Subsystem \
     for Linux. The numerics build everywhere: cntlora with default-features = false"
);

pub use cntlora_numerics::{
    Activations, AnyRows, Builder, ChannelScale, Counts, Coupling, Element, Error, ErrorKind, Factors,
    Initialization, Initializer, Layer, LayerName, LayerShape, Limits, Method, Moments, Norm, Options,
    PairedStatistics, Policy, Rows, RowsOrTokens, Shrinkage, Site, Start, Statistics, Strength, Values,
};
pub use cntlora_numerics::{constraint, element, error, factors, initializer, method, moments, rank, simd};
pub use cntlora_numerics::{faer, half};

// For the tool and the tests.
#[doc(hidden)]
pub use cntlora_numerics::{dense, low_rank, random, spread};

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

#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
