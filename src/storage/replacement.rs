//! Replaces folders: at every moment, the old one or the new one is in place as a whole.
//!
//! The way depends on the file system and the folder:
//!
//! - Both folders are exchanged in one step.
//! - If the file system cannot exchange folders, the old one is moved away and the new one takes its place. If the process is killed in
//!   between, the next run puts the old one back.
//! - If the folder cannot be renamed, the files are put in place one by one. If the process is killed in between, the next run completes
//!   this.
//!
//! Signals that the process handles wait until the new folder is complete. Files of others are in the new folder too, as hard links,
//! before it takes its place. Their subfolders are moved right after.

use super::Problem;
use super::carry::{carry, copy_metadata, folders_in, link};
use super::faults::{Step, step};
use super::paths::{folder_of, is_missing};
use super::plan::Plan;
use super::staged_folder::{PLAN, StagedFolder};
use super::unfinished::{Held, hold};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// A new folder that is complete, and the files of the old one that it does not keep.
pub(crate) struct Replacement {
    folder: StagedFolder,
    plan: Plan,
}

/// How a folder was put in place.
enum Way {
    /// There was none before.
    Renamed,
    Exchanged,
    /// The old one was moved away before.
    Moved,
    InPlace,
}

impl Replacement {
    /// `remove` are the old files that are not kept, in the order in which they are removed if they are removed one by one. `place` are the
    /// new files, in the order in which they are put in place. All paths are relative to the folder.
    pub(crate) fn new(folder: StagedFolder, remove: Vec<PathBuf>, place: Vec<PathBuf>) -> Self {
        let plan = Plan { in_place: folder.in_place, remove, place };
        Self { folder, plan }
    }
}

/// Puts new folders in place, one directly after the other, and removes the old ones.
///
/// # Errors
/// An I/O problem if a step fails. Up to the last step that puts a folder in place, the old folders are or get back in place.
pub(crate) fn replace(mut all: Vec<Replacement>) -> Result<(), Problem> {
    for one in &mut all {
        one.prepare()?;
    }
    let mut held = hold();
    let mut done: Vec<(usize, Way)> = Vec::new();
    for index in 0..all.len() {
        match all[index].put_in_place(&mut held) {
            Ok(way) => done.push((index, way)),
            Err(problem) => {
                for (index, way) in done.into_iter().rev() {
                    all[index].take_back(&way, &mut held);
                }
                return Err(problem);
            }
        }
    }
    drop(held);
    let finished: Vec<_> = all.into_iter().map(Replacement::finish).collect();
    finished.into_iter().collect()
}

impl Replacement {
    /// Does all that does not change the old folder.
    fn prepare(&mut self) -> Result<(), Problem> {
        let Self { folder, plan } = self;
        let (shown, new) = (folder.path().to_owned(), folder.new_folder());
        let failed = |doing, error: io::Error| Problem::io(doing, &error).in_file(&shown);
        if folder.replaces && !folder.in_place {
            link(&folder.target, &new, &plan.ours(), &shown)
                .map_err(|error| failed("cannot carry over the other files of the folder", error))?;
            let copied = copy_all_metadata(&folder.target, &new, &shown);
            // Files that are put in place one by one do not change the folder.
            folder.in_place =
                !copied.map_err(|error| failed("cannot keep the permissions of the folder", error))?;
        }
        for below in folders_in(&new).map_err(|error| failed("cannot list the new folder", error))? {
            step(Step::SyncFolder, &shown)
                .and_then(|()| File::open(new.join(&below))?.sync_all())
                .map_err(|error| failed("cannot sync the new folder to disk", error))?;
        }
        if folder.replaces && !folder.in_place {
            let _held = hold();
            plan.write(&folder.container)?;
        }
        Ok(())
    }

    /// Replaces the folder in the best way that is possible.
    fn put_in_place(&mut self, held: &mut Held) -> Result<Way, Problem> {
        let (shown, new) = (self.folder.path().to_owned(), self.folder.new_folder());
        let failed = |error: io::Error| Problem::io("cannot replace the folder", &error).in_file(&shown);
        if !self.folder.replaces {
            let renamed = step(Step::Rename, &shown).and_then(|()| rename_new(&new, &self.folder.target));
            return renamed.map(|()| Way::Renamed).map_err(failed);
        }
        if !self.folder.in_place {
            let replaced = self.exchange().and_then(|way| match self.carry_from(&self.old(&way)) {
                Ok(()) => Ok(way),
                Err(error) => {
                    self.take_back(&way, held);
                    Err(error)
                }
            });
            match replaced {
                Err(error) if is_refused(&error) && !self.folder.is_kept() => {}
                replaced => return replaced.map_err(failed),
            }
        }
        let Self { folder, plan } = self;
        plan.in_place = true;
        plan.write(&folder.container)?;
        plan.carry_out(&folder.container, &folder.target, &shown).map_err(|problem| {
            folder.keep(held);
            problem.help("give the same command again: it first puts the other new files in place")
        })?;
        Ok(Way::InPlace)
    }

