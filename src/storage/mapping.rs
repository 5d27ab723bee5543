//! Memory-mapped files. Only this file of the room needs `unsafe`.
//!
//! Another process can write to a mapped file at any time. So no reference to its bytes exists anywhere: a [`Mapping`] only copies bytes
//! out, with volatile reads. If the file is truncated meanwhile, the system ends the process with SIGBUS.

use super::read_at::ReadAt;
use memmap2::{MmapOptions, MmapRaw};
use std::fs::File;
use std::io;

/// A file that is mapped read-only.
pub(super) struct Mapping(MmapRaw);

impl Mapping {
    /// Maps a whole file.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        MmapOptions::new().map_raw_read_only(file).map(Self)
    }
}

impl ReadAt for Mapping {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    #[allow(unsafe_code, reason = "bytes that another process can change are read through pointers")]
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).ok();
        let end = offset.and_then(|offset| offset.checked_add(buffer.len()));
        let (Some(offset), Some(_)) = (offset, end.filter(|end| *end <= self.0.len())) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let from = self.0.as_ptr().wrapping_add(offset);
        let (first, words) = buffer.split_at_mut(from.align_offset(size_of::<u64>()).min(buffer.len()));
        let (words, last) = words.as_chunks_mut::<{ size_of::<u64>() }>();
        let words_from = from.wrapping_add(first.len());
        let last_from = words_from.wrapping_add(size_of_val(words));
        // SAFETY: the bytes lie in the mapping, as was just checked, and it stays mapped while `self` is borrowed. Words begin at a
        // multiple of their size. This process never writes to the mapping and has no reference to it. Another process may write: the
        // reads are volatile, so the compiler assumes nothing about the bytes, and any bytes are valid numbers.
        unsafe {
            for (index, byte) in first.iter_mut().enumerate() {
                *byte = from.wrapping_add(index).read_volatile();
            }
            for (index, word) in words.iter_mut().enumerate() {
                *word = words_from.cast::<u64>().wrapping_add(index).read_volatile().to_ne_bytes();
            }
            for (index, byte) in last.iter_mut().enumerate() {
                *byte = last_from.wrapping_add(index).read_volatile();
            }
        }
        Ok(())
    }
}
