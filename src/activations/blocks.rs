//! Reading the rows of a site, block by block.

use super::{ActivationSet, Part, Site};
use crate::element::Element;
use crate::simd::{Rows, Values};
use crate::storage::{Problem, Source};
use bytemuck::{cast_slice, cast_slice_mut};
use std::path::Path;

/// A stream of row blocks through one reused buffer.
pub struct Blocks<'a> {
    files: &'a [Source],
    width: usize,
    /// The part that is being read and those after it; the first has rows left.
    parts: &'a [Part],
    /// Rows of the first part that were read.
    read: u64,
    /// The numbers of a block, in the format of the file. Words, so that numbers of every format are aligned in it.
    buffer: Vec<u64>,
    /// A stretch of a column of a file in Fortran order.
    column: Vec<u8>,
}

/// Some rows and where they are from.
#[derive(Debug)]
pub struct Block<'a> {
    /// The numbers.
    pub rows: Rows<'a>,
    /// The file.
    pub path: &'a Path,
    /// The tensor in it (for `.npy` the file's stem).
    pub tensor: &'a str,
    /// Row of the file's tensor that comes first here.
    pub first_row: u64,
}

impl<'a> Blocks<'a> {
    pub(super) fn new(set: &'a ActivationSet, site: &'a Site) -> Self {
        let mut blocks = Self {
            files: &set.files,
            width: site.width,
            parts: &site.parts,
            read: 0,
            buffer: Vec::new(),
            column: Vec::new(),
        };
        blocks.leave_finished_parts();
        blocks
    }

    /// Rows left in the part that is being read (of the next part when at a border; 0 at the end).
    pub fn rows_left_in_part(&self) -> u64 {
        self.parts.first().map_or(0, |part| part.rows - self.read)
    }

    /// The next at most `rows` rows, never across two parts; `None` at the end.
    ///
    /// # Errors
    /// An I/O problem with file and tensor if they cannot be read, or if there is no memory for them.
    ///
    /// # Panics
    /// If `rows` is zero.
    pub fn next(&mut self, rows: usize) -> Result<Option<Block<'_>>, Problem> {
        assert!(rows > 0, "a block has at least one row");
        let Some(part) = self.parts.first() else { return Ok(None) };
        let source = &self.files[part.file];
        let rows = usize::try_from(self.rows_left_in_part()).map_or(rows, |left| left.min(rows));
        let first_row = self.read;
        self.fill(part, source, rows).map_err(|problem| problem.in_tensor(&part.tensor))?;
        self.read += rows as u64;
        self.leave_finished_parts();
        let numbers = rows * self.width;
        let values = match part.element {
            Element::F64 => Values::F64(&cast_slice(&self.buffer)[..numbers]),
            Element::F32 => Values::F32(&cast_slice(&self.buffer)[..numbers]),
            Element::F16 => Values::F16(&cast_slice(&self.buffer)[..numbers]),
            Element::Bf16 => Values::Bf16(&cast_slice(&self.buffer)[..numbers]),
        };
        let rows = Rows { values, rows, width: self.width, stride: self.width };
        Ok(Some(Block { rows, path: source.path(), tensor: &part.tensor, first_row }))
    }

    fn leave_finished_parts(&mut self) {
        while let [part, rest @ ..] = self.parts
            && self.read == part.rows
        {
            self.parts = rest;
            self.read = 0;
        }
    }

    /// Reads the next `rows` rows of a part into the buffer, in native byte order.
    fn fill(&mut self, part: &Part, source: &Source, rows: usize) -> Result<(), Problem> {
        let size = part.element.size();
        let row_length = self.width.checked_mul(size).ok_or_else(|| out_of_memory(source))?;
        let length = rows.checked_mul(row_length).ok_or_else(|| out_of_memory(source))?;
        resize(&mut self.buffer, length.div_ceil(size_of::<u64>()), source)?;
        let bytes = &mut cast_slice_mut(&mut self.buffer)[..length];
        if part.fortran_order {
            resize(&mut self.column, rows * size, source)?;
            for column in 0..self.width {
                // In range: the header was checked to describe no more than the file holds.
                let number = column as u64 * part.rows + self.read;
                source.read(&mut self.column, part.offset + number * size as u64)?;
                let row_starts = bytes[column * size..].chunks_mut(row_length);
                for (row, number) in row_starts.zip(self.column.chunks_exact(size)) {
                    row[..size].copy_from_slice(number);
                }
            }
        } else {
            source.read(bytes, part.offset + self.read * row_length as u64)?;
        }
        if part.big_endian != cfg!(target_endian = "big") {
            part.element.swap_bytes(bytes);
        }
        Ok(())
    }
}

/// Gives a buffer `length` numbers, without aborting when there is no memory for them.
fn resize<T: Default + Copy>(buffer: &mut Vec<T>, length: usize, source: &Source) -> Result<(), Problem> {
    if length > buffer.len() {
        buffer.try_reserve_exact(length - buffer.len()).map_err(|_| out_of_memory(source))?;
    }
    buffer.resize(length, T::default());
    Ok(())
}

fn out_of_memory(source: &Source) -> Problem {
    Problem::environment("no memory for a block of its rows").in_file(source.path())
}
