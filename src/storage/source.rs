//! Input files: opening, reading at offsets, and detecting changes during a run.

use super::faults::{Step, step};
use super::mapping::Mapping;
use super::memory::zeros;
use super::read_at::{InMemory, ReadAt};
use super::{Problem, quoted};
use std::fs::{self, File, Metadata};
use std::io;
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
mod tests {
    use super::super::faults::{Faults, inject};
    use super::super::{Category, snapshot};
    use super::*;
    use expect_test::expect;
    use quickcheck::quickcheck;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::SystemTime;

    fn refused(path: &Path) -> Problem {
        Source::open(path, Access::Auto).expect_err("must be refused")
    }

    quickcheck! {
        /// The result of a run must not depend on the way of reading.
        fn all_ways_of_reading_agree(content: Vec<u8>, offset: u16, length: u16) -> bool {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("content");
            fs::write(&path, &content).unwrap();
            let offset = usize::from(offset) % (content.len() + 2);
            let length = usize::from(length) % (content.len() + 2);
            let expected = content.get(offset..offset + length);
            [Access::Auto, Access::Read, Access::Mmap]
                .map(|access| Source::open(&path, access).unwrap())
                .into_iter()
                .chain([Source::open_one_of(MOST_OPEN + 1, &path, Access::Auto).unwrap()])
                .chain([Source::from_bytes("content", content.clone())])
                .all(|source| {
                    let mut buffer = vec![0; length];
                    let read = source.read(&mut buffer, offset as u64).is_ok();
                    let vec = source.read_vec(offset as u64, length as u64).ok();
                    source.length() == content.len() as u64
                        && vec.as_deref() == expected
                        // An empty read beyond the end may succeed or not.
                        && (length == 0 || read == expected.is_some())
                        && (!read || expected.is_none_or(|expected| expected == buffer))
                })
        }
    }

