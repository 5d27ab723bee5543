//! Locks that prevent two runs from writing to the same output, also under different names of the output.
//!
//! The lock of an output is the file `lock` in the folder for its progress. It is locked during a run. `partial` describes the other
//! files of the folder.

use crate::storage::Problem;
use crate::storage::faults::{Step, step};
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub(super) const LOCK: &str = "lock";

/// Prevents other runs from using an output, until it is dropped.
#[derive(Debug, Default)]
pub struct OutputLock {
    /// Locked until these are dropped, or the process ends.
    locked: Vec<(PathBuf, File)>,
}

impl OutputLock {
    /// Locks an output, a file or a folder.
    ///
    /// # Errors
    /// An I/O problem if another run uses it, or it cannot be locked.
    pub fn take(output: &Path) -> Result<Self, Problem> {
        let mut taken = Self::of_other_name(output)?;
        taken.add(progress_folder(output)).map_err(|(problem, _)| problem)?;
        Ok(taken)
    }

    /// Locks an output that has no name of its own, such as `.`, also under its real name, which other runs can use.
    /// [`PartialRun::open`](super::PartialRun::open) does not do this.
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
                // If the folder cannot be written, other runs cannot use it either.
                Err((_, Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem))) => {}
                added => added.map_err(|(problem, _)| problem)?,
            }
        }
        Ok(taken)
    }

    fn add(&mut self, folder: PathBuf) -> Result<(), (Problem, Option<io::ErrorKind>)> {
        step(Step::CreateFolder, &folder).and_then(|()| fs::create_dir_all(&folder)).map_err(|error| {
            let problem = Problem::io("cannot create the folder for the lock of this output", &error);
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
            // A remaining lock file is harmless. The folder stays if it contains progress.
            let _ = fs::remove_file(folder.join(LOCK));
            let _ = fs::remove_dir(folder);
        }
    }
}

/// The folder for the progress of a run that writes to `output`: the name of the output with `.partial`, beside it; inside it, if the
/// output has no name of its own, such as `.`. Links to folders are followed.
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

/// Takes the lock of an existing folder.
pub(super) fn lock(folder: &Path) -> Result<File, Problem> {
    let path = folder.join(LOCK);
    let failed = |error: io::Error| Problem::io("cannot lock the file", &error).in_file(&path);
    loop {
        let file = step(Step::Create, &path)
            .and_then(|()| File::options().create(true).append(true).open(&path))
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Problem::environment("another run is using this output")
                    .in_file(folder)
                    .help("wait until it ends, or choose another name for the output"));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // A run that ended between these two steps has removed the locked file, and perhaps its folder.
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
    use crate::storage::faults::{self, Faults};
    use crate::storage::shown;
    use crate::storage::snapshot;
    use expect_test::expect;
    use std::os::unix::fs::symlink;

    #[test]
    fn progress_folder_is_beside_the_output() {
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

    #[test]
    fn a_lock_that_cannot_be_created_is_refused() {
        let parent = faults::folder();
        let texts = [0, 1].map(|pass| {
            let faults = Faults::after(pass, false, io::ErrorKind::ReadOnlyFilesystem);
            let take = || OutputLock::take(&parent.path().join("out"));
            snapshot(faults::inject(faults, parent.path(), take).0.unwrap_err())
        });
        expect![[r#"
            FOLDER/out.partial: cannot create the folder for the lock of this output: read-only filesystem or storage medium
            FOLDER/out.partial/lock: cannot lock the file: read-only filesystem or storage medium
        "#]].assert_eq(&texts.concat());
    }

    /// All names of an output have the same lock. No files remain after its release.
    #[test]
    fn all_names_of_an_output_share_one_lock() {
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
                let text = shown(&problem.into(), parent);
                assert!(text.starts_with("Io: ") && text.contains("another run"), "{text}");
            }
            drop(OutputLock::take(&file).unwrap());
            drop(lock);
        }
        let held = OutputLock::take(&file).unwrap();
        expect![[r#"
            Io: file.partial: another run is using this output
                help: wait until it ends, or choose another name for the output
        "#]]
        .assert_eq(&shown(&OutputLock::take(&file).unwrap_err().into(), parent));
        drop(held);
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
