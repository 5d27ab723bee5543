//! Locks against two runs into one output, whatever name each has for it.
//!
//! The lock of an output is the file `lock` in the folder for its progress, which is locked while a run works. What else is in that
//! folder is for `partial`.

use crate::storage::Problem;
use crate::storage::faults::{Step, step};
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub(super) const LOCK: &str = "lock";

/// Keeps other runs from an output, until it is dropped.
#[derive(Debug, Default)]
pub struct OutputLock {
    /// Locked until they are dropped, also by the end of the process.
    locked: Vec<(PathBuf, File)>,
}

impl OutputLock {
    /// Locks an output, a file or a folder.
    ///
    /// # Errors
    /// An I/O problem if another run works on it, or it cannot be locked.
    pub fn take(output: &Path) -> Result<Self, Problem> {
        let mut taken = Self::of_other_name(output)?;
        taken.add(progress_folder(output)).map_err(|(problem, _)| problem)?;
        Ok(taken)
    }

    /// Locks what [`PartialRun::open`](super::PartialRun::open) does not: a folder that was given without a name of its own, as `.`,
    /// under the name that others may give.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn of_other_name(output: &Path) -> Result<Self, Problem> {
        let mut taken = Self::default();
        if output.file_name().is_none()
            && let Ok(real) = fs::canonicalize(output)
            && real.file_name().is_some()
        {
            match taken.add(progress_folder(&real)) {
                // Where nobody can have a lock, nobody needs one.
                Err((_, Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem))) => {}
                added => added.map_err(|(problem, _)| problem)?,
            }
        }
        Ok(taken)
    }

    fn add(&mut self, folder: PathBuf) -> Result<(), (Problem, Option<io::ErrorKind>)> {
        step(Step::CreateFolder, &folder).and_then(|()| fs::create_dir_all(&folder)).map_err(|error| {
            let problem = Problem::io("cannot make the folder for the lock of this output", &error);
            (problem.in_file(&folder), Some(error.kind()))
        })?;
        let file = lock(&folder).map_err(|problem| (problem, None))?;
        self.locked.push((folder, file));
        Ok(())
    }
}

impl Drop for OutputLock {
    fn drop(&mut self) {
        for (folder, _) in &self.locked {
            // If it stays, it is in nobody's way. The folder stays if it holds progress.
            let _ = fs::remove_file(folder.join(LOCK));
            let _ = fs::remove_dir(folder);
        }
    }
}

/// The folder for the progress of a run that writes to `output`: beside it, with `.partial` after its name, or in it if it has no name
/// of its own, as `.` has none. A link to a folder is that folder.
pub fn progress_folder(output: &Path) -> PathBuf {
    if output.is_symlink()
        && output.is_dir()
        && let Ok(real) = fs::canonicalize(output)
    {
        return progress_folder(&real);
    }
    match output.file_name() {
        Some(name) => {
            let mut name = name.to_owned();
            name.push(".partial");
            output.with_file_name(name)
        }
        None => output.join("cntlora.partial"),
    }
}

/// Takes the lock of a folder, which has to exist.
pub(super) fn lock(folder: &Path) -> Result<File, Problem> {
    let path = folder.join(LOCK);
    let failed = |error: io::Error| Problem::io("cannot lock it", &error).in_file(&path);
    loop {
        let file = step(Step::Create, &path)
            .and_then(|()| File::options().create(true).append(true).open(&path))
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Problem::environment("another run is at work on this output")
                    .in_file(folder)
                    .help("wait until it has ended, or choose another name for the output"));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // A run that ended between the two steps has removed the file that was locked, and perhaps its folder.
        let locked = file.metadata().map_err(failed)?.ino();
        match fs::metadata(&path) {
            Ok(there) if there.ino() == locked => return Ok(file),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(folder).map_err(failed)?;
            }
            Err(error) => return Err(failed(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Category;
    use std::os::unix::fs::symlink;

    #[test]
    fn the_folder_is_beside_the_output() {
        for (output, folder) in [
            ("adapter", "adapter.partial"),
            ("out/adapter/", "out/adapter.partial"),
            ("m.moments.safetensors", "m.moments.safetensors.partial"),
            (".", "./cntlora.partial"),
            ("..", "../cntlora.partial"),
        ] {
            assert_eq!(progress_folder(Path::new(output)), Path::new(folder));
        }
    }

    /// By whatever name, an output has one lock, and nothing is left of it.
    #[test]
    fn an_output_has_one_lock() {
        let parent = tempfile::tempdir().unwrap();
        let parent = parent.path();
        let (out, link, file) = (parent.join("out"), parent.join("link"), parent.join("file"));
        fs::create_dir(&out).unwrap();
        symlink("out", &link).unwrap();
        let nameless = out.join("..").join("out").join(".").join("");
        for held in [&out, &link] {
            let lock = OutputLock::take(held).unwrap();
            for other in [&out, &link, &nameless] {
                let problem = OutputLock::take(other).unwrap_err();
                assert_eq!(problem.category(), Category::Io);
                assert!(problem.to_string().contains("another run is at work on this output"), "{problem}");
            }
            drop(OutputLock::take(&file).unwrap());
            drop(lock);
        }
        let above = out.join("below").join("..");
        fs::create_dir(out.join("below")).unwrap();
        let lock = OutputLock::take(&above).unwrap();
        assert!(OutputLock::take(&out).is_err() && OutputLock::take(&above).is_err());
        drop(lock);
        let mut left: Vec<_> =
            fs::read_dir(parent).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["link", "out"]);
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
    }
}
