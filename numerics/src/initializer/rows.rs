//! Rows of activations in any number format and layout.

use crate::element::Element;
use crate::error::{Error, Result};
use crate::simd::{Rows, Values};
use faer::{Mat, MatRef};
use half::{bf16, f16};
use rayon::prelude::*;
use std::ops::Range;

/// Rows of activations, `n × d`, in any number format and with any strides.
///
/// Made from a [`MatRef`] or a reference to a [`Mat`] of faer, or from [`Rows`], which are slices with a stride between rows.
///
/// ```
/// use cntlora_numerics::initializer::Statistics;
/// use cntlora_numerics::simd::{Rows, Values};
/// use faer::{Mat, MatRef};
/// use half::bf16;
///
/// let mut statistics = Statistics::new(3);
/// // A matrix of faer, and its parts.
/// let matrix = Mat::from_fn(4, 3, |i, j| (i + j) as f64);
/// statistics.add(&matrix)?;
/// statistics.add(matrix.as_ref().subrows(1, 2))?;
/// // Row after row in a buffer. This form is added without a copy.
/// let buffer = [bf16::ONE; 4 * 3];
/// statistics.add(Rows { values: Values::Bf16(&buffer), rows: 4, width: 3, stride: 3 })?;
/// // Any other layout: here the first 3 of 5 numbers in each row, column after column.
/// let wider = [1.0f32; 5 * 7];
/// statistics.add(MatRef::from_column_major_slice(&wider, 7, 5).subcols(0, 3))?;
/// assert_eq!(statistics.count(), 4 + 2 + 4 + 7);
/// # Ok::<(), cntlora_numerics::error::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum AnyRows<'a> {
    /// Double precision.
    F64(MatRef<'a, f64>),
    /// Single precision.
    F32(MatRef<'a, f32>),
    /// Half precision.
    F16(MatRef<'a, f16>),
    /// Brain float.
    Bf16(MatRef<'a, bf16>),
    /// Row after row in a slice.
    Slice(Rows<'a>),
}

impl<'a> From<Rows<'a>> for AnyRows<'a> {
    fn from(rows: Rows<'a>) -> Self {
        Self::Slice(rows)
    }
}

/// A number format of rows.
pub(super) trait Number: Copy + Default + Into<f64> + Send + Sync {
    const ELEMENT: Element;
    fn values(numbers: &[Self]) -> Values<'_>;
}

macro_rules! number {
    ($number:ty, $format:ident) => {
        impl Number for $number {
            const ELEMENT: Element = Element::$format;
            fn values(numbers: &[Self]) -> Values<'_> {
                Values::$format(numbers)
            }
        }

        impl<'a> From<MatRef<'a, $number>> for AnyRows<'a> {
            fn from(rows: MatRef<'a, $number>) -> Self {
                Self::$format(rows)
            }
        }

        impl<'a> From<&'a Mat<$number>> for AnyRows<'a> {
            fn from(rows: &'a Mat<$number>) -> Self {
                Self::$format(rows.as_ref())
            }
        }
    };
}
number!(f64, F64);
number!(f32, F32);
number!(f16, F16);
number!(bf16, Bf16);

impl AnyRows<'_> {
    /// Number of rows and numbers per row.
    pub(super) fn shape(&self) -> (usize, usize) {
        match self {
            Self::F64(rows) => rows.shape(),
            Self::F32(rows) => rows.shape(),
            Self::F16(rows) => rows.shape(),
            Self::Bf16(rows) => rows.shape(),
            Self::Slice(rows) => (rows.rows, rows.width),
        }
    }

    /// Bytes of the numbers.
    pub fn bytes(&self) -> u64 {
        let size = match self {
            Self::F64(_) => Element::F64.size(),
            Self::F32(_) => Element::F32.size(),
            Self::F16(_) => Element::F16.size(),
            Self::Bf16(_) => Element::Bf16.size(),
            Self::Slice(rows) => rows.values.element().size(),
        };
        let (rows, width) = self.shape();
        (rows as u64).saturating_mul(width as u64).saturating_mul(size as u64)
    }

    /// Refuses rows of another width, and slices that are too short.
    pub(super) fn check(&self, width: usize) -> Result<()> {
        let refused = |what, expected, found| Err(Error::Shape { what, expected, found });
        let (_, found) = self.shape();
        if found != width {
            return refused("width of the rows", width, found);
        }
        if let Self::Slice(rows) = self {
            if rows.stride < width {
                return refused("stride of the rows", width, rows.stride);
            }
            let needed = rows.needed().unwrap_or(usize::MAX);
            if needed > rows.values.len() {
                return refused("numbers in the slice of rows", needed, rows.values.len());
            }
        }
        Ok(())
    }

    /// A block of rows in f64.
    pub(super) fn widened<'b>(&self, rows: Range<usize>, buffer: &'b mut Vec<f64>) -> Rows<'b> {
        fn fill<T: Number>(matrix: MatRef<'_, T>, buffer: &mut [f64]) {
            copy(matrix, buffer, T::into);
        }
        let (count, (_, width)) = (rows.len(), self.shape());
        buffer.resize(count * width, 0.0);
        match self {
            Self::F64(matrix) => fill(matrix.subrows(rows.start, count), buffer),
            Self::F32(matrix) => fill(matrix.subrows(rows.start, count), buffer),
            Self::F16(matrix) => fill(matrix.subrows(rows.start, count), buffer),
            Self::Bf16(matrix) => fill(matrix.subrows(rows.start, count), buffer),
            Self::Slice(slice) => {
                for (row, out) in rows.zip(buffer.chunks_exact_mut(width.max(1))) {
                    slice.copy_row(row, out);
                }
            }
        }
        Rows { values: Values::F64(buffer), rows: count, width, stride: width }
    }
}

/// Copies a matrix to a buffer, row after row, on the current rayon pool.
pub(super) fn copy<T: Number, N: Send>(
    matrix: MatRef<'_, T>,
    buffer: &mut [N],
    convert: impl Fn(T) -> N + Sync,
) {
    /// Rows that a thread copies at a time: a cache line of f32 in each column of a column-major matrix.
    const ROWS: usize = 16;
    let width = matrix.ncols();
    buffer.par_chunks_mut((ROWS * width).max(1)).enumerate().for_each(|(chunk, buffer)| {
        let rows = buffer.len() / width;
        let matrix = matrix.subrows(chunk * ROWS, rows);
        if matrix.row_stride().unsigned_abs() < matrix.col_stride().unsigned_abs() {
            for j in 0..width {
                for (i, number) in matrix.col(j).iter().enumerate() {
                    buffer[i * width + j] = convert(*number);
                }
            }
        } else {
            for (row, out) in buffer.chunks_exact_mut(width).enumerate() {
                let numbers = matrix.row(row);
                match numbers.try_as_row_major() {
                    Some(numbers) => {
                        out.iter_mut()
                            .zip(numbers.as_slice())
                            .for_each(|(out, number)| *out = convert(*number));
                    }
                    None => {
                        out.iter_mut().zip(numbers.iter()).for_each(|(out, number)| *out = convert(*number));
                    }
                }
            }
        }
    });
}
