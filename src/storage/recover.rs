//! Recovers from a process that was killed: removes its temporary files, and completes or takes back its replacement of a folder.

use super::carry::carry;
use super::is_missing;
use super::paths::{folder_of, real};
use super::plan::{Plan, UNFINISHED_PLAN};
use super::staged_folder::{NEW, OLD, PLAN, WITHIN, prefix};
use super::unfinished::is_unfinished;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Removes the unfinished files and folders of a process that was killed while it wrote this output, a file or a folder. An output folder
/// that was being replaced is the old or the new one afterwards. No other process may write there at the same time. Files that cannot
/// be removed stay.
pub(crate) fn remove_unfinished(output: &Path) {
    let target = real(output);
    let prefix = prefix(&target);
    for name in names(folder_of(&target)) {
        if is_of(&name, &prefix) {
            clear(&folder_of(&target).join(name), &target);
        }
    }
    for name in names(&target) {
        if is_of(&name, OsStr::new(WITHIN)) || name.to_str().is_some_and(is_unfinished) {
            clear(&target.join(name), &target);
        }
    }
}

/// The old folder, if a process was killed between the two moves that replace `folder`.
pub(crate) fn interrupted_replacement(folder: &Path) -> Option<PathBuf> {
    let target = real(folder);
    let prefix = prefix(&target);
    let shown = if folder.is_symlink() { folder_of(&target) } else { folder_of(folder) };
    let mut containers = names(folder_of(&target)).into_iter().filter(|name| is_of(name, &prefix));
    containers.find_map(|name| {
        let old = shown.join(name).join(OLD);
        (is_missing(&target) && old.is_dir()).then_some(old)
    })
}

fn names(folder: &Path) -> Vec<OsString> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).collect()
}

/// True if a name consists of this prefix and random characters.
fn is_of(name: &OsStr, prefix: &OsStr) -> bool {
    name.len() == prefix.len() + 6
        && name.as_encoded_bytes().starts_with(prefix.as_encoded_bytes())
        && name.to_str().is_none_or(is_unfinished)
}

/// Removes a temporary file. Recovers the folder `target` if it is the container of one.
fn clear(path: &Path, target: &Path) {
    if !path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        let _ = fs::remove_file(path);
    } else if names(path).iter().all(|name| [NEW, OLD, PLAN, UNFINISHED_PLAN].iter().any(|ours| name == ours))
    {
        let _ = recover(path, target);
    }
}

fn recover(container: &Path, target: &Path) -> Option<()> {
    let [new, old] = [NEW, OLD].map(|name| container.join(name));
    // Without a plan, nothing but the new folder was touched.
    if let Some((plan, inode_of_new)) = Plan::read(container) {
        let is_new = new.metadata().is_ok_and(|found| found.ino() == inode_of_new);
        if plan.in_place {
            plan.carry_out(container, target, target).ok()?;
        } else if old.is_dir() && is_missing(target) {
            fs::rename(&old, target).ok()?;
        } else if old.is_dir() {
            carry(&old, target, &plan.ours(), target).ok()?;
        } else if new.is_dir() && !is_new {
            carry(&new, target, &plan.ours(), target).ok()?;
        }
        // The plan goes last.
        for folder in [&new, &old].into_iter().filter(|folder| folder.is_dir()) {
            fs::remove_dir_all(folder).ok()?;
        }
    }
    fs::remove_dir_all(container).ok()
}

#[cfg(test)]
mod tests;
