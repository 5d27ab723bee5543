//! An adapter with its base and anchor, completely written before old files are replaced.

use super::folder::OutputFolder;
use super::names::last_files;
use super::record::Record;
use super::replace::{BaseRecord, is_anchor, remove_anchor};
use super::{RECORD_FILE, REPORT_FILE, StagedBase, TENSORS_FILE, retire};
use crate::storage::{AtomicFile, Category, Problem, Problems, StagedFile};
use std::path::{Path, PathBuf};

/// The default folder for the changed base of an adapter.
pub fn default_base(folder: &Path) -> PathBuf {
    folder.join("base")
}

/// The folder of the anchor: the adapter that subtracts the initial update of another adapter.
pub fn anchor_of(folder: &Path) -> PathBuf {
    folder.join("anchor")
}

/// An adapter that is synced to disk, but not yet in place. Dropping it removes it.
pub struct StagedAdapter<'a> {
    /// In the order in which they are put in place.
    files: Vec<StagedFile>,
    /// Files of an old adapter that the new one does not replace.
    old: Vec<&'static str>,
    // Dropped after the files, so that a folder that was created for them is empty then.
    output: OutputFolder<'a>,
}

impl<'a> StagedAdapter<'a> {
    /// Syncs the files. The presence of the last one will mean that all are complete.
    pub(super) fn new(files: Vec<AtomicFile>, output: OutputFolder<'a>) -> Result<Self, Problem> {
        let is_old = |name: &&str| !files.iter().any(|file| file.path().file_name() == Some(name.as_ref()));
        let mut old = vec![TENSORS_FILE];
        match Record::read(&output.path().join(RECORD_FILE)) {
            // The report describes the old adapter.
            Ok(Some(_)) => old.push(REPORT_FILE),
            Err(problem) if problem.category() == Category::Io => return Err(problem),
            _ => {}
        }
        old.retain(is_old);
        let files = files.into_iter().map(AtomicFile::stage).collect::<Result<_, _>>()?;
        Ok(Self { files, old, output })
    }

    /// Replaces an old adapter, in whatever format it is. The file that completes the old one is removed first.
    pub(super) fn commit(self) -> Result<(), Problem> {
        let Self { output, old, files } = self;
        last_files().chain(old).try_for_each(|name| output.remove(name))?;
        files.into_iter().try_for_each(StagedFile::commit)
    }
}

/// An adapter, and the other outputs of a run.
pub struct Staged<'a> {
    /// The adapter.
    pub adapter: StagedAdapter<'a>,
    /// The changed base of the adapter, if there is one.
    pub base: Option<StagedBase<'a>>,
    /// The anchor, if there is one.
    pub anchor: Option<StagedAdapter<'a>>,
    /// The report as a page, if it is wanted.
    pub page: Option<StagedFile>,
}

impl Staged<'_> {
    /// Puts everything in place. The adapter comes last: if it is present, everything is. An old adapter is removed with its base and
    /// anchor. Returns the files of the model that were not copied to the base.
    ///
    /// # Errors
    /// An I/O problem if a file cannot be renamed or removed; a data problem if the record of an earlier base lists files outside of its
    /// folder. Old and new files never load together then.
    pub fn commit(self) -> Result<Vec<String>, Problems> {
        // After an error, the rest is dropped in reverse order: the folder of the adapter, which can contain the others, last.
        let Self { adapter, base, anchor, page } = self;
        let folder = adapter.output.path();
        let (base_folder, anchor_folder) = (default_base(folder), anchor_of(folder));
        // Records are read first, so that a problem leaves the old adapter in place.
        let old_base = BaseRecord::of(&base_folder)?;
        let has_anchor = is_anchor(&anchor_folder)?;
        // The old adapter must not be used with the new base or anchor.
        retire(folder)?;
        if let Some(old_base) = old_base
            && base.as_ref().is_none_or(|base| base.folder() != base_folder)
        {
            old_base.remove_from(&base_folder)?;
        }
        if has_anchor && anchor.is_none() {
            remove_anchor(&anchor_folder)?;
        }
        let left_out = base.map_or(Ok(Vec::new()), StagedBase::commit)?;
        anchor.map_or(Ok(()), StagedAdapter::commit)?;
        page.map_or(Ok(()), StagedFile::commit)?;
        adapter.commit()?;
        Ok(left_out)
    }
}
