//! Codes of one byte each, with scales and perhaps zero points.

use super::super::Problem;
use super::codes::Code;
use super::grid::Grid;
use super::parts::{Files, Part};
use super::weight::Decoder;
use std::ops::Range;

/// `W = (code − zero) · scale`, or `code · scale · factor`.
#[derive(Debug)]
pub(super) struct Scaled {
    pub(super) codes: Part,
    pub(super) code: Code,
    /// Columns of the matrix.
    pub(super) columns: u64,
    pub(super) scales: Grid,
    pub(super) zeros: Option<Grid>,
    pub(super) factor: Option<f32>,
}

impl Decoder for Scaled {
    fn decode(
        &self,
        files: Files<'_>,
        rows: Range<u64>,
        columns: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), Problem> {
        let bytes = self.codes.rows(files, &rows, self.columns)?;
        let width = (columns.end - columns.start) as usize;
        if columns == (0..self.columns) {
            self.code.decode(&bytes, out);
        } else {
            for (line, bytes) in out.chunks_mut(width).zip(bytes.chunks(self.columns as usize)) {
                self.code.decode(&bytes[columns.start as usize..columns.end as usize], line);
            }
        }
        if let Some(zeros) = &self.zeros {
            zeros.read(files, &rows)?.apply((&rows, &columns), out, |value, zero| *value -= zero);
        }
        self.scales.read(files, &rows)?.apply((&rows, &columns), out, |value, scale| *value *= scale);
        if let Some(factor) = self.factor {
            out.iter_mut().for_each(|value| *value *= factor);
        }
        Ok(())
    }
}
