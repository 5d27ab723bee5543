//! The numerics whole, from rows to factors, against an oracle in f64 that shares no code with the crate.
//!
//! | room | holds |
//! |---|---|
//! | `oracle` | matrices and their decompositions, in plain loops |
//! | `truth` | the method by its definitions, and how near to it f32 can come |
//! | `inputs` | activations and weights, at random |
//! | `subject` | the functions of the crate that are tested |
//! | the others | the tests |
//!
//! `QUICKCHECK_TESTS=5000 cargo test --release --test battery` takes longer and sees more.

mod inputs;
mod oracle;
mod subject;
mod truth;

mod few_units;
mod moments;
mod peers;
mod ranks;
mod refused;
mod updates;
mod wide;
