//! The steps of writing and reading at which a test makes an operation fail. Outside of unit tests there is nothing here.

use std::io;
use std::path::Path;

/// An operation on the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Open,
    Read,
    CreateFolder,
    Create,
    Permissions,
    Write,
    /// What is left in a buffer is written.
    Flush,
    Sync,
    Rename,
    SyncFolder,
    Remove,
}

/// Passes every step.
#[cfg(not(test))]
#[inline(always)]
pub(crate) fn step(_: Step, _: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(crate) use injector::{Faults, folder, inject, step};

#[cfg(test)]
mod injector {
    use super::{Path, Step, io};
    use std::path::PathBuf;
    use std::sync::{Mutex, MutexGuard, PoisonError};
    use tempfile::TempDir;

    /// Each test has its faults in a folder of its own, whichever thread works there.
    static FAULTS: Mutex<Vec<(PathBuf, Faults)>> = Mutex::new(Vec::new());

    /// Which steps in a folder fail, and which were met.
    #[derive(Clone, Debug)]
    pub(crate) struct Faults {
        /// Which steps count.
        pub(crate) counts: fn(Step) -> bool,
        /// How many of them pass before the first failure.
        pub(crate) pass: usize,
        /// Whether all steps after it fail too.
        pub(crate) sticky: bool,
        pub(crate) kind: io::ErrorKind,
        /// What was met, and at which file.
        pub(crate) met: Vec<(Step, PathBuf)>,
    }

    impl Faults {
        /// Those of the one step after the first `pass` ones, or of all.
        pub(crate) fn after(pass: usize, sticky: bool, kind: io::ErrorKind) -> Self {
            Self { counts: |_| true, pass, sticky, kind, met: Vec::new() }
        }

        /// None.
        pub(crate) fn none() -> Self {
            Self::after(usize::MAX, false, io::ErrorKind::Other)
        }

        /// The step that failed first, if one did.
        pub(crate) fn first(&self) -> Option<&(Step, PathBuf)> {
            self.met.get(self.pass)
        }
    }

    /// Passes a step, or fails it as the test asks in whose folder it is.
    pub(crate) fn step(step: Step, path: &Path) -> io::Result<()> {
        let mut all = lock();
        let Some((_, faults)) = all.iter_mut().find(|(folder, _)| path.starts_with(folder)) else {
            return Ok(());
        };
        if !(faults.counts)(step) {
            return Ok(());
        }
        let number = faults.met.len();
        faults.met.push((step, path.into()));
        if number == faults.pass || (faults.sticky && number > faults.pass) {
            return Err(faults.kind.into());
        }
        Ok(())
    }

    /// Does `work` with these faults in a folder. Returns what it gave and what was met.
    pub(crate) fn inject<T>(faults: Faults, folder: &Path, work: impl FnOnce() -> T) -> (T, Faults) {
        lock().push((folder.into(), faults));
        let result = work();
        let mut all = lock();
        let index = all.iter().position(|(known, _)| known == folder).expect("it was installed");
        (result, all.swap_remove(index).1)
    }

    /// A new folder to work in: in memory, where that is known to be, since bringing files to a disk would take most of the time.
    pub(crate) fn folder() -> TempDir {
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("there is a place for files")
    }

    fn lock() -> MutexGuard<'static, Vec<(PathBuf, Faults)>> {
        FAULTS.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