    #[test]
    fn offsets_beyond_the_end_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("content");
        fs::write(&path, b"12345").unwrap();
        let mut texts = String::new();
        for access in [Access::Read, Access::Mmap] {
            let source = Source::open(&path, access).unwrap();
            assert!(source.read(&mut [0; 1], u64::MAX).is_err());
            for read in [source.read_vec(3, 3), source.read_vec(u64::MAX, 2)] {
                texts += &snapshot(read.unwrap_err());
            }
        }
        expect![[r#"
            FOLDER/content: file is too short: it has 5 bytes, but at least 6 are needed
            FOLDER/content: file is too short: it has 5 bytes, but at least 18446744073709551615 are needed
            FOLDER/content: file is too short: it has 5 bytes, but at least 6 are needed
            FOLDER/content: file is too short: it has 5 bytes, but at least 18446744073709551615 are needed
        "#]]
        .assert_eq(&texts);
    }

    #[test]
    fn irregular_and_missing_files_are_refused_without_blocking() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let circle = folder.path().join("circle");
        symlink(&circle, &circle).unwrap();
        let (missing, pattern) = (folder.path().join("missing"), folder.path().join("*.npy"));
        let mut texts = String::new();
        for path in [folder.path(), &pipe, &socket, Path::new("/dev/null"), &missing, &pattern, &circle] {
            let problem = refused(path);
            assert_eq!(problem.category(), Category::Io);
            texts += &snapshot(problem);
        }
        expect![[r#"
            FOLDER: not a regular file but a folder; help: give the path of a regular file
            FOLDER/pipe: not a regular file but a pipe; help: give the path of a regular file
            FOLDER/socket: not a regular file but a socket; help: give the path of a regular file
            /dev/null: not a regular file but a device; help: give the path of a regular file
            FOLDER/missing: cannot open: No such file or directory (os error 2); help: check the path
            FOLDER/*.npy: cannot open: No such file or directory (os error 2); help: the shell expands patterns: remove the quotes, and check that files match
            FOLDER/circle: cannot open: Too many levels of symbolic links (os error 40)
        "#]].assert_eq(&texts);
    }

    #[test]
    fn files_that_cannot_be_opened_or_mapped_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("content");
        fs::write(&path, b"12345").unwrap();
        let faults = [
            (io::ErrorKind::PermissionDenied, Access::Read, 0),
            (io::ErrorKind::Other, Access::Read, 0),
            (io::ErrorKind::Unsupported, Access::Mmap, 1),
        ];
        let texts = faults.map(|(kind, access, pass)| {
            let faults = Faults::after(pass, false, kind);
            let (opened, _) = inject(faults, folder.path(), || Source::open(&path, access));
            snapshot(opened.unwrap_err())
        });
        expect![[r#"
            FOLDER/content: cannot open: permission denied; help: give this user read permission to the file and its folder
            FOLDER/content: cannot open: other error
            FOLDER/content: cannot map the file into memory: unsupported; help: read it with --io read
        "#]].assert_eq(&texts.concat());
    }

    #[test]
    fn missing_memory_is_reported() {
        struct Huge;
        impl ReadAt for Huge {
            fn len(&self) -> u64 {
                u64::MAX
            }
            fn read_exact_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
                Ok(())
            }
        }
        let source = Source::from_reader("huge".into(), Box::new(Huge));
        let problem = source.read_vec(0, u64::MAX).unwrap_err();
        assert_eq!(problem.category(), Category::Io);
        expect![[r#"
            huge: not enough memory for 18446744073709551615 bytes
        "#]]
        .assert_eq(&snapshot(problem));
    }

    #[test]
    fn links_are_followed() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("blob"), b"12345").unwrap();
        symlink("blob", folder.path().join("link")).unwrap();
        let source = Source::open(&folder.path().join("link"), Access::Auto).unwrap();
        assert_eq!(source.read_vec(0, 5).unwrap(), b"12345");
        assert!(source.check_unchanged().is_ok());
    }

    #[test]
    fn a_file_truncated_during_the_run_is_an_environment_problem() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("content");
        fs::write(&path, b"1234567890").unwrap();
        let source = Source::open(&path, Access::Auto).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(4).unwrap();
        let problem = source.read(&mut [0; 3], 2).unwrap_err();
        assert_eq!(problem.category(), Category::Io);
        expect![[r#"
            FOLDER/content: file is too short: it has 4 bytes, but at least 5 are needed; perhaps it was truncated during the run
        "#]].assert_eq(&snapshot(problem));
    }

    #[test]
    fn interrupted_and_short_reads_are_repeated() {
        struct Halting {
            content: Vec<u8>,
            calls: AtomicUsize,
        }
        impl FileExt for Halting {
            fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
                if self.calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                let rest = self.content.get(offset as usize..).unwrap_or_default();
                let given = rest.len().min(buffer.len()).min(3);
                buffer[..given].copy_from_slice(&rest[..given]);
                Ok(given)
            }
            fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
                Err(io::ErrorKind::Unsupported.into())
            }
        }
        let file = Halting { content: (0..20).collect(), calls: AtomicUsize::new(0) };
        let reader = Positioned { file, length: 20 };
        let source = Source::from_reader("halting".into(), Box::new(reader));
        assert_eq!(source.read_vec(2, 18).unwrap(), (2..20).collect::<Vec<u8>>());
        assert!(source.read(&mut [0; 4], 18).is_err());
    }

    #[test]
    fn every_change_of_a_file_is_detected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("content");
        let another = folder.path().join("another");
        let changes: [&dyn Fn(); 3] = [
            &|| fs::write(&path, b"123456").unwrap(),
            &|| {
                let file = File::options().write(true).open(&path).unwrap();
                file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
            },
            &|| fs::rename(&another, &path).unwrap(),
        ];
        let mut texts = String::new();
        for change in changes {
            fs::write(&path, b"12345").unwrap();
            fs::write(&another, b"12345").unwrap();
            let source = Source::open(&path, Access::Auto).unwrap();
            source.check_unchanged().unwrap();
            change();
            let problem = source.check_unchanged().unwrap_err();
            assert!(problem.category() == Category::Data && problem.is_change());
            texts += &snapshot(problem);
        }
        let source = Source::open(&path, Access::Auto).unwrap();
        fs::remove_file(&path).unwrap();
        let problem = source.check_unchanged().unwrap_err();
        assert_eq!(problem.category(), Category::Io);
        texts += &snapshot(problem);
        expect![[r#"
            FOLDER/content: file changed while it was read: its length changed from 5 to 6 bytes; help: make sure that no program writes to it, and run again
            FOLDER/content: file changed while it was read: its time of modification changed; help: make sure that no program writes to it, and run again
            FOLDER/content: file changed while it was read: it was replaced by another file; help: make sure that no program writes to it, and run again
            FOLDER/content: cannot check whether the file changed while it was read: No such file or directory (os error 2)
        "#]].assert_eq(&texts);
    }

    #[test]
    fn a_failing_reader_is_an_environment_problem() {
        struct Broken;
        impl ReadAt for Broken {
            fn len(&self) -> u64 {
                10
            }
            fn read_exact_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
                Err(io::Error::other("disk on fire"))
            }
        }
        let source = Source::from_reader("broken".into(), Box::new(Broken));
        let problem = source.read_vec(0, 10).unwrap_err();
        assert_eq!(problem.to_string(), "broken: cannot read: disk on fire");
        assert_eq!(problem.category(), Category::Io);
    }
}
