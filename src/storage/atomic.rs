//! Writing files atomically: after a failure at any step, the path has no file, the old file or the complete new one.

use super::Problem;
use super::faults::{Step, step};
use super::new_file::NewFile;
use super::paths::folder_of;
use super::unfinished::Listed;
use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempPath;

/// A file that is being written: a temporary file in the same folder, which is renamed to `path` when it is complete.
///
/// The temporary name is `.NAME.tmp` and six random characters; a process that is killed leaves the file behind.
#[derive(Debug)]
pub struct AtomicFile {
    file: NewFile,
    temporary: TempPath,
    listed: Listed,
}

/// A file that is complete and synced to disk, but not yet renamed to its path. Dropping it removes it.
#[derive(Debug)]
pub struct StagedFile {
    path: PathBuf,
    temporary: TempPath,
    listed: Listed,
}

impl AtomicFile {
    /// Creates the temporary file. It has the mode of the file that it replaces, or 0666 without the bits of the umask.
    ///
    /// A link at `path` will be replaced; the file that it points to stays as it is.
    ///
    /// # Errors
    /// An I/O problem if the folder is missing or not writable, or if there is a folder, a pipe or a device at `path`.
    pub fn create(path: &Path) -> Result<Self, Problem> {
        let name = path.file_name().ok_or_else(|| {
            Problem::usage("the path of an output file must end with a file name").in_file(path)
        })?;
        let mut prefix = OsString::from(".");
        prefix.push(name);
        prefix.push(".tmp");
        let make = || {
            tempfile::Builder::new()
                .prefix(&prefix)
                .permissions(Permissions::from_mode(0o666))
                .tempfile_in(folder_of(path))
        };
        let (file, (temporary, listed)) = NewFile::create(path, || {
            let (file, listed) = Listed::make(make, |file| file.path())?;
            let (file, temporary) = file.into_parts();
            Ok((file, (temporary, listed)))
        })?;
        Ok(Self { file, temporary, listed })
    }

    /// Writes bytes.
    ///
    /// # Errors
    /// An I/O problem that names the file.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        self.file.put(bytes)
    }

    /// Flushes and syncs, so that errors of the disk appear before a file is replaced.
    ///
    /// # Errors
    /// An I/O problem if flushing or syncing fails.
    pub fn stage(self) -> Result<StagedFile, Problem> {
        let Self { file, temporary, listed } = self;
        let path = file.path().to_owned();
        file.finish()?;
        Ok(StagedFile { path, temporary, listed })
    }

    /// Flushes and syncs the file, renames it, and syncs the folder. Without this call, dropping removes the temporary file.
    ///
    /// # Errors
    /// An I/O problem if one of these steps fails. Up to the rename, an old file stays in place.
    pub fn commit(self) -> Result<(), Problem> {
        self.stage()?.commit()
    }

    /// The path that the file will have.
    pub fn path(&self) -> &Path {
        self.file.path()
    }
}

impl StagedFile {
    /// Renames the file, and syncs the folder.
    ///
    /// # Errors
    /// An I/O problem if one of these steps fails. Up to the rename, an old file stays in place.
    pub fn commit(self) -> Result<(), Problem> {
        let Self { path, temporary, listed } = self;
        let failed = |doing, error: io::Error| Problem::io(doing, &error).in_file(&path);
        step(Step::Rename, &path).map_err(|error| failed("cannot rename the temporary file", error))?;
        temporary.persist(&path).map_err(|error| failed("cannot rename the temporary file", error.error))?;
        drop(listed);
        step(Step::SyncFolder, &path)
            .and_then(|()| File::open(folder_of(&path))?.sync_all())
            .map_err(|error| failed("cannot sync its folder to disk", error))
    }

    /// The path that the file will have.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Write for AtomicFile {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.file.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes a complete file with [`AtomicFile`].
///
/// # Errors
/// Those of [`AtomicFile::create`] and [`AtomicFile::commit`].
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), Problem> {
    let mut file = AtomicFile::create(path)?;
    file.put(bytes)?;
    file.commit()
}

#[cfg(test)]
mod tests {
    use super::super::faults::{self, Faults};
    use super::super::unfinished::is_listed;
    use super::super::{Category, snapshot};
    use super::*;
    use expect_test::expect;
    use quickcheck::quickcheck;
    use std::fs;
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

    /// With mode 0600, another user could not read the file to serve it.
    #[test]
    fn the_mode_of_a_new_file_follows_the_umask() {
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
    fn the_old_file_stays_until_the_commit_and_dropping_removes_the_temporary_file() {
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
        assert!(is_listed(&temporary));
        staged.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert!(!is_listed(&temporary));
    }

    #[test]
    fn a_link_is_replaced_and_its_target_stays() {
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
    fn paths_that_cannot_be_written_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let nowhere = AtomicFile::create(&folder.path().join("missing").join("content")).unwrap_err();
        assert_eq!(nowhere.category(), Category::Io);
        let mut texts = String::new();
        for path in [folder.path(), Path::new("/dev/null"), Path::new("..")] {
            let problem = AtomicFile::create(path).unwrap_err();
            texts += &format!("{:?}: {}", problem.category(), snapshot(problem));
        }
        expect![[r#"
            Io: FOLDER: cannot replace it with a file, because it is not a regular file; help: choose another name for the output
            Io: /dev/null: cannot replace it with a file, because it is not a regular file; help: choose another name for the output
            Usage: ..: the path of an output file must end with a file name
        "#]]
        .assert_eq(&texts);
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn every_step_that_fails_is_named() {
        let folder = faults::folder();
        let path = folder.path().join("content");
        fs::write(&path, b"old").unwrap();
        let write = |pass| {
            let faults = Faults::after(pass, false, io::ErrorKind::StorageFull);
            faults::inject(faults, folder.path(), || write_atomically(&path, b"new")).0
        };
        let texts: String = (0..).map_while(|pass| write(pass).err()).map(snapshot).collect();
        expect![[r#"
            FOLDER/content: cannot create: no storage space
            FOLDER/content: cannot create: no storage space
            FOLDER/content: cannot write: no storage space
            FOLDER/content: cannot write: no storage space
            FOLDER/content: cannot sync to disk: no storage space
            FOLDER/content: cannot rename the temporary file: no storage space
            FOLDER/content: cannot sync its folder to disk: no storage space
        "#]]
        .assert_eq(&texts);
    }
}
