//! What is written of an adapter, in whatever format.

use super::folder::{OutputFolder, write_all};
use super::{Adapter, FileRecord, RECORD_FILE};
use crate::element::Element;
use crate::storage::safetensors::Layout;
use crate::storage::{AtomicFile, Hashing, Problem, Problems};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// An adapter, and what is written with it into its folder.
#[derive(Clone, Copy)]
pub struct Contents<'a> {
    /// The adapter.
    pub adapter: &'a Adapter,
    /// The number format of the factors, which are rounded to nearest even: F32, F16 or BF16.
    pub element: Element,
    /// What `cntlora.json` holds beside the hashes of files.
    pub provenance: &'a Map<String, Value>,
    /// Modules of the model that are not adapted, as far as they are known (see [`other_modules`](super::other_modules)): the
    /// `target_modules` of PEFT are written such that they do not match them.
    pub other_modules: &'a BTreeSet<String>,
    /// Further files of the folder, by name.
    pub beside: &'a [(&'a str, &'a [u8])],
}

impl Contents<'_> {
    /// Writes what goes beside the file of the tensors, which is recorded with its hash.
    pub(super) fn write_beside(
        &self,
        output: &OutputFolder,
        tensors: &str,
        hashing: Hashing,
    ) -> Result<Vec<AtomicFile>, Problem> {
        let mut record = self.provenance.clone();
        record.insert("files".into(), json!({ tensors: FileRecord::from(hashing) }));
        let record = pretty(&Value::Object(record));
        let files = [(RECORD_FILE, record.as_bytes())].into_iter().chain(self.beside.iter().copied());
        files
            .map(|(name, bytes)| {
                let mut file = output.create(name)?;
                write_all(&mut file, bytes)?;
                Ok(file)
            })
            .collect()
    }
}

/// Writes the file of the tensors, whose bytes come in the order of the layout. What keeps any of them from being written is told
/// together.
pub(super) fn write_tensors_file<'a>(
    output: &OutputFolder,
    name: &str,
    layout: &Layout,
    tensors: impl Iterator<Item = (&'a String, Result<Vec<u8>, Problem>)>,
) -> Result<(AtomicFile, Hashing), Problems> {
    let mut file = output.create(name)?;
    let mut hashing = Hashing::default();
    hashing.update(layout.header());
    write_all(&mut file, layout.header())?;
    let mut problems = Problems::default();
    for (key, bytes) in tensors {
        if let Some(bytes) = problems.collect(bytes.map_err(|problem| problem.in_tensor(key))) {
            hashing.update(&bytes);
            write_all(&mut file, &bytes)?;
        }
    }
    problems.or_ok((file, hashing))
}

/// A value as text for people, with a line break at its end.
pub(super) fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