    /// Exchanges the folders, or moves them if that is impossible.
    fn exchange(&self) -> io::Result<Way> {
        let StagedFolder { target, .. } = &self.folder;
        let (shown, new, old) = (self.folder.path(), self.folder.new_folder(), self.folder.old_folder());
        match step(Step::Exchange, shown).and_then(|()| exchange(&new, target)) {
            Err(error) if is_impossible(&error) => {}
            exchanged => return exchanged.map(|()| Way::Exchanged),
        }
        step(Step::Rename, shown).and_then(|()| fs::rename(target, &old))?;
        step(Step::Rename, shown).and_then(|()| fs::rename(&new, target)).inspect_err(|_| {
            // If this fails too, the next run does it.
            let _ = fs::rename(&old, target);
        })?;
        Ok(Way::Moved)
    }

    /// The place of the old folder.
    fn old(&self, way: &Way) -> PathBuf {
        match way {
            Way::Moved => self.folder.old_folder(),
            _ => self.folder.new_folder(),
        }
    }

    /// Moves what belongs to others from a folder to the one in place.
    fn carry_from(&self, from: &Path) -> io::Result<()> {
        carry(from, &self.folder.target, &self.plan.ours(), self.folder.path())
    }

    /// Puts the old folder back. If this fails, the next run carries over what belongs to others.
    fn take_back(&mut self, way: &Way, held: &mut Held) {
        let StagedFolder { target, .. } = &self.folder;
        let (shown, new, old) = (self.folder.path(), self.folder.new_folder(), self.folder.old_folder());
        let taken = match way {
            Way::Renamed => step(Step::Rename, shown).and_then(|()| fs::rename(target, &new)),
            Way::Exchanged => step(Step::Exchange, shown)
                .and_then(|()| exchange(&new, target))
                .and_then(|()| self.carry_from(&new)),
            Way::Moved => step(Step::Rename, shown)
                .and_then(|()| fs::rename(target, &new))
                .and_then(|()| fs::rename(&old, target))
                .and_then(|()| self.carry_from(&new)),
            Way::InPlace => Ok(()),
        };
        if taken.is_err() {
            self.folder.keep(held);
        }
    }

    /// Syncs the replacement to disk, and removes the old folder.
    fn finish(self) -> Result<(), Problem> {
        let Self { folder, .. } = self;
        let shown = folder.path();
        step(Step::SyncFolder, shown)
            .and_then(|()| File::open(folder_of(&folder.target))?.sync_all())
            .map_err(|error| {
                Problem::io("replaced, but cannot sync its parent to disk", &error).in_file(shown)
            })?;
        let remove = |path: PathBuf| match path.symlink_metadata() {
            Err(_) => Ok(()),
            Ok(found) => step(Step::Remove, shown).and_then(|()| match found.is_dir() {
                true => fs::remove_dir_all(&path),
                false => fs::remove_file(&path),
            }),
        };
        // The plan goes last, so that a run that finds the rest knows that it is old.
        [folder.new_folder(), folder.old_folder(), folder.container.join(PLAN), folder.container.clone()]
            .into_iter()
            .try_for_each(remove)
            .map_err(|error| Problem::io("replaced, but cannot remove the old files", &error).in_file(shown))
    }
}

/// Gives new folders the owners and permissions of the old ones. False if this is not allowed.
fn copy_all_metadata(from: &Path, to: &Path, shown: &Path) -> io::Result<bool> {
    for below in folders_in(to)? {
        let old = from.join(&below);
        if old.is_dir() {
            step(Step::Permissions, shown)?;
            if copy_metadata(&old, &to.join(&below)).is_err() {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// True if a file system does not have an operation.
fn is_impossible(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput)
}

/// True if a folder, or one in it, cannot be renamed, but its files perhaps can be.
fn is_refused(error: &io::Error) -> bool {
    use io::ErrorKind::{CrossesDevices, PermissionDenied, ReadOnlyFilesystem, ResourceBusy};
    is_impossible(error)
        || matches!(error.kind(), PermissionDenied | ResourceBusy | CrossesDevices | ReadOnlyFilesystem)
}

#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn exchange(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Renames a folder to a name that is free.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE).map_err(io::Error::from) {
            Err(error) if is_impossible(&error) => {}
            renamed => return renamed,
        }
    }
    if is_missing(to) { fs::rename(from, to) } else { Err(io::ErrorKind::AlreadyExists.into()) }
}

#[cfg(test)]
mod tests;
