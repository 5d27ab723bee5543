//! Blocks of rows.

use super::convert::Number;
use crate::element::Element;
use crate::error::{Error, Result};
use half::{bf16, f16};

/// Numbers of rows, row after row, in their own format.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// Double precision. Each number is rounded to f32 after the mean of its column in the block was subtracted.
    F64(&'a [f64]),
    /// Single precision.
    F32(&'a [f32]),
    /// Half precision.
    F16(&'a [f16]),
    /// Brain float.
    Bf16(&'a [bf16]),
}

impl<'a> Values<'a> {
    fn starting_at(self, index: usize) -> Values<'a> {
        match self {
            Values::F64(values) => Values::F64(&values[index..]),
            Values::F32(values) => Values::F32(&values[index..]),
            Values::F16(values) => Values::F16(&values[index..]),
            Values::Bf16(values) => Values::Bf16(&values[index..]),
        }
    }
}

impl Values<'_> {
    /// The number format.
    pub fn element(&self) -> Element {
        match self {
            Values::F64(_) => Element::F64,
            Values::F32(_) => Element::F32,
            Values::F16(_) => Element::F16,
            Values::Bf16(_) => Element::Bf16,
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Values::F64(values) => values.len(),
            Values::F32(values) => values.len(),
            Values::F16(values) => values.len(),
            Values::Bf16(values) => values.len(),
        }
    }

    /// One number, rounded to f32.
    pub(super) fn get(&self, index: usize) -> f32 {
        match self {
            Values::F64(values) => values[index] as f32,
            Values::F32(values) => values[index],
            Values::F16(values) => values[index].to_f32(),
            Values::Bf16(values) => values[index].to_f32(),
        }
    }
}

/// A block of activations: `rows × width` numbers, `stride` apart from row to row.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The numbers: at least `(rows - 1) · stride + width` of them, unless there are no rows.
    pub values: Values<'a>,
    /// How many rows.
    pub rows: usize,
    /// Length of a row.
    pub width: usize,
    /// Distance between the starts of two rows, at least `width`.
    pub stride: usize,
}

impl<'a> Rows<'a> {
    /// The rows in blocks of at most so many.
    pub(super) fn blocks(self, most: usize) -> impl Iterator<Item = Rows<'a>> {
        (0..self.rows).step_by(most).map(move |first| Rows {
            values: self.values.starting_at(first * self.stride),
            rows: most.min(self.rows - first),
            ..self
        })
    }
}

impl Rows<'_> {
    pub(super) fn assert_consistent(&self, most: usize) {
        let Rows { values, rows, width, stride } = *self;
        assert!(rows <= most, "a block has at most {most} rows, found {rows}");
        assert!(stride >= width, "rows of {width} numbers cannot start {stride} numbers apart");
        assert!(
            self.needed().is_some_and(|needed| needed <= values.len()),
            "{rows} rows of {width} numbers, {stride} apart, do not fit in {} numbers",
            values.len()
        );
    }

    /// The numbers that the slice must have at least.
    pub(crate) fn needed(&self) -> Option<usize> {
        match self.rows {
            0 => Some(0),
            rows => (rows - 1).checked_mul(self.stride)?.checked_add(self.width),
        }
    }

    /// One row, exactly.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not as long as a row.
    pub fn copy_row(&self, row: usize, out: &mut [f64]) {
        fn widen<N: Number>(from: &[N], to: &mut [f64]) {
            to.iter_mut().zip(from).for_each(|(to, &from)| *to = from.into());
        }
        assert_eq!(out.len(), self.width, "room for a row");
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let range = row * self.stride..row * self.stride + self.width;
        match self.values {
            Values::F64(values) => widen(&values[range], out),
            Values::F32(values) => widen(&values[range], out),
            Values::F16(values) => widen(&values[range], out),
            Values::Bf16(values) => widen(&values[range], out),
        }
    }

    /// Row and column of the first number, in row-major order, that is not finite as an f32.
    pub(crate) fn first_non_finite(&self) -> Option<(usize, usize)> {
        let row = (0..self.rows).find(|&row| !self.is_finite(row))?;
        let column =
            (0..self.width).find(|column| !self.values.get(row * self.stride + column).is_finite())?;
        Some((row, column))
    }

    /// Checks that all numbers are finite as f32.
    pub(super) fn check(&self) -> Result<()> {
        match self.first_non_finite() {
            Some((row, column)) => Err(Error::NonFiniteRow { row, column }),
            None => Ok(()),
        }
    }

    /// Number of rows whose numbers are all zero. Most rows are decided by their first number.
    ///
    /// # Panics
    /// If the slice is too short.
    pub fn zero_rows(&self) -> u64 {
        fn all<N: Number>(numbers: &[N]) -> bool {
            numbers.iter().all(|&number| number.into() == 0.0)
        }
        let is_zero = |row: &usize| {
            let range = row * self.stride..row * self.stride + self.width;
            match self.values {
                Values::F64(values) => all(&values[range]),
                Values::F32(values) => all(&values[range]),
                Values::F16(values) => all(&values[range]),
                Values::Bf16(values) => all(&values[range]),
            }
        };
        (0..self.rows).filter(is_zero).count() as u64
    }

    /// The rows that are finite in every column as f32, as f64. This conversion is exact, so that sums keep their bits.
    ///
    /// # Panics
    /// If the slice is too short.
    pub fn finite(&self) -> Vec<f64> {
        let mut finite = vec![0.0; self.rows * self.width];
        let mut kept = 0;
        for row in (0..self.rows).filter(|&row| self.is_finite(row)) {
            self.copy_row(row, &mut finite[kept..kept + self.width]);
            kept += self.width;
        }
        finite.truncate(kept);
        finite
    }

    /// True if all numbers of a row are finite as f32. The loops have no early exit, so that they are compiled to vector instructions.
    pub(crate) fn is_finite(&self, row: usize) -> bool {
        fn all<N: Copy>(numbers: &[N], is_finite: impl Fn(N) -> bool) -> bool {
            numbers.iter().fold(true, |all, &number| all & is_finite(number))
        }
        let range = row * self.stride..row * self.stride + self.width;
        match self.values {
            Values::F64(values) => all(&values[range], |number| (number as f32).is_finite()),
            Values::F32(values) => all(&values[range], f32::is_finite),
            Values::F16(values) => all(&values[range], f16::is_finite),
            Values::Bf16(values) => all(&values[range], bf16::is_finite),
        }
    }
}
