//! The temporary files and folders of this process. A signal removes them before the process exits.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// A temporary file or folder, listed until this is dropped.
#[derive(Debug)]
pub(super) struct Listed(PathBuf);

impl Listed {
    /// Creates a file or folder. The list is locked meanwhile, so the file is never missing from it.
    pub(super) fn make<T>(
        make: impl FnOnce() -> io::Result<T>,
        path: impl FnOnce(&T) -> &Path,
    ) -> io::Result<(T, Self)> {
        let mut held = hold();
        let made = make()?;
        let path = path(&made).to_owned();
        held.0.insert(path.clone());
        Ok((made, Self(path)))
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        hold().0.remove(&self.0);
    }
}

/// Holds off the end of the process by a signal, until it is dropped. No [`Listed`] may be made or dropped meanwhile.
pub(super) struct Held(MutexGuard<'static, BTreeSet<PathBuf>>);

impl Held {
    /// Lets a signal leave this file or folder as it is.
    pub(super) fn keep(&mut self, path: &Path) {
        self.0.remove(path);
    }

    /// Removes all listed files and folders.
    fn remove(&self) {
        for path in self.0.iter() {
            let _ = fs::remove_file(path).or_else(|_| fs::remove_dir_all(path));
        }
    }
}

/// Waits for other threads that hold the list, and then holds it.
pub(super) fn hold() -> Held {
    Held(UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Removes the unfinished files and folders of this process. Call it immediately before the process exits without unwinding: threads
/// that try to create another one then wait for the exit. A replacement of folders that has begun is first completed.
pub fn abandon_unfinished() {
    let held = hold();
    held.remove();
    std::mem::forget(held);
}

/// Removes the unfinished files and folders of this process. A thread that is writing one then fails, and does not put it in its place.
pub fn remove_unfinished_files() {
    hold().remove();
}

/// True if a name is that of an unfinished file or folder: `.NAME.tmp` and six random characters.
pub fn is_unfinished(name: &str) -> bool {
    name.starts_with('.')
        && name.rsplit_once(".tmp").is_some_and(|(_, random)| {
            random.len() == 6 && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
        })
}

/// True if a signal would remove a file or folder with this name.
#[cfg(test)]
pub(super) fn is_listed(name: &str) -> bool {
    hold().0.iter().any(|path| path.ends_with(name))
}
