//! A quantized weight, and the reading of its numbers.

use super::super::{Problem, zeros};
use super::parts::{Files, Part};
use std::fmt;
use std::ops::Range;

/// Numbers of a transposed weight that are decoded at once: 1 MiB.
const TILE: u64 = 1 << 18;

/// Decodes parts of a matrix. Several matrices of equal shape count as one, below one another.
pub(super) trait Decoder: fmt::Debug + Send + Sync {
    /// Decodes the numbers in these rows and columns, row by row.
    ///
    /// # Errors
    /// Problems of reading; data problems for contents that do not fit.
    ///
    /// # Panics
    /// If `out` has another length, or a row or column does not exist.
    fn decode(
        &self,
        files: Files<'_>,
        rows: Range<u64>,
        columns: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), Problem>;
}

/// A quantized weight.
#[derive(Debug)]
pub(crate) struct Quantized {
    /// The name of the format, such as `NF4`.
    pub(super) format: String,
    /// Rows and columns of the decoder's matrices, and their number.
    pub(super) matrix: [u64; 2],
    pub(super) count: u64,
    /// True if the weight consists of the transposes of these matrices.
    pub(super) transposed: bool,
    /// True if the weight has an axis for the matrices, even if there is one.
    pub(super) stacked: bool,
    /// The stored tensors. The first one holds the codes.
    pub(super) parts: Vec<Part>,
    pub(super) decoder: Box<dyn Decoder>,
}

impl Quantized {
    /// The name of the format, such as `NF4`.
    pub(crate) fn format(&self) -> &str {
        &self.format
    }

    /// The lengths of the axes of the weight.
    pub(crate) fn shape(&self) -> Vec<u64> {
        let [rows, columns] = self.matrix;
        let matrix = if self.transposed { [columns, rows] } else { [rows, columns] };
        let count = self.stacked.then_some(self.count);
        count.into_iter().chain(matrix).collect()
    }

    /// True if it is the parameter of fused experts whose layout is `[experts, inputs, outputs]`, whatever the model.
    pub(crate) fn is_transposed_parameter(&self) -> bool {
        self.stacked && self.transposed
    }

    /// Decodes consecutive numbers of the weight, from this index on.
    ///
    /// # Errors
    /// Problems of reading; data problems for contents that do not fit.
    ///
    /// # Panics
    /// If the numbers exceed the weight.
    pub(crate) fn read(&self, files: Files<'_>, first: u64, out: &mut [f32]) -> Result<(), Problem> {
        let [rows, columns] = self.matrix;
        let (mut at, mut rest) = (first, out);
        while !rest.is_empty() {
            let left = rest.len() as u64;
            // The lines of the weight: the rows of the matrices, or their columns.
            let length = if self.transposed { rows } else { columns };
            let (line, start) = (at / length, at % length);
            let lines_left = if self.transposed { columns - line % columns } else { left };
            let (lines, places) = match start == 0 && left >= length {
                true => ((left / length).min(lines_left), 0..length),
                false => (1, start..length.min(start + left)),
            };
            let lines = if self.transposed { lines } else { lines.min((TILE / length).max(1)) };
            let count = lines * (places.end - places.start);
            let (now, later) = rest.split_at_mut(count as usize);
            match self.transposed {
                false => self.decoder.decode(files, line..line + lines, places, now)?,
                true => {
                    let matrix = line / columns;
                    let lines = line % columns..line % columns + lines;
                    let places = matrix * rows + places.start..matrix * rows + places.end;
                    self.read_transposed(files, places, lines, now)?;
                }
            }
            (at, rest) = (at + count, later);
        }
        Ok(())
    }

    /// Decodes rows and columns of the matrices, and writes their transpose.
    fn read_transposed(
        &self,
        files: Files<'_>,
        rows: Range<u64>,
        columns: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), Problem> {
        let (length, width) = ((rows.end - rows.start) as usize, (columns.end - columns.start) as usize);
        // The bytes of whole rows are read, so these count.
        let step = (TILE / self.matrix[1]).max(1);
        let mut tile = Vec::new();
        let mut row = rows.start;
        while row < rows.end {
            let end = (row + step).min(rows.end);
            let count = (end - row) as usize;
            if tile.len() != count * width {
                tile = zeros((count * width) as u64)?;
            }
            self.decoder.decode(files, row..end, columns.clone(), &mut tile)?;
            let before = (row - rows.start) as usize;
            for (column, line) in out.chunks_mut(length).enumerate() {
                for (index, out) in line[before..before + count].iter_mut().enumerate() {
                    *out = tile[index * width + column];
                }
            }
            row = end;
        }
        Ok(())
    }
}
