//! The methods, with the properties that Python needs.

use cntlora::Method;
use pyo3::prelude::*;
use std::collections::BTreeMap;

/// Returns for each method whether it reads activations, its starts, the default first, and its use of pre-training activations: `none`,
/// `optional`, `needed`, or `alone` if it uses no others.
#[pyfunction]
pub(crate) fn methods() -> BTreeMap<&'static str, (bool, Vec<&'static str>, &'static str)> {
    let starts = |method: Method| method.starts().iter().map(|start| start.name()).collect();
    let source = |method: Method| match (method.reads_source(), method.needs_source()) {
        _ if method.reads_only_source() => "alone",
        (_, true) => "needed",
        (true, false) => "optional",
        (false, false) => "none",
    };
    let of = |method: Method| (method.reads_activations(), starts(method), source(method));
    Method::ALL.iter().map(|method| (method.name(), of(*method))).collect()
}
