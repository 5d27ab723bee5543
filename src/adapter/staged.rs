//! An adapter and what belongs to it, written to the disk before anything old makes way for it.

use super::folder::OutputFolder;
use super::record::Record;
use super::replace::{BaseRecord, is_anchor, remove_anchor};
use super::{RECORD_FILE, REPORT_FILE, StagedBase, TENSORS_FILE, last_files, retire};
use crate::storage::{AtomicFile, Category, Problem, Problems, StagedFile};
use std::path::{Path, PathBuf};

/// Where the changed base of an adapter is unless it is told.
pub fn default_base(folder: &Path) -> PathBuf {
    folder.join("base")
}

/// Where the adapter is that takes the update of another one away.
pub fn anchor_of(folder: &Path) -> PathBuf {
    folder.join("anchor")
}

/// An adapter that is written to the disk, but not yet in place. Dropping it leaves no trace.
pub struct StagedAdapter<'a> {
    /// In the order in which they are put in place.
    files: Vec<StagedFile>,
    /// Files of the adapter in its place that would stay beside it.
    old: Vec<&'static str>,
    // After the files, so that a folder that was made for them is empty when it goes.
    output: OutputFolder<'a>,
}

impl<'a> StagedAdapter<'a> {
    /// The last of the files is the one whose presence means that all are complete.
    pub(super) fn new(files: Vec<AtomicFile>, output: OutputFolder<'a>) -> Result<Self, Problem> {
        let is_old = |name: &&str| !files.iter().any(|file| file.path().file_name() == Some(name.as_ref()));
        let mut old = vec![TENSORS_FILE];
        match Record::read(&output.path().join(RECORD_FILE)) {
            // It is about the adapter before.
            Ok(Some(_)) => old.push(REPORT_FILE),
            Err(problem) if problem.category() == Category::Io => return Err(problem),
            _ => {}
        }
        old.retain(is_old);
        let files = files.into_iter().map(AtomicFile::stage).collect::<Result<_, _>>()?;
        Ok(Self { files, old, output })
    }

    /// Puts it in the place of an adapter in whatever format. The file that completed that one goes first.
    pub(super) fn commit(self) -> Result<(), Problem> {
        let Self { output, old, files } = self;
        last_files().chain(old).try_for_each(|name| output.remove(name))?;
        files.into_iter().try_for_each(StagedFile::commit)
    }
}

/// An adapter, and what is written with it.
pub struct Staged<'a> {
    /// The adapter.
    pub adapter: StagedAdapter<'a>,
    /// The base that it belongs to, if that is changed.
    pub base: Option<StagedBase<'a>>,
    /// The adapter that takes its update away, if there is one.
    pub anchor: Option<StagedAdapter<'a>>,
    /// A page about it.
    pub page: Option<StagedFile>,
}

impl Staged<'_> {
    /// Puts everything in place, the adapter last: its presence means that all is there. An adapter that is replaced goes with all
    /// that belongs to it. Returns what was left out of the base.
    ///
    /// # Errors
    /// An I/O problem if a file cannot be renamed or removed; a data problem for a record of an earlier base that names files
    /// elsewhere. Nothing that loads is then a mixture.
    pub fn commit(self) -> Result<Vec<String>, Problems> {
        // What is not committed goes in the other order: the folder of the adapter, which may hold the others, last.
        let Self { adapter, base, anchor, page } = self;
        let folder = adapter.output.path();
        let (base_folder, anchor_folder) = (default_base(folder), anchor_of(folder));
        // Records that cannot be read are told of while the old adapter is still there.
        let old_base = BaseRecord::of(&base_folder)?;
        let has_anchor = is_anchor(&anchor_folder)?;
        // On another base, or beside another anchor, the old one would mean something else.
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
