//! Reads the rows of a site ahead, block by block.
//!
//! A thread fills one buffer while the block in the other buffer is in use. So reading overlaps with computing, and a stream of any
//! length needs two blocks of memory. A single block is read without a thread.

use super::{ActivationSet, Part, Site, Span};
use crate::element::Element;
use crate::simd::{Rows, Values};
use crate::storage::{Problem, Source, reserve};
use bytemuck::{cast_slice, cast_slice_mut};
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

/// The numbers of a block, in the format of the file. The element type `u64` aligns numbers of all formats.
type Buffer = Vec<u64>;

/// A stream of row blocks.
pub struct Blocks<'a> {
    set: &'a ActivationSet,
    site: &'a Site,
    /// The block in use.
    buffer: Buffer,
    filled: Receiver<Result<(Span, Buffer), Problem>>,
    /// Returns buffers to the reader. The reader ends when this is dropped.
    empty: Option<Sender<Buffer>>,
    reader: Option<JoinHandle<()>>,
}

/// A block of rows, and its place in the files.
#[derive(Debug)]
pub struct Block<'a> {
    /// The numbers.
    pub rows: Rows<'a>,
    /// The file.
    pub path: &'a Path,
    /// The tensor in the file; for `.npy`, the stem of the file name.
    pub tensor: &'a str,
    /// First row within the tensor.
    pub first_row: u64,
}

impl<'a> Blocks<'a> {
    /// Number of blocks in memory: one in use, one being filled.
    pub const HELD: usize = 2;

    pub(super) fn new(
        set: &'a ActivationSet,
        site: &'a Site,
        mut spans: impl Iterator<Item = Span> + Send + 'static,
    ) -> Self {
        let (empty, empties) = channel();
        let (fill, filled) = channel();
        for _ in 1..Self::HELD {
            // The receiver still exists, so this cannot fail.
            let _ = empty.send(Buffer::new());
        }
        let (first, second) = (spans.next(), spans.next());
        let single = second.is_none();
        let spans = first.into_iter().chain(second).chain(spans);
        let refused = fill.clone();
        let mut reader = Reader {
            files: Arc::clone(&set.files),
            width: site.width,
            parts: site.parts().to_vec(),
            column: Vec::new(),
        };
        let read = move || {
            for span in spans {
                let Ok(mut buffer) = empties.recv() else { return };
                let read = reader.fill(span, &mut buffer).map(|()| (span, buffer));
                let failed = read.is_err();
                if fill.send(read).is_err() || failed {
                    return;
                }
            }
        };
        if single {
            // To start a thread takes longer than to read the rows of a small site.
            read();
            return Self { set, site, buffer: Buffer::new(), filled, empty: Some(empty), reader: None };
        }
        let reader = thread::Builder::new().name("reader".into()).spawn(read);
        let reader = reader.map_err(|error| {
            let problem = Problem::environment(format!("cannot start a thread for reading: {error}"));
            // The receiver still exists, so this cannot fail.
            let _ = refused.send(Err(problem));
        });
        Self { set, site, buffer: Buffer::new(), filled, empty: Some(empty), reader: reader.ok() }
    }

