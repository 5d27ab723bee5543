//! Files that are absent, old or complete, whatever happens.

use super::Problem;
use super::faults::{Step, step};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tempfile::NamedTempFile;

/// The temporary files of this process.
static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// A file under construction: a temporary one in the same folder, renamed over `path` when it is complete.
///
/// Its name is `.NAME.tmp` and six random characters; a process that is killed leaves it behind. Where
/// several files belong together, the caller commits last the one whose presence means that all are complete.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    writer: BufWriter<NamedTempFile>,
    listed: Listed,
}

/// A file that is whole and on the disk, but not yet in its place. Dropping it leaves no trace.
#[derive(Debug)]
pub struct StagedFile {
    path: PathBuf,
    file: NamedTempFile,
    listed: Listed,
}

/// The path of a temporary file, as long as it is there.
#[derive(Debug)]
struct Listed(PathBuf);

impl Listed {
    /// Makes a file that is listed from its first moment on.
    fn make(make: impl FnOnce() -> io::Result<NamedTempFile>) -> io::Result<(NamedTempFile, Self)> {
        let mut all = unfinished();
        let file = make()?;
        let path = file.path().to_owned();
        all.insert(path.clone());
        Ok((file, Self(path)))
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        unfinished().remove(&self.0);
    }
}

fn unfinished() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the unfinished files of this process, for a process that ends without unwinding. From then on, none is started: whoever
/// tries waits for that end.
pub fn abandon_unfinished() {
    let all = unfinished();
    for path in all.iter() {
        let _ = fs::remove_file(path);
    }
    std::mem::forget(all);
}

impl AtomicFile {
    /// Starts a file. Its mode is that of the file it replaces, or what the umask leaves of 0666.
    ///
    /// A link at `path` will be replaced itself; what it points to stays as it is. A folder, a pipe or a
    /// device at `path` is refused.
    ///
    /// # Errors
    /// An I/O problem if the folder is missing or cannot be written to, or if `path` is no regular file.
    pub fn create(path: &Path) -> Result<Self, Problem> {
        let name = path.file_name().ok_or_else(|| {
            Problem::usage("expected the path of a file to write, found one without a name").in_file(path)
        })?;
        let failed = |error: io::Error| Problem::io("cannot create", &error).in_file(path);
        let replaced = match fs::metadata(path) {
            Ok(metadata) if !metadata.is_file() => {
                return Err(Problem::environment("expected a regular file or nothing, found something else")
                    .in_file(path)
                    .help("choose another name for the output"));
            }
            Ok(metadata) => Some(metadata.permissions()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        let mut prefix = OsString::from(".");
        prefix.push(name);
        prefix.push(".tmp");
        let make = || {
            tempfile::Builder::new()
                .prefix(&prefix)
                .permissions(Permissions::from_mode(0o666))
                .tempfile_in(folder_of(path))
        };
        let (file, listed) = step(Step::Create, path).and_then(|()| Listed::make(make)).map_err(failed)?;
        if let Some(permissions) = replaced {
            step(Step::Permissions, path)
                .and_then(|()| file.as_file().set_permissions(permissions))
                .map_err(failed)?;
        }
        Ok(Self { path: path.into(), writer: BufWriter::new(file), listed })
    }

    /// Flushes and syncs: whatever the disk may refuse, it refuses here, before anything is replaced.
    ///
    /// # Errors
    /// An I/O problem if either step fails.
    pub fn stage(self) -> Result<StagedFile, Problem> {
        let Self { path, writer, listed } = self;
        let failed = |doing, error: io::Error| Problem::io(doing, &error).in_file(&path);
        step(Step::Flush, &path).map_err(|error| failed("cannot write", error))?;
        let file = writer.into_inner().map_err(|error| failed("cannot write", error.into_error()))?;
        step(Step::Sync, &path)
            .and_then(|()| file.as_file().sync_all())
            .map_err(|error| failed("cannot bring it to the disk", error))?;
        Ok(StagedFile { path, file, listed })
    }

    /// Flushes, syncs, renames, and syncs the folder. Dropping without this leaves no trace.
    ///
    /// # Errors
    /// An I/O problem if any of these steps fails; the file that was there before is still there then.
    pub fn commit(self) -> Result<(), Problem> {
        self.stage()?.commit()
    }

    /// Where it will be.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl StagedFile {
    /// Renames, and syncs the folder.
    ///
    /// # Errors
    /// An I/O problem if either step fails; before the rename, the file that was there before is still there.
    pub fn commit(self) -> Result<(), Problem> {
        let Self { path, file, listed } = self;
        let failed = |doing, error: io::Error| Problem::io(doing, &error).in_file(&path);
        step(Step::Rename, &path).map_err(|error| failed("cannot rename to it", error))?;
        file.persist(&path).map_err(|error| failed("cannot rename to it", error.error))?;
        drop(listed);
        step(Step::SyncFolder, &path)
            .and_then(|()| File::open(folder_of(&path))?.sync_all())
            .map_err(|error| failed("cannot bring its folder to the disk", error))
    }

    /// Where it will be.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Write for AtomicFile {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        step(Step::Write, &self.path)?;
        self.writer.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Writes a whole file through [`AtomicFile`].
///
/// # Errors
/// As [`AtomicFile::create`] and [`AtomicFile::commit`].
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), Problem> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(|error| Problem::io("cannot write", &error).in_file(path))?;
    file.commit()
}

/// Whether a file name is that of an unfinished [`AtomicFile`], `.NAME.tmp` and six random characters, which a process that was killed
/// leaves behind.
pub fn is_unfinished(name: &str) -> bool {
    name.starts_with('.')
        && name.rsplit_once(".tmp").is_some_and(|(_, random)| {
            random.len() == 6 && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
        })
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Category;
    use super::*;
    use quickcheck::quickcheck;
    use std::os::unix::fs::symlink;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    quickcheck! {
        fn content_is_complete(old: Vec<u8>, new: Vec<u8>) -> bool {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("content");
            write_atomically(&path, &old).unwrap();
            let first = fs::read(&path).unwrap() == old;
            write_atomically(&path, &new).unwrap();
            first && fs::read(&path).unwrap() == new && names(folder.path()) == ["content"]
        }
    }

    /// A file of mode 0600 could not be read by the user that serves it.
    #[test]
    fn a_new_file_has_the_mode_that_the_umask_leaves() {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("plain");
        File::create(&plain).unwrap();
        let path = folder.path().join("content");
        write_atomically(&path, b"1").unwrap();
        assert_eq!(mode(&path), mode(&plain));
    }

    #[test]
    fn the_mode_of_a_replaced_file_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("content");
        for kept in [0o600, 0o666, 0o640] {
            fs::write(&path, b"old").unwrap();
            fs::set_permissions(&path, Permissions::from_mode(kept)).unwrap();
            write_atomically(&path, b"new").unwrap();
            assert_eq!(mode(&path), kept);
        }
    }

