//! The Rust half of the Python package `cntlora`: the module `cntlora._cntlora`.
//!
//! `_cntlora.pyi` describes the module. It is a thin layer over the library: `statistics` holds the sums of a model's layers,
//! `initialize` computes factors from them and from the `weights` of the model, and `tool` is the command-line tool. `rows` and `weights`
//! are the boundary to the memory of tensors. All computations release the lock of the interpreter.

mod error;
mod initialize;
mod methods;
mod pool;
mod report;
mod rows;
mod statistics;
mod tool;
mod weights;

use pyo3::prelude::*;

#[pymodule]
mod _cntlora {
    #[pymodule_export]
    use super::error::Error;
    #[pymodule_export]
    use super::initialize::initialize;
    #[pymodule_export]
    use super::methods::methods;
    #[pymodule_export]
    use super::report::{report_html, report_text};
    #[pymodule_export]
    use super::statistics::{Site, Statistics};
    #[pymodule_export]
    use super::tool::main;
}
