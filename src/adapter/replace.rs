//! What an earlier run left of a residual base or an anchor: its own record says so, and nothing else is removed.

use super::folder::OutputFolder;
use super::record::Record;
use super::{RECORD_FILE, TENSORS_FILE, retire};
use crate::storage::{Access, Category, Problem, Source, is_missing, quoted};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Component, Path};

const FORMAT: &str = "cntlora-base";
const VERSION: u64 = 1;

/// The record in the folder of a residual base: which files are ours.
#[derive(Serialize, Deserialize)]
pub(super) struct BaseRecord {
    format: String,
    version: u64,
    /// Names within the folder, in order.
    pub(super) files: Vec<String>,
}

impl BaseRecord {
    pub(super) fn new(mut files: Vec<String>) -> Self {
        files.sort();
        Self { format: FORMAT.into(), version: VERSION, files }
    }

    /// The record in a folder; `None` if there is none of a residual base.
    pub(super) fn of(folder: &Path) -> Result<Option<Self>, Problem> {
        let path = folder.join(RECORD_FILE);
        if is_missing(&path) {
            return Ok(None);
        }
        let source = Source::open(&path, Access::Read)?;
        let bytes = source.read_vec(0, source.length())?;
        let Ok(record) = serde_json::from_slice::<Self>(&bytes) else { return Ok(None) };
        if record.format != FORMAT || record.version != VERSION {
            return Ok(None);
        }
        match record.files.iter().find(|name| !is_plain(name)) {
            None => Ok(Some(record)),
            Some(name) => Err(Problem::data(format!(
                "expected the names of files in this folder, found {}",
                quoted(name)
            ))
            .in_file(&path)
            .help("choose another folder for the residual base")),
        }
    }

    /// Removes the base from its folder, weights first and this record last. Files that it does not name stay, and so does the folder
    /// if any are left.
    pub(super) fn remove_from(&self, folder: &Path) -> Result<(), Problem> {
        let output = OutputFolder::open(folder)?;
        remove_all(&output, &self.files)?;
        output.remove(RECORD_FILE)?;
        // Fails, as it should, if a file of the user is in it.
        let _ = fs::remove_dir(folder);
        Ok(())
    }
}

/// Removes the anchor in a folder, which [`is_anchor`]. Files of others stay, and so does the folder if any are left.
pub(super) fn remove_anchor(folder: &Path) -> Result<(), Problem> {
    retire(folder)?;
    let output = OutputFolder::open(folder)?;
    output.remove(TENSORS_FILE)?;
    output.remove(RECORD_FILE)?;
    // Fails, as it should, if a file of the user is in it.
    let _ = fs::remove_dir(folder);
    Ok(())
}

/// Whether the adapter in a folder is one that takes an update away, as its record says.
pub(super) fn is_anchor(folder: &Path) -> Result<bool, Problem> {
    match Record::read(&folder.join(RECORD_FILE)) {
        Ok(record) => Ok(record.is_some_and(|record| record.is_anchored())),
        Err(problem) if problem.category() == Category::Io => Err(problem),
        Err(_) => Ok(false),
    }
}

/// Removes files of a model such that what is left never loads: the index, the weights, all others.
pub(super) fn remove_all(output: &OutputFolder<'_>, names: &[String]) -> Result<(), Problem> {
    let mut names: Vec<&String> = names.iter().collect();
    names.sort_by_key(|name| std::cmp::Reverse(standing(name)));
    names.into_iter().try_for_each(|name| output.remove(name))
}

/// What makes a folder load comes last when it is written and goes first when it is removed.
pub(super) fn standing(name: &str) -> u8 {
    if name.ends_with(".safetensors.index.json") { 2 } else { u8::from(name.ends_with(".safetensors")) }
}

fn is_plain(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(only)), None) if only == name)
}
