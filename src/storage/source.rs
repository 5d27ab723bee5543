//! Input files: opening, reading at offsets, and detecting changes during a run.

use super::faults::{Step, step};
use super::mapping::Mapping;
use super::memory::zeros;
use super::read_at::{InMemory, ReadAt};
use super::{Problem, quoted};
use std::fs::{self, File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// How a file is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// The default: the same as `Read`.
    #[default]
    Auto,
    /// `pread` into a buffer.
    Read,
    /// A memory mapping, whose bytes are copied out. Another process may write to the file meanwhile: then the copies can be a mixture of
    /// old and new bytes, as with `Read`. If the file is truncated meanwhile, the system kills the process.
    Mmap,
}

/// Identifies a version of a file. If it differs between two calls, the file was changed or replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Device and inode.
    pub file: (u64, u64),
    /// Length in bytes.
    pub length: u64,
    /// Time of last modification, in nanoseconds since 1970.
    pub modified: i128,
}

impl Identity {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            file: (metadata.dev(), metadata.ino()),
            length: metadata.len(),
            modified: i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()),
        }
    }
}

/// An opened input file.
pub struct Source {
    path: PathBuf,
    bytes: Box<dyn ReadAt>,
    identity: Option<Identity>,
}

impl Source {
    /// Opens a regular file, or a link to one.
    ///
    /// The kind of the file is checked before it is opened, because opening a pipe would wait for a writer.
    ///
    /// # Errors
    /// An I/O problem if the file is missing, is not a regular file, or cannot be opened or mapped.
    pub fn open(path: &Path, access: Access) -> Result<Self, Problem> {
        let failed = |error: io::Error| {
            let problem = Problem::io("cannot open", &error).in_file(path);
            match error.kind() {
                io::ErrorKind::NotFound if path.to_string_lossy().contains(['*', '?']) => {
                    problem.help("the shell expands patterns: remove the quotes, and check that files match")
                }
                io::ErrorKind::NotFound => problem.help("check the path"),
                io::ErrorKind::PermissionDenied => {
                    problem.help("give this user read permission to the file and its folder")
                }
                _ => problem,
            }
        };
        refuse_irregular(path, &fs::metadata(path).map_err(failed)?)?;
        let file = step(Step::Open, path).and_then(|()| File::open(path)).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        refuse_irregular(path, &metadata)?;
        let bytes: Box<dyn ReadAt> = match access {
            Access::Auto | Access::Read => Box::new(Positioned { file, length: metadata.len() }),
            Access::Mmap => {
                Box::new(step(Step::Map, path).and_then(|()| Mapping::of(&file)).map_err(|error| {
                    Problem::io("cannot map the file into memory", &error)
                        .in_file(path)
                        .help("read it with --io read")
                })?)
            }
        };
        tracing::info!(file = %quoted(&path.to_string_lossy()), bytes = metadata.len(), "opened");
        Ok(Self { path: path.into(), bytes, identity: Some(Identity::of(&metadata)) })
    }

