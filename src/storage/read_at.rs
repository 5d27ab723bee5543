//! Reading at an offset: the trait, and bytes in memory behind it.

use std::io;

/// Bytes of a fixed length that can be read at any offset, from any thread.
pub trait ReadAt: Send + Sync {
    /// Length in bytes.
    fn len(&self) -> u64;
    /// Whether there is nothing to read.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Fills `buffer` from `offset`; an end before that is `UnexpectedEof`.
    ///
    /// # Errors
    /// What the system says; `UnexpectedEof` if the bytes end before the buffer is full.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for Vec<u8> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        copy_at(self, buffer, offset)
    }
}

/// [`ReadAt::read_exact_at`] of bytes in memory.
pub(super) fn copy_at(bytes: &[u8], buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let from = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..));
    let found = from.and_then(|from| from.get(..buffer.len()));
    buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
    Ok(())
}
