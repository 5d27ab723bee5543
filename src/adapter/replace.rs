//! The residual base or the anchor of an earlier run. Only files that their records list are removed.

use super::record::Record;
use super::{FileRecord, RECORD_FILE};
use crate::storage::{Access, Category, Problem, Schema, Source, is_missing, is_plain_name, quoted};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const SCHEMA: Schema = Schema {
    format: "cntlora-base",
    newest: 1,
    name: "record of a residual base",
    help: "choose another folder for the residual base",
};

/// The record in the folder of a residual base: the files that cntlora wrote.
#[derive(Serialize, Deserialize)]
pub(super) struct BaseRecord {
    format: String,
    version: u64,
    /// Sorted names of files in the folder.
    pub(super) files: Vec<String>,
    /// The tensors of the adapter that it was written with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) adapter: Option<FileRecord>,
}

impl BaseRecord {
    pub(super) fn new(mut files: Vec<String>, adapter: Option<FileRecord>) -> Self {
        files.sort();
        Self { format: SCHEMA.format.into(), version: SCHEMA.newest, files, adapter }
    }

    /// Reads the record in a folder; `None` if there is no valid record of a residual base.
    pub(super) fn of(folder: &Path) -> Result<Option<Self>, Problem> {
        let path = folder.join(RECORD_FILE);
        if is_missing(&path) {
            return Ok(None);
        }
        let record: Self = match SCHEMA.read(&Source::open(&path, Access::Read)?) {
            Err(problem) if problem.category() == Category::Data => return Ok(None),
            record => record?,
        };
        match record.files.iter().find(|name| !is_plain_name(name)) {
            None => Ok(Some(record)),
            Some(name) => {
                let what = format!(
                    "the record must list files of its own folder, but it has the path {}",
                    quoted(name)
                );
                Err(Problem::data(what).in_file(&path).help(SCHEMA.help))
            }
        }
    }

    /// The files of the base, in an order of removal in which the rest never loads: index, weights, other files, this record.
    pub(super) fn old_files(&self) -> Vec<PathBuf> {
        let mut names: Vec<&String> = self.files.iter().collect();
        names.sort_by_key(|name| std::cmp::Reverse(standing(name)));
        names.into_iter().map(PathBuf::from).chain([RECORD_FILE.into()]).collect()
    }
}

/// True if a folder contains an anchor, according to its record.
pub(super) fn is_anchor(folder: &Path) -> Result<bool, Problem> {
    match Record::read(&folder.join(RECORD_FILE)) {
        Ok(record) => Ok(record.is_some_and(|record| record.is_anchored())),
        Err(problem) if problem.category() == Category::Io => Err(problem),
        Err(_) => Ok(false),
    }
}

/// The rank of a file: files with a higher rank make a folder loadable, so they are written last and removed first.
pub(super) fn standing(name: &str) -> u8 {
    if name.ends_with(".safetensors.index.json") { 2 } else { u8::from(name.ends_with(".safetensors")) }
}
