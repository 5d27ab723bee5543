//! Float4 with two codes in a byte, the low half first, and one scale for each group of a row: MXFP4 and NVFP4.

use super::super::Problem;
use super::codes::Code;
use super::grid::Grid;
use super::parts::{Files, Part};
use super::weight::Decoder;
use std::ops::Range;

/// The values of the codes: one bit for the sign, two of exponent, one of mantissa.
const VALUES: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// `W = value · scale`, or `W = value · (scale / scale_of_scales)`.
#[derive(Debug)]
pub(super) struct Fp4 {
    pub(super) codes: Part,
    /// An even number of columns.
    pub(super) columns: u64,
    pub(super) scales: Grid,
    /// One number, and its format.
    pub(super) scale_of_scales: Option<(Part, Code)>,
}

impl Decoder for Fp4 {
    fn decode(
        &self,
        files: Files<'_>,
        rows: Range<u64>,
        columns: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), Problem> {
        let row_bytes = self.columns / 2;
        let bytes = self.codes.rows(files, &rows, row_bytes)?;
        let width = (columns.end - columns.start) as usize;
        for (line, bytes) in out.chunks_mut(width).zip(bytes.chunks(row_bytes as usize)) {
            for (column, value) in (columns.start as usize..).zip(line) {
                let byte = bytes[column / 2];
                *value = VALUES[usize::from(if column % 2 == 0 { byte & 15 } else { byte >> 4 })];
            }
        }
        let mut scales = self.scales.read(files, &rows)?;
        if let Some((part, code)) = &self.scale_of_scales {
            let outer = part.scales(files, *code, 0..1)?[0];
            scales.values.iter_mut().for_each(|scale| *scale /= outer);
        }
        scales.apply((&rows, &columns), out, |value, scale| *value *= scale);
        Ok(())
    }
}
