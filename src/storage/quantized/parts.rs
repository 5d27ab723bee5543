//! The stored tensors of a quantized weight.

use super::super::safetensors::{Header, Tensor};
use super::super::{Problem, Source, product, quoted, zeros};
use super::codes::Code;
use std::ops::Range;

/// The files of a checkpoint.
pub(in super::super) type Files<'a> = &'a [(Source, Header)];

/// A stored tensor, and the index of its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) file: usize,
    pub(super) tensor: Tensor,
}

impl Part {
    pub(super) fn shape(&self) -> &[u64] {
        &self.tensor.shape
    }

    pub(super) fn dtype(&self) -> &str {
        &self.tensor.dtype
    }

    /// How many numbers it has.
    pub(super) fn count(&self) -> u64 {
        // The header was checked, so the product is in range.
        product(&self.tensor.shape).unwrap_or(0)
    }

    /// Reads a range of its bytes.
    pub(super) fn bytes(&self, files: Files<'_>, range: Range<u64>) -> Result<Vec<u8>, Problem> {
        let (source, _) = &files[self.file];
        if range.end > self.tensor.length {
            let what = format!("{} bytes are needed, but it has {}", range.end, self.tensor.length);
            return Err(Problem::data(what).in_file(source.path()).in_tensor(&self.name));
        }
        let read = source.read_vec(self.tensor.offset + range.start, range.end - range.start);
        read.map_err(|problem| problem.in_tensor(&self.name))
    }

    /// Reads consecutive rows of a matrix with this number of bytes in each row.
    pub(super) fn rows(
        &self,
        files: Files<'_>,
        rows: &Range<u64>,
        row_bytes: u64,
    ) -> Result<Vec<u8>, Problem> {
        self.bytes(files, rows.start * row_bytes..rows.end * row_bytes)
    }

    /// Reads all of it.
    pub(super) fn all(&self, files: Files<'_>) -> Result<Vec<u8>, Problem> {
        self.bytes(files, 0..self.tensor.length)
    }

    /// Reads a range of its numbers as scales.
    pub(super) fn scales(
        &self,
        files: Files<'_>,
        code: Code,
        range: Range<u64>,
    ) -> Result<Vec<f32>, Problem> {
        let size = code.size() as u64;
        let bytes = self.bytes(files, range.start * size..range.end * size)?;
        let mut values = zeros(range.end - range.start)?;
        code.decode(&bytes, &mut values);
        Ok(values)
    }

    /// Reads all of its numbers, which are integers of 32 bits, as indices below `end`.
    pub(super) fn indices(&self, files: Files<'_>, end: u64) -> Result<Vec<usize>, Problem> {
        let bytes = self.all(files)?;
        let numbers = bytes.as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes));
        let index = |number: i32| match u64::try_from(number) {
            Ok(index) if index < end => Ok(index as usize),
            _ => Err(self.problem(
                files,
                format!("the group {number} of an input does not exist: there are {end} groups"),
            )),
        };
        numbers.map(index).collect()
    }

    /// A data problem about it.
    pub(super) fn problem(&self, files: Files<'_>, what: impl Into<String>) -> Problem {
        Problem::data(what).in_file(files[self.file].0.path()).in_tensor(&self.name)
    }

    /// The problem of an unexpected shape.
    pub(super) fn wrong_shape(&self, files: Files<'_>, expected: &str) -> Problem {
        self.problem(files, format!("expected the shape {expected}, found {:?}", self.tensor.shape))
    }

    /// Checks its number format.
    pub(super) fn require_dtype(&self, files: Files<'_>, expected: &str) -> Result<(), Problem> {
        match self.dtype() == expected {
            true => Ok(()),
            false => {
                Err(self
                    .problem(files, format!("expected {expected} numbers, found {}", quoted(self.dtype()))))
            }
        }
    }

    /// Its number format, for scales.
    pub(super) fn scale_code(&self, files: Files<'_>) -> Result<Code, Problem> {
        Code::of_scales(self.dtype()).ok_or_else(|| {
            let expected = "expected scales in F64, F32, F16, BF16, F8_E4M3, F8_E8M0 or U8";
            self.problem(files, format!("{expected}, found {}", quoted(self.dtype())))
        })
    }
}
