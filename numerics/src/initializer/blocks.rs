//! Blocks of rows that wait: until they are full, or until they are multiplied.

use super::rows::{Number, copy};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::moments::Moments;
use crate::simd::{Rows, Values, Workspace};
use faer::MatRef;
use half::{bf16, f16};
use std::ops::Range;

/// Rows of one number format, row after row. All of them are finite, unless such rows are skipped when the block is added.
#[derive(Default)]
pub(super) struct Block {
    pub(super) rows: usize,
    /// Number of these rows that are not finite.
    pub(super) not_finite: usize,
    /// The format of the rows.
    pub(super) format: Option<Element>,
    f64: Vec<f64>,
    f32: Vec<f32>,
    f16: Vec<f16>,
    bf16: Vec<bf16>,
}

impl Block {
    /// A block without rows.
    pub(super) fn of(format: Option<Element>) -> Self {
        Self { format, ..Self::default() }
    }

    /// The rows from `first` on.
    fn rows_from(&self, first: usize, width: usize) -> Rows<'_> {
        let start = first * width;
        let values = match self.format.unwrap_or(Element::F32) {
            Element::F64 => Values::F64(&self.f64[start..]),
            Element::F32 => Values::F32(&self.f32[start..]),
            Element::F16 => Values::F16(&self.f16[start..]),
            Element::Bf16 => Values::Bf16(&self.bf16[start..]),
        };
        Rows { values, rows: self.rows - first, width, stride: width }
    }

    /// Bytes of the rows.
    pub(super) fn bytes(&self, width: usize) -> usize {
        self.rows * width * self.format.map_or(0, Element::size)
    }

    /// Looks for numbers that are not finite in the rows from `first` on: refuses them, with a position that counts from `first`, or
    /// counts their rows.
    pub(super) fn check_from(&mut self, first: usize, width: usize, skips: bool) -> Result<()> {
        let rows = self.rows_from(first, width);
        if skips {
            self.not_finite += (0..rows.rows).filter(|&row| !rows.is_finite(row)).count();
            return Ok(());
        }
        match rows.first_non_finite() {
            None => Ok(()),
            Some((row, column)) => Err(Error::NonFiniteRow { row, column }),
        }
    }

    /// Adds the rows to sums. Returns the number of skipped rows.
    pub(super) fn add_to(
        &self,
        moments: &mut Moments,
        workspace: &mut Workspace,
        threads: usize,
        skips: bool,
    ) -> u64 {
        let rows = self.rows_from(0, moments.width());
        add(moments, rows, workspace, threads, skips).expect("rows that wait were checked")
    }

    /// A block without rows, in the same memory.
    pub(super) fn emptied(mut self) -> Self {
        self.f64.clear();
        self.f32.clear();
        self.f16.clear();
        self.bf16.clear();
        Self { rows: 0, not_finite: 0, ..self }
    }
}

/// Adds rows to sums. Returns the number of skipped rows.
pub(super) fn add(
    moments: &mut Moments,
    rows: Rows<'_>,
    workspace: &mut Workspace,
    threads: usize,
    skips: bool,
) -> Result<u64> {
    match skips {
        true => moments.add_finite(rows, workspace, threads),
        false => moments.add(rows, workspace, threads).map(|()| 0),
    }
}

/// A number format with a place in a block.
pub(super) trait Buffered: Number {
    fn place(block: &mut Block) -> &mut Vec<Self>;
}

macro_rules! buffered {
    ($($number:ident)+) => {
        $(impl Buffered for $number {
            fn place(block: &mut Block) -> &mut Vec<Self> {
                &mut block.$number
            }
        })+
    };
}
buffered!(f64 f32 f16 bf16);

/// Rows of one number format.
pub(super) trait Source<T> {
    fn rows(&self) -> usize;
    /// Copies rows to the end of a block.
    fn append(&self, rows: Range<usize>, out: &mut Vec<T>);
    /// Rows that can be added as they are.
    fn block(&self, rows: Range<usize>) -> Option<Rows<'_>>;
}

impl<T: Number> Source<T> for MatRef<'_, T> {
    fn rows(&self) -> usize {
        self.nrows()
    }

    fn append(&self, rows: Range<usize>, out: &mut Vec<T>) {
        let before = out.len();
        out.resize(before + rows.len() * self.ncols(), T::default());
        copy(self.subrows(rows.start, rows.len()), &mut out[before..], |number| number);
    }

    fn block(&self, _: Range<usize>) -> Option<Rows<'_>> {
        None
    }
}

/// Row after row in a slice.
pub(super) struct Slice<'a, T> {
    pub(super) numbers: &'a [T],
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) stride: usize,
}

impl<T: Number> Source<T> for Slice<'_, T> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn append(&self, rows: Range<usize>, out: &mut Vec<T>) {
        for row in rows {
            out.extend_from_slice(&self.numbers[row * self.stride..][..self.width]);
        }
    }

    fn block(&self, rows: Range<usize>) -> Option<Rows<'_>> {
        let (count, width, stride) = (rows.len(), self.width, self.stride);
        Some(Rows { values: T::values(&self.numbers[rows.start * stride..]), rows: count, width, stride })
    }
}