    /// The rows of the next span. `None` after the last span and after an error.
    ///
    /// # Errors
    /// An I/O problem with file and tensor if the rows cannot be read, or if there is not enough memory.
    #[allow(clippy::should_implement_trait, reason = "a block borrows the stream's buffer")]
    pub fn next(&mut self) -> Result<Option<Block<'_>>, Problem> {
        if let Some(empty) = &self.empty {
            // The reader has ended after the last span or an error. Then this fails, which is harmless.
            let _ = empty.send(std::mem::take(&mut self.buffer));
        }
        let Ok(read) = self.filled.recv() else {
            self.join();
            return Ok(None);
        };
        let (span, buffer) = read?;
        self.buffer = buffer;
        let part = &self.site.parts()[span.part];
        let width = self.site.width;
        let numbers = span.rows * width;
        let values = match part.element {
            Element::F64 => Values::F64(&cast_slice(&self.buffer)[..numbers]),
            Element::F32 => Values::F32(&cast_slice(&self.buffer)[..numbers]),
            Element::F16 => Values::F16(&cast_slice(&self.buffer)[..numbers]),
            Element::Bf16 => Values::Bf16(&cast_slice(&self.buffer)[..numbers]),
        };
        let rows = Rows { values, rows: span.rows, width, stride: width };
        let path = self.set.files[part.file].path();
        Ok(Some(Block { rows, path, tensor: &part.tensor, first_row: span.first_row }))
    }

    /// Waits for the reader, and resumes its panic if it had one.
    fn join(&mut self) {
        self.empty = None;
        if let Some(Err(panic)) = self.reader.take().map(JoinHandle::join)
            && !thread::panicking()
        {
            resume_unwind(panic);
        }
    }
}

/// Stops reading when the stream is dropped.
impl Drop for Blocks<'_> {
    fn drop(&mut self) {
        self.join();
    }
}

/// The state of the reading thread.
struct Reader {
    files: Arc<[Source]>,
    width: usize,
    parts: Vec<Part>,
    /// A part of a column of a file in Fortran order, or the image that patches are cut from.
    column: Vec<u8>,
}

impl Reader {
    /// Reads the rows of a span into a buffer, in native byte order.
    fn fill(&mut self, span: Span, buffer: &mut Buffer) -> Result<(), Problem> {
        let part = &self.parts[span.part];
        let read = fill(part, &self.files[part.file], self.width, span, buffer, &mut self.column);
        read.map_err(|problem| problem.in_tensor(&part.tensor))
    }
}

fn fill(
    part: &Part,
    source: &Source,
    width: usize,
    span: Span,
    buffer: &mut Buffer,
    column_buffer: &mut Vec<u8>,
) -> Result<(), Problem> {
    let size = part.element.size();
    let row_length = width.saturating_mul(size);
    let length = span.rows.saturating_mul(row_length);
    resize(buffer, length.div_ceil(size_of::<u64>()), source)?;
    let bytes = &mut cast_slice_mut(buffer)[..length];
    if let Some(unfolding) = &part.unfolding {
        resize(column_buffer, unfolding.image() * size, source)?;
        unfolding.read(part, source, span.first_row, column_buffer, bytes)?;
    } else if part.fortran_order {
        resize(column_buffer, span.rows * size, source)?;
        for column in 0..width {
            // This is in range, because the header was checked against the length of the file.
            let number = column as u64 * part.rows + span.first_row;
            source.read(column_buffer, part.offset + number * size as u64)?;
            let row_starts = bytes[column * size..].chunks_mut(row_length);
            for (row, number) in row_starts.zip(column_buffer.chunks_exact(size)) {
                row[..size].copy_from_slice(number);
            }
        }
    } else {
        source.read(bytes, part.offset + span.first_row * row_length as u64)?;
    }
    if part.big_endian != cfg!(target_endian = "big") {
        part.element.swap_bytes(bytes);
    }
    Ok(())
}

/// Resizes a buffer to `length` numbers. Returns an error if there is not enough memory.
fn resize<T: Default + Copy>(buffer: &mut Vec<T>, length: usize, source: &Source) -> Result<(), Problem> {
    let more = length.saturating_sub(buffer.len());
    reserve(buffer, more as u64).map_err(|problem| problem.in_file(source.path()))?;
    buffer.resize(length, T::default());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::snapshot;
    use expect_test::expect;

    #[test]
    fn missing_memory_is_reported() {
        let source = Source::from_bytes("a.safetensors", Vec::new());
        let problem = resize::<u64>(&mut Vec::new(), usize::MAX, &source).unwrap_err();
        expect![[r#"
            a.safetensors: not enough memory for 18446744073709551615 bytes
        "#]]
        .assert_eq(&snapshot(problem));
    }
}