    /// As [`open`](Self::open), for one of several files. So many files that they could exceed the limit of the system are opened again for
    /// each reading, whatever the access.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn open_one_of(count: usize, path: &Path, access: Access) -> Result<Self, Problem> {
        if count <= MOST_OPEN {
            return Self::open(path, access);
        }
        let opened = Self::open(path, Access::Read)?;
        let Some(identity) = opened.identity else { return Ok(opened) };
        let (path, length) = (opened.path, identity.length);
        let bytes = Box::new(Reopened { path: path.clone(), file: identity.file, length });
        Ok(Self { path, bytes, identity: Some(identity) })
    }

    /// Creates a source of bytes in memory. `name` takes the place of the path in messages.
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Self {
        Self::from_reader(name.into(), Box::new(InMemory(bytes)))
    }

    /// Creates a source from a reader. `path` is used in messages.
    pub fn from_reader(path: PathBuf, bytes: Box<dyn ReadAt>) -> Self {
        Self { path, bytes, identity: None }
    }

    /// The path that it was opened with.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length in bytes.
    pub fn length(&self) -> u64 {
        self.bytes.len()
    }

    /// Identifies the version of the file; `None` if it was not opened as a file.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// An I/O problem if the file cannot be read, or was truncated after it was opened.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), Problem> {
        tracing::debug!(file = %quoted(&self.path.to_string_lossy()), offset, bytes = buffer.len(), "read");
        let read = step(Step::Read, &self.path).and_then(|()| self.bytes.read_exact_at(buffer, offset));
        read.map_err(|error| {
            let problem = match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    let length = fs::metadata(&self.path).map_or(self.length(), |metadata| metadata.len());
                    let what = too_short(length, offset, buffer.len() as u64);
                    Problem::environment(format!("{what}; perhaps it was truncated during the run"))
                }
                _ => Problem::io("cannot read", &error),
            };
            problem.in_file(&self.path)
        })
    }

    /// Passes the bytes of a range to `each` in order, in blocks of 1 MiB; the last one can be shorter.
    ///
    /// # Errors
    /// As [`read_vec`](Self::read_vec), and the errors of `each`.
    pub(crate) fn for_each_block(
        &self,
        range: Range<u64>,
        mut each: impl FnMut(Vec<u8>) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        const BLOCK: u64 = 1 << 20;
        let mut at = range.start;
        while at < range.end {
            let length = BLOCK.min(range.end - at);
            each(self.read_vec(at, length)?)?;
            at += length;
        }
        Ok(())
    }

    /// Reads `length` bytes from `offset` on. Allocates nothing if the file is shorter than that.
    ///
    /// # Errors
    /// A data problem if the file is shorter, an I/O problem if it cannot be read or there is no memory.
    pub fn read_vec(&self, offset: u64, length: u64) -> Result<Vec<u8>, Problem> {
        if offset.checked_add(length).is_none_or(|end| end > self.length()) {
            return Err(Problem::data(too_short(self.length(), offset, length)).in_file(&self.path));
        }
        let mut bytes = zeros(length).map_err(|problem| problem.in_file(&self.path))?;
        self.read(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Checks that the file has not changed since it was opened (inode, length and time of modification).
    ///
    /// Bytes in memory and other readers pass.
    ///
    /// # Errors
    /// A data problem that says what changed; an I/O problem if the file is not accessible any more.
    pub fn check_unchanged(&self) -> Result<(), Problem> {
        let Some(before) = &self.identity else { return Ok(()) };
        let now = fs::metadata(&self.path).map_err(|error| {
            Problem::io("cannot check whether the file changed while it was read", &error).in_file(&self.path)
        })?;
        let now = Identity::of(&now);
        if now == *before {
            return Ok(());
        }
        let how = if now.file != before.file {
            "it was replaced by another file".into()
        } else if now.length != before.length {
            format!("its length changed from {} to {} bytes", before.length, now.length)
        } else {
            "its time of modification changed".into()
        };
        Err(Problem::change(format!("file changed while it was read: {how}"))
            .in_file(&self.path)
            .help("make sure that no program writes to it, and run again"))
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source")
            .field("path", &self.path)
            .field("length", &self.length())
            .field("identity", &self.identity)
            .finish()
    }
}

fn refuse_irregular(path: &Path, metadata: &Metadata) -> Result<(), Problem> {
    let kind = metadata.file_type();
    let found = if kind.is_file() {
        return Ok(());
    } else if kind.is_dir() {
        "a folder"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    Err(Problem::environment(format!("not a regular file but {found}"))
        .in_file(path)
        .help("give the path of a regular file"))
}

fn too_short(length: u64, offset: u64, count: u64) -> String {
    let needed = offset.saturating_add(count);
    format!("file is too short: it has {length} bytes, but at least {needed} are needed")
}

/// The most files of one set that stay open.
const MOST_OPEN: usize = 128;

/// A file that is opened for each reading.
struct Reopened {
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
    length: u64,
}

impl ReadAt for Reopened {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let file = File::open(&self.path)?;
        if Identity::of(&file.metadata()?).file != self.file {
            return Err(io::Error::other("it was replaced by another file"));
        }
        file.read_exact_at(buffer, offset)
    }
}

/// A file that is read with `pread`. The standard library repeats calls that a signal interrupts or that return too few bytes.
struct Positioned<F> {
    file: F,
    length: u64,
}

impl<F: FileExt + Send + Sync> ReadAt for Positioned<F> {
    fn len(&self) -> u64 {
        self.length
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}

#[cfg(test)]
mod tests;
