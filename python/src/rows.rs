//! The boundary to the memory of tensors.
#![allow(unsafe_code, reason = "tensors are passed as addresses")]

use cntlora::faer::MatRef;
use cntlora::half::{bf16, f16};
use cntlora::storage::Problem;
use cntlora::{AnyRows, Element, Rows, Values};
use std::slice::from_raw_parts;

/// A matrix in the memory of a tensor on the CPU. Strides count numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tensor {
    pub(crate) address: usize,
    pub(crate) shape: (usize, usize),
    pub(crate) strides: (isize, isize),
    pub(crate) element: Element,
}

impl Tensor {
    /// The rows of the tensor.
    ///
    /// # Errors
    /// A usage problem for an address that is zero or not aligned, and for a size beyond the address space.
    ///
    /// # Safety
    /// The memory of the tensor is allocated, was written before, and does not change while the result is in use.
    pub(crate) unsafe fn rows<'a>(self) -> Result<AnyRows<'a>, Problem> {
        self.check()?;
        // SAFETY: the caller promises that the numbers are in memory, and `check` that the address is aligned and the size fits.
        Ok(unsafe {
            match self.element {
                Element::F64 => self.of::<f64>(Values::F64),
                Element::F32 => self.of::<f32>(Values::F32),
                Element::F16 => self.of::<f16>(Values::F16),
                Element::Bf16 => self.of::<bf16>(Values::Bf16),
            }
        })
    }

    /// The parts with consecutive rows of a selection, or of all rows, of at most `most` rows. Without rows it is one part without rows.
    ///
    /// # Errors
    /// As [`rows`](Self::rows); a usage problem for a row that the tensor does not have.
    pub(crate) fn parts(
        self,
        selection: Option<&[i64]>,
        most: usize,
    ) -> Result<impl Iterator<Item = Self>, Problem> {
        self.check()?;
        let (rows, width) = self.shape;
        let outside = |row: &&i64| usize::try_from(**row).map_or(true, |row| row >= rows);
        if let Some(row) = selection.into_iter().flatten().find(outside) {
            return Err(Problem::usage(format!("row {row} was selected from a tensor of {rows} rows")));
        }
        let bytes = self.strides.0.wrapping_mul(self.element.size() as isize);
        let end = selection.map_or(rows, <[i64]>::len);
        let (mut next, mut is_done) = (0, false);
        Ok(std::iter::from_fn(move || {
            if is_done {
                return None;
            }
            let (first, count) = match selection {
                None => (next, most.min(rows - next)),
                Some(selection) => {
                    let rest = &selection[next..];
                    let follows = |(at, row): &(usize, &i64)| **row == rest[0] + *at as i64;
                    let run = rest.iter().enumerate().take(most).take_while(follows).count();
                    (rest.first().map_or(0, |row| *row as usize), run)
                }
            };
            next += count;
            is_done = next == end;
            let address = self.address.wrapping_add_signed(bytes.wrapping_mul(first as isize));
            Some(Self { address, shape: (count, width), ..self })
        }))
    }

    fn check(&self) -> Result<(), Problem> {
        let (rows, width) = self.shape;
        if rows == 0 || width == 0 {
            return Ok(());
        }
        let size = self.element.size();
        let last = |count: usize, stride: isize| (count - 1).checked_mul(stride.unsigned_abs());
        let bytes = last(rows, self.strides.0)
            .zip(last(width, self.strides.1))
            .and_then(|(down, across)| down.checked_add(across)?.checked_add(1)?.checked_mul(size))
            .filter(|bytes| isize::try_from(*bytes).is_ok());
        if bytes.is_none() {
            let what =
                format!("a tensor of shape {:?} with strides {:?} is too large", self.shape, self.strides);
            return Err(Problem::usage(what));
        }
        if self.address == 0 || !self.address.is_multiple_of(size) {
            let what = format!("{:#x} is not the address of numbers of {size} bytes", self.address);
            return Err(Problem::usage(what).help("give data_ptr() of a tensor on the CPU"));
        }
        Ok(())
    }

    /// Rows that follow one another in memory as a slice, which is added without a copy; other layouts as a matrix.
    ///
    /// # Safety
    /// As [`rows`](Self::rows), for numbers of this type, and `check` has passed.
    unsafe fn of<'a, T: 'a>(self, values: fn(&'a [T]) -> Values<'a>) -> AnyRows<'a>
    where
        MatRef<'a, T>: Into<AnyRows<'a>>,
    {
        let (rows, width) = self.shape;
        if rows == 0 || width == 0 {
            return AnyRows::from(Rows { values: values(&[]), rows, width, stride: width });
        }
        let numbers = self.address as *const T;
        let stride = if rows == 1 { Some(width) } else { usize::try_from(self.strides.0).ok() };
        let follow = self.strides.1 == 1 || width == 1;
        if let (true, Some(stride)) = (follow, stride.filter(|stride| *stride >= width)) {
            let length = (rows - 1) * stride + width;
            // SAFETY: these are the numbers from the first to the last one of the tensor, in allocated memory. Numbers between the rows
            // belong to the same storage.
            let slice = unsafe { from_raw_parts(numbers, length) };
            return AnyRows::from(Rows { values: values(slice), rows, width, stride });
        }
        // SAFETY: every number of the tensor is in allocated memory, and its distance from the first one fits an `isize`.
        let matrix = unsafe { MatRef::from_raw_parts(numbers, rows, width, self.strides.0, self.strides.1) };
        matrix.into()
    }
}

/// Integers that follow one another in memory, such as token ids.
///
/// # Errors
/// A usage problem for an address that is zero or not aligned.
///
/// # Safety
/// As [`Tensor::rows`].
pub(crate) unsafe fn integers<'a>(address: usize, count: usize) -> Result<&'a [i64], Problem> {
    if count == 0 {
        return Ok(&[]);
    }
    let fits = count.checked_mul(size_of::<i64>()).is_some_and(|bytes| isize::try_from(bytes).is_ok());
    if !fits || address == 0 || !address.is_multiple_of(align_of::<i64>()) {
        let what = format!("{address:#x} is not the address of {count} integers");
        return Err(Problem::usage(what).help("give data_ptr() of a contiguous int64 tensor on the CPU"));
    }
    // SAFETY: the caller promises the memory; address and size were checked.
    Ok(unsafe { from_raw_parts(address as *const i64, count) })
}
