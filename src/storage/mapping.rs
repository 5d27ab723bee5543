//! Memory-mapped files. Only this file of the room needs `unsafe`.

use memmap2::Mmap;
use std::fs::File;
use std::io;

/// Maps a file read-only. Callers must only copy bytes out of the mapping.
#[allow(unsafe_code, reason = "a mapping cannot be made without it")]
pub(super) fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the mapping is read-only, and its only user is `Source`, through `ReadAt::read_exact_at`. That copies plain bytes that may
    // have any value, and keeps no reference. No program can prevent others from writing to the file or truncating it meanwhile. The
    // user who chooses `Access::Mmap` promises that nobody does so. `Source::check_unchanged` detects a write; a truncation may end the
    // process before.
    unsafe { Mmap::map(file) }
}
