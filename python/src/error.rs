//! Problems of the library as Python exceptions.

use cntlora::cli::message;
use cntlora::storage::{Category, Problems};
use pyo3::exceptions::PyException;
use pyo3::prelude::*;

pyo3::create_exception!(
    cntlora,
    Error,
    PyException,
    "Why cntlora refused inputs or options, or could not finish. The attribute `category` is \"data\", \"usage\", \"io\", \
     \"interrupted\" or \"bug\"."
);

/// The exception for problems: the messages of the tool, and their category.
pub(crate) fn raised(py: Python<'_>, problems: impl Into<Problems>) -> PyErr {
    let problems = problems.into();
    let category = match problems.category() {
        Category::Data => "data",
        Category::Usage => "usage",
        Category::Io => "io",
        Category::Interrupted => "interrupted",
    };
    with_category(py, message(&problems), category)
}

/// The exception for a mistake of this program.
pub(crate) fn bug(py: Python<'_>) -> PyErr {
    let version = env!("CARGO_PKG_VERSION");
    let message = format!(
        "this is a bug of cntlora {version}: a thread panicked\n  help: please report it, with the lines before"
    );
    with_category(py, message, "bug")
}

fn with_category(py: Python<'_>, message: String, category: &str) -> PyErr {
    let error = Error::new_err(message);
    match error.value(py).setattr("category", category) {
        Ok(()) => error,
        Err(failure) => failure,
    }
}
