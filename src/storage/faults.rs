//! Fault injection: unit tests make chosen file operations fail. In other builds every operation passes.

use std::io;
use std::path::Path;

/// An operation on the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Open,
    Map,
    Read,
    CreateFolder,
    Create,
    Permissions,
    Write,
    /// Writes the rest of a buffer.
    Flush,
    Sync,
    Rename,
    SyncFolder,
    Remove,
}

/// Lets every step pass.
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

    /// The faults by folder. Each test has its own folder, so threads of other tests are not affected.
    static FAULTS: Mutex<Vec<(PathBuf, Faults)>> = Mutex::new(Vec::new());

    /// Says which steps in a folder fail, and records the steps.
    #[derive(Clone, Debug)]
    pub(crate) struct Faults {
        /// Selects the steps that count. Other steps pass.
        pub(crate) counts: fn(Step) -> bool,
        /// Number of counted steps that pass before the first failure.
        pub(crate) pass: usize,
        /// True if all counted steps after the first failure fail too.
        pub(crate) sticky: bool,
        pub(crate) kind: io::ErrorKind,
        /// The counted steps, with their files.
        pub(crate) met: Vec<(Step, PathBuf)>,
    }

    impl Faults {
        /// Lets `pass` steps pass; then one step fails, or all if `sticky`.
        pub(crate) fn after(pass: usize, sticky: bool, kind: io::ErrorKind) -> Self {
            Self { counts: |_| true, pass, sticky, kind, met: Vec::new() }
        }

        /// No step fails.
        pub(crate) fn none() -> Self {
            Self::after(usize::MAX, false, io::ErrorKind::Other)
        }

        /// The first step that failed, if any.
        pub(crate) fn first(&self) -> Option<&(Step, PathBuf)> {
            self.met.get(self.pass)
        }
    }

    /// Lets a step pass or fail, as the test with this folder demands.
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

    /// Calls `work` with these faults in a folder. Returns its result, and the faults with the recorded steps.
    pub(crate) fn inject<T>(faults: Faults, folder: &Path, work: impl FnOnce() -> T) -> (T, Faults) {
        lock().push((folder.into(), faults));
        let result = work();
        let mut all = lock();
        let index = all
            .iter()
            .position(|(known, _)| known == folder)
            .expect("the faults of this folder are installed");
        (result, all.swap_remove(index).1)
    }

    /// Creates a temporary folder: in memory where possible, because syncing to a disk would take most of the time.
    pub(crate) fn folder() -> TempDir {
        tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .expect("a temporary folder can be created")
    }

    fn lock() -> MutexGuard<'static, Vec<(PathBuf, Faults)>> {
        FAULTS.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
