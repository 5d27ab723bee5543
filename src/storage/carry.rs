//! Carries the files of a replaced folder that belong to others over into the new folder.

use super::faults::{Step, step};
use super::paths::{folder_of, is_missing};
use super::unfinished::hold;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

/// The relative paths of the files and folders in `from` that are not `ours`. A folder that is also in `to`, or that holds a file of
/// ours, is not listed itself; its content is.
fn foreign(from: &Path, to: &Path, ours: &BTreeSet<PathBuf>) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(from.join(&folder))? {
            let entry = entry?;
            let relative = folder.join(entry.file_name());
            if !entry.file_type()?.is_dir() {
                if !ours.contains(&relative) {
                    found.push(relative);
                }
            } else if to.join(&relative).is_dir() || ours.iter().any(|ours| ours.starts_with(&relative)) {
                folders.push(relative);
            } else {
                found.push(relative);
            }
        }
    }
    Ok(found)
}

/// Makes hard links in `to` for the files in `from` that are not `ours`. So they stay in their place when the folders are exchanged.
/// Folders, and files for which no link can be made, are left to [`carry`].
pub(super) fn link(from: &Path, to: &Path, ours: &BTreeSet<PathBuf>, shown: &Path) -> io::Result<()> {
    for relative in foreign(from, to, ours)? {
        let (old, new) = (from.join(&relative), to.join(&relative));
        let _held = hold();
        fs::create_dir_all(folder_of(&new))?;
        if !old.symlink_metadata()?.is_dir() && is_missing(&new) {
            step(Step::Link, shown)?;
            let _ = fs::hard_link(&old, &new);
        }
    }
    Ok(())
}

/// Moves the files and folders in `from` that are not `ours`, and are not yet in `to`, to their place there.
pub(super) fn carry(from: &Path, to: &Path, ours: &BTreeSet<PathBuf>, shown: &Path) -> io::Result<()> {
    for relative in foreign(from, to, ours)? {
        let (old, new) = (from.join(&relative), to.join(&relative));
        let moved = old.symlink_metadata()?;
        let in_place = match new.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(folder_of(&new))?;
                false
            }
            Err(error) => return Err(error),
            // Another program can have replaced the file since it was linked.
            Ok(there) => is_same(&moved, &there) || there.is_dir() || modified(&there) >= modified(&moved),
        };
        if !in_place {
            step(Step::Rename, shown)?;
            fs::rename(&old, &new)?;
        }
    }
    Ok(())
}

fn is_same(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

fn modified(metadata: &Metadata) -> (i64, i64) {
    (metadata.mtime(), metadata.mtime_nsec())
}

/// The relative paths of all folders in a folder, itself included.
pub(super) fn folders_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::new()];
    let mut done = 0;
    while let Some(relative) = found.get(done).cloned() {
        for entry in fs::read_dir(folder.join(&relative))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                found.push(relative.join(entry.file_name()));
            }
        }
        done += 1;
    }
    Ok(found)
}

/// Gives a folder the owner, the attributes (such as access control lists) and the permissions of another one.
pub(super) fn copy_metadata(from: &Path, to: &Path) -> io::Result<()> {
    let (wanted, found) = (fs::metadata(from)?, fs::metadata(to)?);
    if (wanted.uid(), wanted.gid()) != (found.uid(), found.gid()) {
        chown(to, Some(wanted.uid()), Some(wanted.gid()))?;
    }
    copy_attributes(from, to)?;
    fs::set_permissions(to, wanted.permissions())
}

#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn copy_attributes(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{XattrFlags, removexattr, setxattr};
    let names = attributes(from)?;
    for name in &names {
        // Some file systems list attributes that they do not give.
        let Ok(wanted) = attribute(from, name) else { continue };
        if attribute(to, name).is_ok_and(|found| found == wanted) {
            continue;
        }
        setxattr(to, &**name, &wanted, XattrFlags::empty())?;
    }
    for name in attributes(to)?.iter().filter(|name| !names.contains(name)) {
        removexattr(to, &**name)?;
    }
    Ok(())
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn copy_attributes(_: &Path, _: &Path) -> io::Result<()> {
    Ok(())
}

/// The names of the attributes of a folder. Empty if the file system has none.
#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn attributes(folder: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    use rustix::fs::{listxattr, listxattr_query};
    use std::os::unix::ffi::OsStrExt;
    let length = match listxattr_query(folder) {
        Err(rustix::io::Errno::NOTSUP) => return Ok(Vec::new()),
        length => length?,
    };
    let mut names = vec![0_u8; length];
    let length = listxattr(folder, &mut names[..])?;
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.map(|name| OsStr::from_bytes(name).to_owned()).collect())
}

#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn attribute(folder: &Path, name: &OsStr) -> io::Result<Vec<u8>> {
    use rustix::fs::{getxattr, getxattr_query};
    let mut value = vec![0_u8; getxattr_query(folder, name)?];
    let length = getxattr(folder, name, &mut value[..])?;
    value.truncate(length);
    Ok(value)
}
