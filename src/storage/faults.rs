//! Fault injection: unit tests make chosen file operations fail. In debug builds the tests of the tool make it end at a chosen operation.
//! In release builds every operation passes.

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
    /// Makes a hard link.
    Link,
    /// Exchanges two folders.
    Exchange,
    Rename,
    SyncFolder,
    Remove,
}

/// Lets every step pass.
#[cfg(not(any(test, debug_assertions)))]
#[inline(always)]
pub(crate) fn step(_: Step, _: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(all(not(test), debug_assertions))]
pub(crate) use kill::step;

/// Sends this process a signal at a chosen operation. The tests of the tool use it.
#[cfg(all(not(test), debug_assertions))]
mod kill {
    use super::{Path, Step, io};
    use rustix::process::{Signal, getpid, kill_process};
    use std::fs::File;
    use std::io::Write;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    /// A signal and the number of an operation, such as `TERM:12`.
    const KILL: &str = "CNTLORA_TEST_KILL";
    /// If it is set, folders cannot be exchanged, as in file systems without this operation.
    const NO_EXCHANGE: &str = "CNTLORA_TEST_NO_EXCHANGE";

    /// A file to which the operations are appended, one a line.
    const LIST: &str = "CNTLORA_TEST_STEPS";

    static CHOSEN: LazyLock<Option<(Signal, u64)>> = LazyLock::new(|| {
        let text = std::env::var(KILL).ok()?;
        let (name, number) = text.split_once(':')?;
        let signal = match name {
            "HUP" => Signal::HUP,
            "INT" => Signal::INT,
            "TERM" => Signal::TERM,
            _ => Signal::KILL,
        };
        Some((signal, number.parse().ok()?))
    });

    /// Number of operations that have begun.
    static BEGUN: AtomicU64 = AtomicU64::new(0);

    /// Lets a step pass. Sends the chosen signal before the chosen operation. Operations that only read or write bytes do not count.
    pub(crate) fn step(step: Step, path: &Path) -> io::Result<()> {
        if matches!(step, Step::Open | Step::Map | Step::Read | Step::Write) {
            return Ok(());
        }
        if step == Step::Exchange && std::env::var_os(NO_EXCHANGE).is_some() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        if let Some(list) = std::env::var_os(LIST) {
            writeln!(File::options().append(true).create(true).open(list)?, "{step:?} {}", path.display())?;
        }
        if let Some((signal, number)) = *CHOSEN
            && BEGUN.fetch_add(1, Ordering::SeqCst) == number
        {
            let _ = kill_process(getpid(), signal);
            // Another thread handles the signal, and ends the process unless that is held off.
            std::thread::sleep(Duration::from_millis(30));
        }
        Ok(())
    }
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
        /// False if folders cannot be exchanged, as in file systems without this operation.
        pub(crate) exchange: bool,
        /// The counted steps, with their files.
        pub(crate) met: Vec<(Step, PathBuf)>,
    }

    impl Faults {
        /// Lets `pass` steps pass; then one step fails, or all if `sticky`.
        pub(crate) fn after(pass: usize, sticky: bool, kind: io::ErrorKind) -> Self {
            Self { counts: |_| true, pass, sticky, kind, exchange: true, met: Vec::new() }
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
        if step == Step::Exchange && !faults.exchange {
            return Err(io::ErrorKind::Unsupported.into());
        }
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
