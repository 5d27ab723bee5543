//! Reports as text and as HTML.

use crate::error::raised;
use cntlora::report::{Report, html, text};
use cntlora::storage::Problem;
use pyo3::prelude::*;

/// The report as the tool prints it.
#[pyfunction]
pub(crate) fn report_text(py: Python<'_>, report: &str) -> PyResult<String> {
    Ok(text::render(&parsed(py, report)?))
}

/// The report as a self-contained page.
#[pyfunction]
pub(crate) fn report_html(py: Python<'_>, report: &str) -> PyResult<String> {
    Ok(html::render(&parsed(py, report)?))
}

fn parsed(py: Python<'_>, report: &str) -> PyResult<Report> {
    serde_json::from_str(report).map_err(|error| {
        let problem = Problem::data(format!("expected a report of this version of cntlora: {error}"));
        raised(py, problem.help("give the text that initialize() returned"))
    })
}
