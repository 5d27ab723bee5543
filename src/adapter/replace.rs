//! Removes the residual base or the anchor of an earlier run. Only files that their records list are removed.

use super::folder::OutputFolder;
use super::record::Record;
use super::{RECORD_FILE, TENSORS_FILE, retire};
use crate::storage::{Access, Category, Problem, Schema, Source, is_missing, is_plain_name, quoted};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

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
}

impl BaseRecord {
    pub(super) fn new(mut files: Vec<String>) -> Self {
        files.sort();
        Self { format: SCHEMA.format.into(), version: SCHEMA.newest, files }
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

    /// Removes the base from its folder: weights first, this record last. Files that are not listed stay. The folder is removed if it is
    /// empty then.
    pub(super) fn remove_from(&self, folder: &Path) -> Result<(), Problem> {
        let output = OutputFolder::open(folder)?;
        remove_all(&output, &self.files)?;
        output.remove(RECORD_FILE)?;
        // Fails, as intended, if other files are in the folder.
        let _ = fs::remove_dir(folder);
        Ok(())
    }
}

/// Removes the anchor in a folder, after a check with [`is_anchor`]. Other files stay. The folder is removed if it is empty then.
pub(super) fn remove_anchor(folder: &Path) -> Result<(), Problem> {
    retire(folder)?;
    let output = OutputFolder::open(folder)?;
    output.remove(TENSORS_FILE)?;
    output.remove(RECORD_FILE)?;
    // Fails, as intended, if other files are in the folder.
    let _ = fs::remove_dir(folder);
    Ok(())
}

/// True if a folder contains an anchor, according to its record.
pub(super) fn is_anchor(folder: &Path) -> Result<bool, Problem> {
    match Record::read(&folder.join(RECORD_FILE)) {
        Ok(record) => Ok(record.is_some_and(|record| record.is_anchored())),
        Err(problem) if problem.category() == Category::Io => Err(problem),
        Err(_) => Ok(false),
    }
}

/// Removes files of a model in an order in which the rest never loads: index, weights, other files.
pub(super) fn remove_all(output: &OutputFolder<'_>, names: &[String]) -> Result<(), Problem> {
    let mut names: Vec<&String> = names.iter().collect();
    names.sort_by_key(|name| std::cmp::Reverse(standing(name)));
    names.into_iter().try_for_each(|name| output.remove(name))
}

/// The rank of a file: files with a higher rank make a folder loadable, so they are written last and removed first.
pub(super) fn standing(name: &str) -> u8 {
    if name.ends_with(".safetensors.index.json") { 2 } else { u8::from(name.ends_with(".safetensors")) }
}
