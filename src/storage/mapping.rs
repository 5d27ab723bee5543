//! The mapping of a file: the one place of this room that needs `unsafe`.

use super::read_at::{ReadAt, copy_at};
use memmap2::Mmap;
use std::fs::File;
use std::io;

/// A file mapped read-only. Its bytes are only ever copied out.
pub(super) struct Mapping(Mmap);

impl Mapping {
    #[allow(unsafe_code, reason = "a mapping cannot be made without it")]
    pub(super) fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the mapping is read-only, and no reference into it outlives `read_exact_at`, which copies
        // plain bytes that may have any value. What no program can ensure is that nobody else writes to the
        // file or truncates it meanwhile. Whoever chooses `Access::Mmap` promises that;
        // `Source::check_unchanged` tells when it was broken, unless a truncation ended the process before.
        unsafe { Mmap::map(file) }.map(Self)
    }
}

impl ReadAt for Mapping {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        copy_at(&self.0, buffer, offset)
    }
}
