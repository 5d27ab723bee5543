//! The methods, with the properties that Python needs.

use cntlora::Method;
use pyo3::prelude::*;
use std::collections::BTreeMap;

/// Returns for each method whether it reads activations, and its starts, the default first.
#[pyfunction]
pub(crate) fn methods() -> BTreeMap<&'static str, (bool, Vec<&'static str>)> {
    let starts = |method: Method| method.starts().iter().map(|start| start.name()).collect();
    Method::ALL.iter().map(|method| (method.name(), (method.reads_activations(), starts(*method)))).collect()
}
