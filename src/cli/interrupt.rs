//! Ctrl-C and termination. A run that saves its progress is asked to stop; anything else ends at once, and removes its temporary files.

use super::exit::INTERRUPTED;
use super::terminal::Terminal;
use crate::storage::{abandon_unfinished, is_unfinished};
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// The state of the signal handler.
#[derive(Clone, Debug)]
pub(crate) struct Interruption(Arc<State>);

#[derive(Debug)]
struct State {
    /// True while work asks for `requested`.
    polled: AtomicBool,
    /// True after the first signal during such work.
    requested: AtomicBool,
}

impl Interruption {
    /// Handles signals from now on. A process that ends at once first removes its unfinished files.
    pub(crate) fn handle(terminal: &Terminal) -> anyhow::Result<Self> {
        let state = State { polled: AtomicBool::new(false), requested: AtomicBool::new(false) };
        let interruption = Self(Arc::new(state));
        let (state, terminal) = (interruption.0.clone(), terminal.clone());
        ctrlc::set_handler(move || {
            if state.polled.load(SeqCst) && !state.requested.swap(true, SeqCst) {
                terminal.note("Saving the progress, then stopping; interrupt again to stop at once");
                return;
            }
            abandon_unfinished();
            std::process::exit(INTERRUPTED.into());
        })?;
        Ok(interruption)
    }

    /// Does work that often asks for [`requested`](Self::requested). The first signal does not end the process: the work stops itself.
    pub(crate) fn while_polled<T>(&self, work: impl FnOnce() -> T) -> T {
        self.0.polled.store(true, SeqCst);
        let result = work();
        self.0.polled.store(false, SeqCst);
        result
    }

    /// Returns whether a signal came during the work.
    pub(crate) fn requested(&self) -> bool {
        self.0.requested.load(SeqCst)
    }
}

/// Removes the unfinished [`AtomicFile`](crate::storage::AtomicFile)s of a process that was killed: in an output folder, or beside an
/// output file of the same name. No other process may write there at the same time. Files that cannot be removed stay.
pub(crate) fn remove_unfinished(output: &Path) {
    let (folder, prefix) = match (output.is_dir(), output.parent(), output.file_name()) {
        (false, Some(parent), Some(name)) => {
            let mut prefix = OsString::from(".");
            prefix.push(name);
            prefix.push(".tmp");
            (if parent.as_os_str().is_empty() { Path::new(".") } else { parent }, prefix)
        }
        _ => (output, OsString::new()),
    };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let ours = name.as_encoded_bytes().starts_with(prefix.as_encoded_bytes());
        if ours && name.to_str().is_some_and(is_unfinished) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::AtomicFile;

    fn names(folder: &Path) -> Vec<OsString> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }

    #[test]
    fn only_unfinished_files_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("notes.tmp"), "mine").unwrap();
        fs::write(folder.path().join(".hidden"), "mine").unwrap();
        let unfinished = AtomicFile::create(&folder.path().join("adapter_model.safetensors")).unwrap();
        assert_eq!(names(folder.path()).len(), 3);
        remove_unfinished(&folder.path().join("other"));
        assert_eq!(names(folder.path()).len(), 3, "another output's file");
        remove_unfinished(&folder.path().join("adapter_model.safetensors"));
        assert_eq!(names(folder.path()), [".hidden", "notes.tmp"]);
        drop(unfinished);
        let unfinished = AtomicFile::create(&folder.path().join("cntlora.json")).unwrap();
        remove_unfinished(folder.path());
        drop(unfinished);
        assert_eq!(names(folder.path()), [".hidden", "notes.tmp"]);
    }
}
