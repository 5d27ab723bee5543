//! Input files: opened with reasons where they cannot be, read at offsets, and checked to have stayed the same.

use super::Problem;
use super::faults::{Step, step};
use super::mapping::Mapping;
use super::read_at::ReadAt;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// How a file is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// The default: see `Read`.
    #[default]
    Auto,
    /// `pread` into a buffer.
    Read,
    /// A memory mapping. A file that is truncated meanwhile kills the process.
    Mmap,
}

/// What identifies a version of a file: a change between two looks means that it was written to.
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
    fn of(metadata: &Metadata) -> Self {
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
    /// Opens a regular file, or a link to one. Refuses folders, pipes and devices with a reason.
    ///
    /// The file is looked at before it is opened, because opening a pipe would wait for a writer.
    ///
    /// # Errors
    /// An I/O problem if there is no such file, it is not a regular one, or it cannot be opened or mapped.
    pub fn open(path: &Path, access: Access) -> Result<Self, Problem> {
        let failed = |error: io::Error| {
            let problem = Problem::io("cannot open", &error).in_file(path);
            match error.kind() {
                io::ErrorKind::NotFound if path.to_string_lossy().contains(['*', '?']) => problem
                    .help("the shell expands patterns: give it without quotes, and see that files match"),
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
            Access::Mmap => Box::new(Mapping::new(&file).map_err(|error| {
                Problem::io("cannot map", &error).in_file(path).help("read it without a mapping")
            })?),
        };
        Ok(Self { path: path.into(), bytes, identity: Some(Identity::of(&metadata)) })
    }

    /// Bytes in memory under a name, for tests and embedders.
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Self {
        Self::from_reader(name.into(), Box::new(bytes))
    }

    /// Anything that reads, under a name. The fault injector of tests comes in here.
    pub fn from_reader(path: PathBuf, bytes: Box<dyn ReadAt>) -> Self {
        Self { path, bytes, identity: None }
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length in bytes.
    pub fn length(&self) -> u64 {
        self.bytes.len()
    }

    /// Which version of which file this is; `None` for what is not a file.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Fills `buffer` from `offset`. A file that ended meanwhile is an I/O problem that says so.
    ///
    /// # Errors
    /// An I/O problem that names the file.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), Problem> {
        let read = step(Step::Read, &self.path).and_then(|()| self.bytes.read_exact_at(buffer, offset));
        read.map_err(|error| {
            let problem = match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    let length = fs::metadata(&self.path).map_or(self.length(), |metadata| metadata.len());
                    let needed = offset.saturating_add(buffer.len() as u64);
                    Problem::environment(format!(
                        "ended at {length} bytes, expected at least {needed}: was it truncated during the run?"
                    ))
                }
                _ => Problem::io("cannot read", &error),
            };
            problem.in_file(&self.path)
        })
    }

    /// `length` bytes from `offset`. Allocates nothing if the file is shorter than that.
    ///
    /// # Errors
    /// A data problem if the file is shorter, an I/O problem if it cannot be read or there is no memory.
    pub fn read_vec(&self, offset: u64, length: u64) -> Result<Vec<u8>, Problem> {
        if offset.checked_add(length).is_none_or(|end| end > self.length()) {
            let what =
                format!("expected {length} bytes from byte {offset} on, but it has {} bytes", self.length());
            return Err(Problem::data(what).in_file(&self.path));
        }
        let out_of_memory =
            || Problem::environment(format!("no memory for {length} bytes of it")).in_file(&self.path);
        let length = usize::try_from(length).map_err(|_| out_of_memory())?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length).map_err(|_| out_of_memory())?;
        bytes.resize(length, 0);
        self.read(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Refuses a file that changed since it was opened (inode, length or time of modification).
    ///
    /// What was not opened as a file does not change.
    ///
    /// # Errors
    /// A data problem that says what changed; an I/O problem if the file cannot be looked at any more.
    pub fn check_unchanged(&self) -> Result<(), Problem> {
        let Some(before) = &self.identity else { return Ok(()) };
        let now = fs::metadata(&self.path).map_err(|error| {
            Problem::io("cannot check that it stayed unchanged while it was being read", &error)
                .in_file(&self.path)
        })?;
        let now = Identity::of(&now);
        if now == *before {
            return Ok(());
        }
        let how = if now.file != before.file {
            "another file took its place".into()
        } else if now.length != before.length {
            format!("it had {} bytes, and now has {}", before.length, now.length)
        } else {
            "it was written to".into()
        };
        Err(Problem::change(format!("changed while it was being read: {how}"))
            .in_file(&self.path)
            .help("run again when nothing writes to it"))
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
        "a pipe, which cannot be read at an offset"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    Err(Problem::environment(format!("expected a regular file, found {found}"))
        .in_file(path)
        .help("give the path of a regular file"))
}

/// A file read by `pread`, which std repeats when a signal interrupts it or it gives less than was asked for.
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

/// Whether nothing is there. What is there and cannot be opened is another complaint.
pub(crate) fn is_missing(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::super::Category;
    use super::*;
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
    fn offsets_beyond_any_file_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("content");
        fs::write(&path, b"12345").unwrap();
        for access in [Access::Read, Access::Mmap] {
            let source = Source::open(&path, access).unwrap();
            assert!(source.read(&mut [0; 1], u64::MAX).is_err());
            assert!(source.read_vec(u64::MAX, 2).is_err());
            assert!(source.read_vec(0, u64::MAX).is_err());
        }
    }

    #[test]
    fn irregular_files_are_refused_without_blocking() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for (path, found) in [
            (folder.path(), "expected a regular file, found a folder"),
            (&pipe, "expected a regular file, found a pipe"),
            (&socket, "expected a regular file, found a socket"),
            (Path::new("/dev/null"), "expected a regular file, found a device"),
        ] {
            let problem = refused(path);
            assert!(problem.to_string().contains(found), "{problem}");
            assert_eq!(problem.category(), Category::Io);
        }
    }

    #[test]
    fn what_cannot_be_opened_is_an_environment_problem_that_names_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let missing = refused(&folder.path().join("missing"));
        assert!(missing.to_string().contains("missing: cannot open: No such file"), "{missing}");
        assert_eq!(missing.next_step(), Some("check the path"));
        let pattern = refused(&folder.path().join("*.npy"));
        assert!(pattern.next_step().is_some_and(|help| help.contains("the shell expands patterns")));
        let circle = folder.path().join("circle");
        symlink(&circle, &circle).unwrap();
        assert_eq!(refused(&circle).category(), Category::Io);
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
        let expected = "ended at 4 bytes, expected at least 5: was it truncated during the run?";
        assert!(problem.to_string().ends_with(expected), "{problem}");
    }

    /// A signal, and a system that gives less than it was asked for, end no run.
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
        let problem = source.read(&mut [0; 4], 18).unwrap_err();
        assert!(
            problem.to_string().starts_with("halting: ended at 20 bytes, expected at least 22"),
            "{problem}"
        );
    }

    #[test]
    fn every_change_of_a_file_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("content");
        let another = folder.path().join("another");
        let changes: [(&dyn Fn(), &str); 3] = [
            (&|| fs::write(&path, b"123456").unwrap(), "it had 5 bytes, and now has 6"),
            (
                &|| {
                    let file = File::options().write(true).open(&path).unwrap();
                    file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
                },
                "it was written to",
            ),
            (&|| fs::rename(&another, &path).unwrap(), "another file took its place"),
        ];
        for (change, how) in changes {
            fs::write(&path, b"12345").unwrap();
            fs::write(&another, b"12345").unwrap();
            let source = Source::open(&path, Access::Auto).unwrap();
            source.check_unchanged().unwrap();
            change();
            let problem = source.check_unchanged().unwrap_err();
            assert!(problem.to_string().contains(how), "{problem}");
            assert_eq!(problem.category(), Category::Data);
        }
        let source = Source::open(&path, Access::Auto).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(source.check_unchanged().unwrap_err().category(), Category::Io);
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
