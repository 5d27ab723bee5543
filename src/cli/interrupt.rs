//! Ctrl-C and termination: temporary files go, everything that is complete stays.

use super::exit::INTERRUPTED;
use std::fs;
use std::path::{Path, PathBuf};

/// Ends the process with its code when it is interrupted, after removing the unfinished files of `folders`.
pub fn clean_up_on_interrupt(folders: Vec<PathBuf>) -> anyhow::Result<()> {
    ctrlc::set_handler(move || {
        for folder in &folders {
            remove_unfinished(folder);
        }
        std::process::exit(INTERRUPTED.into());
    })?;
    Ok(())
}

/// Removes what an unfinished [`AtomicFile`](cntlora::storage::AtomicFile) left in a folder. Files that resist stay.
fn remove_unfinished(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(is_unfinished) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether a name is `.NAME.tmp` and six random characters.
fn is_unfinished(name: &str) -> bool {
    name.starts_with('.')
        && name.rsplit_once(".tmp").is_some_and(|(_, random)| {
            random.len() == 6 && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cntlora::storage::AtomicFile;

    /// What this removes must be what the library leaves, and nothing else.
    #[test]
    fn unfinished_files_are_recognized() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("notes.tmp"), "mine").unwrap();
        fs::write(folder.path().join(".hidden"), "mine").unwrap();
        let unfinished = AtomicFile::create(&folder.path().join("adapter_model.safetensors")).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
        remove_unfinished(folder.path());
        drop(unfinished);
        let mut left: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".hidden", "notes.tmp"]);
    }
}