    #[test]
    fn until_the_commit_the_old_file_stands_and_a_drop_leaves_no_trace() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("content");
        fs::write(&path, b"old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(&[1; 100_000]).unwrap();
        assert_eq!(file.path(), path);
        let temporary = names(folder.path()).into_iter().find(|name| name != "content").unwrap();
        assert!(temporary.starts_with(".content.tmp"), "{temporary}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        drop(file);
        assert_eq!(names(folder.path()), ["content"]);
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }

    /// What is staged is whole, and still not in place.
    #[test]
    fn a_staged_file_changes_nothing_until_it_is_committed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("content");
        fs::write(&path, b"old").unwrap();
        let stage = || {
            let mut file = AtomicFile::create(&path).unwrap();
            file.write_all(b"new").unwrap();
            file.stage().unwrap()
        };
        drop(stage());
        assert_eq!(names(folder.path()), ["content"]);
        let staged = stage();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        let temporary = names(folder.path()).into_iter().find(|name| name != "content").unwrap();
        assert_eq!(fs::read(folder.path().join(&temporary)).unwrap(), b"new");
        assert!(unfinished().iter().any(|path| path.ends_with(&temporary)));
        staged.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert!(!unfinished().iter().any(|path| path.ends_with(&temporary)));
    }

    #[test]
    fn a_link_is_replaced_and_what_it_points_to_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join("input");
        let link = folder.path().join("link");
        fs::write(&input, b"input").unwrap();
        symlink("input", &link).unwrap();
        write_atomically(&link, b"output").unwrap();
        assert_eq!(fs::read(&input).unwrap(), b"input");
        assert_eq!(fs::read(&link).unwrap(), b"output");
    }

    #[test]
    fn what_cannot_be_replaced_is_refused_before_anything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let nowhere = folder.path().join("missing").join("content");
        for path in [folder.path(), Path::new("/dev/null"), &nowhere] {
            let problem = AtomicFile::create(path).unwrap_err();
            assert_eq!(problem.category(), Category::Io);
            assert!(problem.to_string().starts_with(path.to_str().unwrap()), "{problem}");
        }
        assert_eq!(AtomicFile::create(Path::new("..")).unwrap_err().category(), Category::Usage);
        assert!(names(folder.path()).is_empty());
    }
}
