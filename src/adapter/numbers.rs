//! The numbers of factors and weights: shapes, encoding, decoding, and checks for NaN and infinity.

use crate::element::Element;
use crate::factors::Factors;
use crate::storage::{Problem, quoted, zeros};
use faer::MatRef;
use std::fmt::Display;

/// A data problem about a module or layer.
pub(super) fn in_module(name: impl Display, what: impl Display) -> Problem {
    Problem::data(format!("module {}: {what}", quoted(&name.to_string())))
}

/// The number format of a tensor.
///
/// # Errors
/// A data problem for formats that are not floating point, or that cannot be decoded.
pub(super) fn element_of(dtype: &str) -> Result<Element, Problem> {
    Element::from_name(dtype).ok_or_else(|| {
        Problem::data(format!("unsupported number format {}: expected F64, F32, F16 or BF16", quoted(dtype)))
    })
}

/// Refuses factors that do not have the shapes `A (rank, inputs)` and `B (outputs, rank)`, with a rank of at least 1.
pub(super) fn check_shapes(factors: &Factors) -> Result<(), Problem> {
    let Factors { a, b } = factors;
    if a.nrows() > 0 && a.ncols() > 0 && b.nrows() > 0 && a.nrows() == b.ncols() {
        return Ok(());
    }
    let (a, b) = ((a.nrows(), a.ncols()), (b.nrows(), b.ncols()));
    Err(Problem::data(format!(
        "factors need the shapes A (rank, inputs) and B (outputs, rank) with a rank of at least 1, found {a:?} and {b:?}"
    )))
}

/// The numbers of a factor, row by row.
pub(super) fn by_rows(factor: MatRef<'_, f32>) -> impl Iterator<Item = f64> {
    let places = (0..factor.nrows()).flat_map(move |i| (0..factor.ncols()).map(move |j| (i, j)));
    places.map(move |place| f64::from(factor[place]))
}

/// The numbers of a factor in a number format, row by row.
pub(super) fn encode(factor: MatRef<'_, f32>, element: Element) -> Vec<u8> {
    let mut bytes = Vec::new();
    element.encode(by_rows(factor), &mut bytes);
    bytes
}

/// The numbers in bytes of a file.
///
/// # Errors
/// A problem of the environment if there is not enough memory.
pub(super) fn decode(bytes: &[u8], element: Element) -> Result<Vec<f64>, Problem> {
    let mut values = zeros((bytes.len() / element.size()) as u64)?;
    element.decode_f64(bytes, &mut values);
    Ok(values)
}

/// Row, column and value of the first number that is not finite.
pub(super) fn first_nonfinite(
    values: impl IntoIterator<Item = f64>,
    columns: usize,
) -> Option<(usize, usize, f64)> {
    let (index, value) = values.into_iter().enumerate().find(|(_, value)| !value.is_finite())?;
    Some((index / columns, index % columns, value))
}

/// Encodes a factor.
///
/// # Errors
/// A data problem if a number is not finite, or is too large for the number format.
pub(super) fn finite_bytes(factor: MatRef<'_, f32>, element: Element) -> Result<Vec<u8>, Problem> {
    let bytes = encode(factor, element);
    let Some((row, column, _)) = first_nonfinite(decode(&bytes, element)?, factor.ncols()) else {
        return Ok(bytes);
    };
    let value = factor[(row, column)];
    Err(if value.is_finite() {
        Problem::data(format!("row {row}, column {column}: {value:e} is too large for {}", element.name()))
            .help("write the factors as f32 or bf16")
    } else {
        Problem::data(format!("row {row}, column {column}: expected a finite number, found {value}"))
    })
}
