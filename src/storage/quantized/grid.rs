//! Grids of scales or zero points: one number for each block of a matrix.

use super::super::Problem;
use super::codes::Code;
use super::parts::{Files, Part};
use std::ops::Range;

/// One number for each block of rows and columns of a matrix, or of each of several matrices below one another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grid {
    pub(super) part: Part,
    pub(super) code: Code,
    /// Rows and columns of a block. Blocks at the lower and right edge can be smaller.
    pub(super) block: [u64; 2],
    /// Rows of one matrix.
    pub(super) rows: u64,
    /// Columns of a matrix.
    pub(super) columns: u64,
}

impl Grid {
    /// The shape of the grid of one matrix.
    pub(super) fn shape(rows: u64, columns: u64, block: [u64; 2]) -> [u64; 2] {
        [rows.div_ceil(block[0]), columns.div_ceil(block[1])]
    }

    fn row_of(&self, row: u64) -> u64 {
        let [grid_rows, _] = Self::shape(self.rows, self.columns, self.block);
        row / self.rows * grid_rows + row % self.rows / self.block[0]
    }

    /// Reads the numbers for a range of rows.
    pub(super) fn read(&self, files: Files<'_>, rows: &Range<u64>) -> Result<Read<'_>, Problem> {
        let [_, width] = Self::shape(self.rows, self.columns, self.block);
        let first = self.row_of(rows.start);
        let end = self.row_of(rows.end.saturating_sub(1).max(rows.start)) + 1;
        let values = self.part.scales(files, self.code, first * width..end * width)?;
        Ok(Read { grid: self, first, width: width as usize, values })
    }
}

/// Numbers of a grid in memory.
pub(super) struct Read<'a> {
    grid: &'a Grid,
    /// The first row of the grid that was read.
    first: u64,
    width: usize,
    pub(super) values: Vec<f32>,
}

impl Read<'_> {
    /// The numbers for a row of the matrix, one for each block of columns.
    pub(super) fn of_row(&self, row: u64) -> &[f32] {
        let at = (self.grid.row_of(row) - self.first) as usize * self.width;
        &self.values[at..at + self.width]
    }

    /// Combines each number of a tile with the number of its block.
    pub(super) fn apply(
        &self,
        (rows, columns): (&Range<u64>, &Range<u64>),
        out: &mut [f32],
        combine: impl Fn(&mut f32, f32),
    ) {
        let width = (columns.end - columns.start) as usize;
        let block = self.grid.block[1];
        for (row, line) in rows.clone().zip(out.chunks_mut(width.max(1))) {
            let numbers = self.of_row(row);
            let (mut at, mut rest) = (columns.start, line);
            while !rest.is_empty() {
                let index = at / block;
                // At most the length of the rest.
                let count = ((index + 1).saturating_mul(block) - at).min(rest.len() as u64);
                let (now, later) = rest.split_at_mut(count as usize);
                now.iter_mut().for_each(|value| combine(value, numbers[index as usize]));
                (at, rest) = (at + count, later);
            }
        }
    }
}
