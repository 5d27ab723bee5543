//! The plan of a replacement: the files that change. It is on the disk while a folder is replaced, so that the next run can complete the
//! replacement if this one is killed.

use super::faults::{Step, step};
use super::new_file::NewFile;
use super::paths::folder_of;
use super::staged_folder::{NEW, PLAN};
use super::{Problem, is_missing};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// The first entry of the file. Each entry ends with a zero byte.
const HEADING: &str = "cntlora-replacement 1";
const END: &str = "end";
/// The name of the file while it is written.
pub(super) const UNFINISHED_PLAN: &str = "plan.tmp";

/// The files that a replacement changes, by their paths in the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// True if the files are put in place one by one.
    pub(super) in_place: bool,
    /// Old files, in the order in which they are removed.
    pub(super) remove: Vec<PathBuf>,
    /// New files, in the order in which they are put in place.
    pub(super) place: Vec<PathBuf>,
}

impl Plan {
    /// All files that change.
    pub(super) fn ours(&self) -> BTreeSet<PathBuf> {
        self.remove.iter().chain(&self.place).cloned().collect()
    }

    /// Writes the plan into a container.
    pub(super) fn write(&self, container: &Path) -> Result<(), Problem> {
        let path = container.join(PLAN);
        let failed =
            |error: io::Error| Problem::io("cannot write the plan of the replacement", &error).in_file(&path);
        let new = fs::metadata(container.join(NEW)).map_err(failed)?.ino();
        let way = if self.in_place { "in place" } else { "exchange" };
        let mut text = format!("{HEADING}\0{way}\0{new}\0").into_bytes();
        for (sign, paths) in [(b'-', &self.remove), (b'+', &self.place)] {
            for path in paths {
                text.push(sign);
                text.extend_from_slice(path.as_os_str().as_bytes());
                text.push(0);
            }
        }
        text.extend_from_slice(END.as_bytes());
        let unfinished = container.join(UNFINISHED_PLAN);
        let (mut file, ()) = NewFile::create(&path, || Ok((File::create(&unfinished)?, ())))?;
        file.put(&text)?;
        file.finish()?;
        step(Step::Rename, &path)
            .and_then(|()| fs::rename(&unfinished, &path))
            .and_then(|()| step(Step::SyncFolder, &path))
            .and_then(|()| File::open(container)?.sync_all())
            .map_err(failed)
    }

    /// Reads the plan in a container, and the inode of the new folder. `None` if there is no complete plan, or if a path leads out of the
    /// folder.
    pub(super) fn read(container: &Path) -> Option<(Self, u64)> {
        let text = fs::read(container.join(PLAN)).ok()?;
        let mut entries = text.split(|byte| *byte == 0);
        if entries.next()? != HEADING.as_bytes() {
            return None;
        }
        let in_place = entries.next()? == b"in place";
        let new = std::str::from_utf8(entries.next()?).ok()?.parse().ok()?;
        let mut plan = Self { in_place, remove: Vec::new(), place: Vec::new() };
        for entry in entries {
            if entry == END.as_bytes() {
                return Some((plan, new));
            }
            let (sign, path) = entry.split_first()?;
            let path = PathBuf::from(OsStr::from_bytes(path));
            let stays = !path.as_os_str().is_empty()
                && path.components().all(|component| matches!(component, Component::Normal(_)));
            match sign {
                b'-' if stays => plan.remove.push(path),
                b'+' if stays => plan.place.push(path),
                _ => return None,
            }
        }
        None
    }

    /// Removes the old files, and puts the new files of a container in place. The last file follows when all others are on the disk.
    /// Files that are in place already are passed over.
    pub(super) fn carry_out(&self, container: &Path, target: &Path, shown: &Path) -> Result<(), Problem> {
        let is_in_place =
            |path: &PathBuf| self.place.contains(path) && is_missing(&container.join(NEW).join(path));
        for path in self.remove.iter().filter(|path| !is_in_place(path)) {
            let shown = shown.join(path);
            match step(Step::Remove, &shown).and_then(|()| fs::remove_file(target.join(path))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Problem::io("cannot remove the old file", &error).in_file(&shown));
                }
                _ => {}
            }
        }
        self.sync(target, shown, &self.remove)?;
        let [others @ .., last] = &self.place[..] else { return self.remove_empty(target) };
        let put = |path: &PathBuf| {
            let (new, place) = (container.join(NEW).join(path), target.join(path));
            if is_missing(&new) {
                return Ok(());
            }
            let shown = shown.join(path);
            fs::create_dir_all(folder_of(&place))
                .and_then(|()| step(Step::Rename, &shown))
                .and_then(|()| fs::rename(&new, &place))
                .map_err(|error| Problem::io("cannot rename the temporary file", &error).in_file(&shown))
        };
        others.iter().try_for_each(put)?;
        self.sync(target, shown, others)?;
        put(last)?;
        self.sync(target, shown, std::slice::from_ref(last))?;
        self.remove_empty(target)
    }

    /// Syncs the folders of files.
    fn sync(&self, target: &Path, shown: &Path, files: &[PathBuf]) -> Result<(), Problem> {
        let folders: BTreeSet<&Path> = files.iter().filter_map(|file| file.parent()).collect();
        for folder in folders.into_iter().filter(|folder| target.join(folder).is_dir()) {
            // Without a slash at its end.
            let shown: PathBuf = shown.join(folder).components().collect();
            step(Step::SyncFolder, &shown)
                .and_then(|()| File::open(target.join(folder))?.sync_all())
                .map_err(|error| Problem::io("cannot sync the folder to disk", &error).in_file(&shown))?;
        }
        Ok(())
    }

    /// Removes the folders that held only old files.
    fn remove_empty(&self, target: &Path) -> Result<(), Problem> {
        let folders: BTreeSet<&Path> = self.remove.iter().filter_map(|file| file.parent()).collect();
        for folder in folders.into_iter().rev().filter(|folder| !folder.as_os_str().is_empty()) {
            // Fails, as intended, if other files are in the folder.
            let _ = fs::remove_dir(target.join(folder));
        }
        Ok(())
    }
}
