//! A folder that is written beside the folder that it will replace.
//!
//! A container, `.NAME.tmp` and six random characters beside the folder NAME, holds:
//!
//! | name | content |
//! |---|---|
//! | `new` | the new folder; after the exchange, the old one |
//! | `old` | the old folder, if the file system cannot exchange folders |
//! | `plan` | the files that change, as soon as the replacement can begin (`replacement`) |
//!
//! If the folder cannot be renamed, the container lies in the folder itself, as `.cntlora.tmp` and six random characters.

use super::Problem;
use super::faults::{Step, step};
use super::new_file::NewFile;
use super::paths::{folder_of, real};
use super::unfinished::{Held, Listed, hold};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

pub(super) const NEW: &str = "new";
pub(super) const OLD: &str = "old";
pub(super) const PLAN: &str = "plan";

/// The part of a container's name before the random characters, if the container lies in the folder itself.
pub(super) const WITHIN: &str = ".cntlora.tmp";

/// A new folder, and the place of the one that it will replace. Dropping it removes the new folder, or the old one after an exchange.
#[derive(Debug)]
pub(crate) struct StagedFolder {
    /// The path as the user gave it, for messages.
    path: PathBuf,
    /// The path without links.
    pub(super) target: PathBuf,
    /// True if there is a folder to replace.
    pub(super) replaces: bool,
    /// True if the files must be put in place one by one, because the folder cannot be renamed.
    pub(super) in_place: bool,
    pub(super) container: PathBuf,
    /// True if the container is needed after this is dropped.
    kept: bool,
    _listed: Listed,
}

impl StagedFolder {
    /// Creates an empty folder. The parent folder of `path` must exist.
    ///
    /// # Errors
    /// An I/O problem if the folder cannot be created, or if there is a file at `path`.
    pub(crate) fn create(path: &Path) -> Result<Self, Problem> {
        let failed = |error: io::Error| {
            let problem = Problem::io("cannot create the folder", &error).in_file(path);
            match error.kind() {
                io::ErrorKind::NotFound => problem.help("create its parent folder first"),
                _ => problem,
            }
        };
        let replaced = check_place(path)?;
        step(Step::CreateFolder, path).map_err(failed)?;
        let target = real(path);
        fs::metadata(folder_of(&target)).map_err(failed)?;
        let beside = match &replaced {
            Some(folder) if stays(path, &target, folder) => None,
            _ => Some(container(folder_of(&target), &prefix(&target))),
        };
        let (container, listed, in_place) = match beside {
            Some(Ok((made, listed))) => (made, listed, false),
            Some(Err(error)) if replaced.is_none() => return Err(failed(error)),
            _ => {
                let (made, listed) = container(&target, OsStr::new(WITHIN)).map_err(failed)?;
                (made, listed, true)
            }
        };
        let replaces = replaced.is_some();
        Ok(Self { path: path.into(), target, replaces, in_place, container, kept: false, _listed: listed })
    }

    /// The path as the user gave it.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The path without links.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// Starts a file. Creates the folders of its relative path. `path` is the path that it will have, for messages.
    ///
    /// # Errors
    /// An I/O problem if the file cannot be created, or if its place is taken by something that is not a file.
    pub(crate) fn file(&self, relative: &Path, path: &Path) -> Result<NewFile, Problem> {
        let staged = self.new_folder().join(relative);
        if let Some(parent) = relative.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            let shown = folder_of(path);
            check_place(shown)?;
            let create = || {
                let _held = hold();
                fs::create_dir_all(self.new_folder().join(parent))
            };
            step(Step::CreateFolder, shown)
                .and_then(|()| create())
                .map_err(|error| Problem::io("cannot create the folder", &error).in_file(shown))?;
        }
        let create = || {
            let _held = hold();
            Ok((File::options().write(true).create_new(true).open(&staged)?, ()))
        };
        NewFile::create(path, create).map(|(file, ())| file)
    }

    pub(super) fn new_folder(&self) -> PathBuf {
        self.container.join(NEW)
    }

    pub(super) fn old_folder(&self) -> PathBuf {
        self.container.join(OLD)
    }

    /// Leaves the container to the next run.
    pub(super) fn keep(&mut self, held: &mut Held) {
        held.keep(&self.container);
        self.kept = true;
    }

    pub(super) fn is_kept(&self) -> bool {
        self.kept
    }
}

impl Drop for StagedFolder {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_dir_all(&self.container);
        }
    }
}

/// Returns the folder at a path, if there is one.
///
/// # Errors
/// An I/O problem if there is something else.
pub(super) fn check_place(path: &Path) -> Result<Option<Metadata>, Problem> {
    let refused = || {
        Problem::environment("the output path is not a folder")
            .in_file(path)
            .help("choose another name for the output")
    };
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(Some(metadata)),
        Ok(_) => Err(refused()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match path.is_symlink() {
            true => Err(refused()),
            false => Ok(None),
        },
        Err(error) => Err(Problem::io("cannot create the folder", &error).in_file(path)),
    }
}

/// The part of a container's name before the random characters.
pub(super) fn prefix(target: &Path) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(target.file_name().unwrap_or_default());
    prefix.push(".tmp");
    prefix
}

/// Creates a container with an empty new folder.
fn container(parent: &Path, prefix: &OsStr) -> io::Result<(PathBuf, Listed)> {
    let make = || {
        let container = tempfile::Builder::new().prefix(prefix).tempdir_in(parent)?;
        fs::create_dir(container.path().join(NEW))?;
        Ok(TempDir::keep(container))
    };
    Listed::make(make, |path| path)
}

/// True if a folder must not be renamed: it is the current folder, or the root of a file system.
fn stays(path: &Path, target: &Path, folder: &Metadata) -> bool {
    let is_current = || std::env::current_dir().is_ok_and(|current| real(&current) == target);
    path.file_name().is_none() || is_current() || is_mounted(target, folder)
}

/// True if the folder is the root of a file system, or of a part of one that is mounted here.
fn is_mounted(target: &Path, folder: &Metadata) -> bool {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
        if statx(CWD, target, AtFlags::empty(), StatxFlags::empty())
            .is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
        {
            return true;
        }
    }
    fs::metadata(folder_of(target)).is_ok_and(|parent| parent.dev() != folder.dev())
}

#[cfg(test)]
mod tests;
